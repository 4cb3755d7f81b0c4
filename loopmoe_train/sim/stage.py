"""What one pipeline stage holds and does: its weights, and the times of its chunks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from loopmoe_train.sim.communication import Network
from loopmoe_train.sim.coverage import Coverage
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.operators import Operator, Rank
from loopmoe_train.sim.shape import Layer
from loopmoe_train.sim.workload import Workload


@dataclass(frozen=True)
class Weights:
    """Parameters on one rank of a stage, by the group that shares their states."""

    dense: float
    experts: float

    @property
    def total(self) -> float:
        return self.dense + self.experts


@dataclass(frozen=True)
class Pass:
    """Seconds of one micro-batch through one chunk.

    Attributes:
        arithmetic: of the device, launches included.
        communication: by kind; what is hidden is not in it.
        recompute: forward that is run again in backward (part of ``arithmetic``).
    """

    arithmetic: float
    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0
    recompute: float = 0.0

    @property
    def total(self) -> float:
        return self.arithmetic + self.tensor + self.context + self.experts

    def __mul__(self, times: int) -> Pass:
        return Pass(
            self.arithmetic * times, self.tensor * times, self.context * times,
            self.experts * times, self.recompute * times,
        )  # fmt: skip

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.arithmetic + other.arithmetic, self.tensor + other.tensor,
            self.context + other.context, self.experts + other.experts,
            self.recompute + other.recompute,
        )  # fmt: skip


Passes = Dict[Tuple[int, int], Tuple[Pass, Pass]]  # of (stage, chunk): forward, backward


class Placed:
    """Which kinds of layers stand where; equal layers are one kind. It does not depend on how
    they are cut, so that layouts can share it."""

    def __init__(self, workload: Workload) -> None:
        shape, self.stages = workload.shape, workload.stages
        numbers: Dict[Layer, int] = {}
        kind_of = [numbers.setdefault(layer, len(numbers)) for layer in shape.layers]
        self.kinds: Tuple[Layer, ...] = tuple(numbers)
        self.last = kind_of[-1]
        self.slots = [[kind_of[shape.order[visit]] for visit in slot] for slot in workload.slots]
        self.owned: List[Dict[int, int]] = []
        for stage in range(self.stages):
            layers = {shape.order[v] for slot in workload.slots[stage :: self.stages] for v in slot}
            self.owned.append(Counter(kind_of[layer] for layer in layers))
        self._counted: Dict[Tuple[int, Optional[int]], List[Tuple[int, bool, int]]] = {}

    def counted(self, slot: int, full: Optional[int]) -> List[Tuple[int, bool, int]]:
        """Equal visits of a slot together: kind, whether it is recomputed whole, how many."""
        key = (slot, full)
        if key not in self._counted:
            found = Counter(
                (kind, full is not None and place < full)
                for place, kind in enumerate(self.slots[slot])
            )
            self._counted[key] = [(*one, count) for one, count in found.items()]
        return self._counted[key]


class Stages:
    """All stages of a workload on a machine; equal layers are looked at once."""

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        like: Optional[Stages] = None,
        placed: Optional[Placed] = None,
    ) -> None:
        """What is known of other layouts can be taken over.

        Args:
            like: stages that differ at most in the pipeline and the data-parallel sizes.
            placed: of the same shape and slots.
        """
        self.workload, self.machine = workload, machine
        self.placed = placed or Placed(workload)
        self.rank = Rank(workload, machine)
        self.network = Network(self.rank, machine)
        self._visits: Dict[Tuple[int, bool], Tuple[Pass, Pass]] = {}
        self._operators: Dict[int, List[Operator]] = {}
        self._parameters: Dict[int, Weights] = {}
        self._ends: Dict[str, List[Operator]] = {}
        self.kept: Dict[Tuple[int, bool], float] = {}  # memory's figures of a visit
        self.needed: Dict[int, float] = {}
        if like is not None:
            self._visits, self._operators = like._visits, like._operators
            self._parameters, self._ends = like._parameters, like._ends
            self.kept, self.needed = like.kept, like.needed

    # -- what is where ---------------------------------------------------------------------
    def slot(self, stage: int, chunk: int) -> int:
        return chunk * self.workload.stages + stage

    def counted(self, stage: int, chunk: int) -> List[Tuple[int, bool, int]]:
        """Equal visits of a chunk: kind, whether it is recomputed whole, how many."""
        return self.placed.counted(self.slot(stage, chunk), self.workload.memory.full)

    def is_first(self, stage: int, chunk: int) -> bool:
        return self.slot(stage, chunk) == 0

    def is_last(self, stage: int, chunk: int) -> bool:
        return self.slot(stage, chunk) == len(self.workload.slots) - 1

    def weights(self, stage: int) -> Weights:
        """Parameters that one rank of this stage owns; looped layers once."""
        shape, tensor = self.workload.shape, self.workload.grid.tensor
        dense = experts = 0.0
        for kind, count in self.placed.owned[stage].items():
            own = self.layer_weights(kind)
            dense, experts = dense + count * own.dense, experts + count * own.experts
        table = shape.vocab * shape.hidden / tensor
        alone = self.workload.stages == 1
        if stage == 0:
            dense += table
        if stage == self.workload.stages - 1:
            own = self.layer_weights(self.placed.last)
            dense += shape.hidden + shape.mtp * (own.dense + 2 * shape.hidden**2 / tensor)
            experts += shape.mtp * own.experts
            dense += 0 if shape.tied and alone else table
            # multi-token prediction looks its inputs up itself
            dense += table if shape.mtp and not alone else 0
        return Weights(dense, experts)

    def updated(self, own: Weights) -> float:
        """Parameters whose states a rank holds and updates: of a distributed optimizer dense ones
        are spread over data x context ranks, experts over theirs."""
        grid = self.workload.grid
        if self.workload.sharding == "none":
            return own.total
        return own.dense / (grid.data * grid.context) + own.experts / grid.expert_data

    def layer_weights(self, kind: int) -> Weights:
        """Parameters of a layer of this kind on one rank."""
        if kind not in self._parameters:
            layer, grid = self.placed.kinds[kind], self.workload.grid
            hidden, attention = self.workload.shape.hidden, layer.attention
            dense = layer.dense_parameters(hidden) / grid.tensor
            if attention.q_rank is not None and attention.kv_rank is not None:
                # down-projections are whole on every rank
                width = attention.q_rank + attention.kv_rank + attention.rope_dim
                dense += hidden * width * (1 - 1 / grid.tensor)
            experts = layer.expert_parameters(hidden) / (grid.expert * grid.expert_tensor)
            self._parameters[kind] = Weights(dense, experts)
        return self._parameters[kind]

    # -- times -----------------------------------------------------------------------------
    def operators(self, kind: int) -> List[Operator]:
        """Of one visit of a layer of this kind."""
        if kind not in self._operators:
            self._operators[kind] = self.rank.visit(self.placed.kinds[kind])
        return self._operators[kind]

    def head(self) -> List[Operator]:
        """Behind the last visit."""
        if "head" not in self._ends:
            self._ends["head"] = self.rank.head()
        return self._ends["head"]

    def joint(self) -> List[Operator]:
        """What one depth of multi-token prediction has beside its layer and its head."""
        if "joint" not in self._ends:
            self._ends["joint"] = self.rank.joint()
        return self._ends["joint"]

    def passes(self) -> Passes:
        """Forward and backward of every (stage, chunk)."""
        return {
            (stage, chunk): self.times(stage, chunk)
            for stage in range(self.workload.stages)
            for chunk in range(self.workload.chunks)
        }

    def times(self, stage: int, chunk: int) -> Tuple[Pass, Pass]:
        """Forward and backward of one micro-batch through a chunk."""
        forward = backward = Pass(0.0)
        for kind, again, count in self.counted(stage, chunk):
            one, two = self._visit(kind, again)
            forward, backward = forward + one * count, backward + two * count
        if self.is_last(stage, chunk):
            depths = self.workload.shape.mtp
            one, two = self._visit(self.placed.last, self.workload.memory.full is not None)
            forward, backward = forward + one * depths, backward + two * depths
        ends = self._outside(stage, chunk)
        if ends:
            forward, backward = forward + self._forward(ends), backward + self._backward(ends, ())
        return forward, backward

    def coverage(self) -> Coverage:
        """Where the times of all stages' operators come from, each counted once a micro-batch."""
        found, depths = Coverage(), self.workload.shape.mtp
        for stage in range(self.workload.stages):
            for chunk in range(self.workload.chunks):
                found += _covered(self._outside(stage, chunk))
                for kind, _, count in self.counted(stage, chunk):
                    found += _covered(self.operators(kind)) * count
                if depths and self.is_last(stage, chunk):
                    found += _covered(self.operators(self.placed.last)) * depths
        return found

    def _outside(self, stage: int, chunk: int) -> List[Operator]:
        """Of a chunk, what belongs to no layer: embedding, heads, joints of predictions."""
        found: List[Operator] = []
        if self.is_first(stage, chunk):
            found += self.rank.embedding()
        if self.is_last(stage, chunk):
            depths = self.workload.shape.mtp
            found += self.head() * (1 + depths) + self.joint() * depths
        return found

    def _visit(self, kind: int, again: bool) -> Tuple[Pass, Pass]:
        key = (kind, again)
        if key not in self._visits:
            layer, operators = self.placed.kinds[kind], self.operators(kind)
            modules = self.workload.memory.modules
            repeated = operators if again else [o for o in operators if o.recomputed(modules)]
            core = sum(o.forward for o in operators if o.name == "attention")
            core_back = sum(o.dgrad for o in operators if o.name == "attention")
            ahead = self.network.forward(layer, core)
            behind = self.network.backward(layer, core_back)
            forward, backward = self._forward(operators), self._backward(operators, repeated)
            sent = Pass(0.0, ahead.tensor, ahead.context, self._shown(ahead.experts, forward))
            returned = self._shown(behind.experts, backward)
            forward += sent
            backward += Pass(0.0, behind.tensor, behind.context, returned)
            if again:
                backward += sent  # the collectives of the forward run again too
            elif "moe" in modules:
                backward += Pass(0.0, experts=sent.experts)
            self._visits[key] = (forward, backward)
        return self._visits[key]

    def _shown(self, exchange: float, beside: Pass) -> float:
        """What of an exchange is left when it runs beside as much arithmetic of another
        micro-batch."""
        share = self.workload.overlap.experts
        return max(exchange * (1 - share), exchange - beside.arithmetic) if share else exchange

    def _forward(self, operators: Sequence[Operator]) -> Pass:
        kernels = sum(operator.kernels for operator in operators)
        device = sum(operator.forward for operator in operators) + kernels * self.machine.launch
        return Pass(self._hosted(device, kernels))

    def _backward(self, operators: Sequence[Operator], again: Sequence[Operator]) -> Pass:
        kernels = 2 * sum(operator.kernels for operator in operators)
        device = sum(operator.dgrad + operator.wgrad for operator in operators)
        more = sum(operator.kernels for operator in again)
        repeated = sum(operator.forward for operator in again) + more * self.machine.launch
        device += kernels * self.machine.launch + repeated
        return Pass(self._hosted(device, kernels + more), recompute=repeated)

    def _hosted(self, device: float, kernels: int) -> float:
        """The device waits where the host starts operators too slowly."""
        if self.workload.graphs:
            return device
        return max(device, kernels * self.machine.host_launch)


def _covered(operators: Sequence[Operator]) -> Coverage:
    exact = sum(one.measured[0] for one in operators)
    near = sum(one.measured[1] for one in operators)
    whole = sum(one.forward + one.dgrad + one.wgrad for one in operators)
    return Coverage(exact, near, max(0.0, whole - exact - near))
