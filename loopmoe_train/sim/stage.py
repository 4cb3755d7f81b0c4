"""What one pipeline stage holds and does: its weights, and the times of its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from loopmoe_train.sim.communication import Network
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

    def __add__(self, other: Pass) -> Pass:
        return Pass(
            self.arithmetic + other.arithmetic, self.tensor + other.tensor,
            self.context + other.context, self.experts + other.experts,
            self.recompute + other.recompute,
        )  # fmt: skip


class Stages:
    """All stages of a workload on a machine; equal layers are looked at once."""

    def __init__(self, workload: Workload, machine: Machine) -> None:
        self.workload, self.machine = workload, machine
        self.rank = Rank(workload, machine)
        self.network = Network(self.rank, machine)
        self._visits: Dict[Tuple[Layer, bool], Tuple[Pass, Pass]] = {}
        self._operators: Dict[Layer, List[Operator]] = {}

    # -- what is where ---------------------------------------------------------------------
    def slot(self, stage: int, chunk: int) -> int:
        return chunk * self.workload.stages + stage

    def layers(self, stage: int, chunk: int) -> List[Layer]:
        shape = self.workload.shape
        return [
            shape.layers[shape.order[visit]]
            for visit in self.workload.slots[self.slot(stage, chunk)]
        ]

    def is_first(self, stage: int, chunk: int) -> bool:
        return self.slot(stage, chunk) == 0

    def is_last(self, stage: int, chunk: int) -> bool:
        return self.slot(stage, chunk) == len(self.workload.slots) - 1

    def weights(self, stage: int) -> Weights:
        """Parameters that one rank of this stage owns; looped layers once."""
        shape, grid = self.workload.shape, self.workload.grid
        owned = {
            shape.order[visit]
            for chunk in range(self.workload.chunks)
            for visit in self.workload.slots[self.slot(stage, chunk)]
        }
        dense = experts = 0.0
        held = [shape.layers[index] for index in owned]
        table = shape.vocab * shape.hidden / grid.tensor
        last = stage == self.workload.stages - 1
        if last:
            held += [shape.layers[-1]] * shape.mtp
            dense += shape.hidden + shape.mtp * (2 * shape.hidden**2 / grid.tensor)
            if not shape.tied or self.workload.stages > 1:
                dense += table
            if shape.mtp and self.workload.stages > 1:
                dense += table  # multi-token prediction looks its inputs up itself
        if stage == 0:
            dense += table
        for layer in held:
            dense += layer.dense_parameters(shape.hidden) / grid.tensor
            if layer.attention.q_rank is not None and layer.attention.kv_rank is not None:
                # down-projections are whole on every rank
                down = shape.hidden * (
                    layer.attention.q_rank + layer.attention.kv_rank + layer.attention.rope_dim
                )
                dense += down * (1 - 1 / grid.tensor)
            experts += layer.expert_parameters(shape.hidden) / grid.expert / grid.expert_tensor
        return Weights(dense, experts)

    # -- times -----------------------------------------------------------------------------
    def operators(self, layer: Layer) -> List[Operator]:
        if layer not in self._operators:
            self._operators[layer] = self.rank.visit(layer)
        return self._operators[layer]

    def times(self, stage: int, chunk: int) -> Tuple[Pass, Pass]:
        """Forward and backward of one micro-batch through a chunk."""
        layers = self.layers(stage, chunk)
        full = self.workload.memory.full
        forward = backward = Pass(0.0)
        for place, layer in enumerate(layers):
            one, two = self._visit(layer, full is not None and place < full)
            forward, backward = forward + one, backward + two
        ends: List[Operator] = []
        if self.is_first(stage, chunk):
            ends += self.rank.embedding()
        if self.is_last(stage, chunk):
            ends += self.rank.head()
            for _ in range(self.workload.shape.mtp):
                last = self.workload.shape.layers[-1]
                ends += self.rank.prediction(last)[:2]
                ends += self.rank.head()
                one, two = self._visit(last, full is not None)
                forward, backward = forward + one, backward + two
        return forward + self._forward(ends), backward + self._backward(ends, ())

    def _visit(self, layer: Layer, again: bool) -> Tuple[Pass, Pass]:
        key = (layer, again)
        if key not in self._visits:
            operators = self.operators(layer)
            modules = self.workload.memory.modules
            repeated = operators if again else [o for o in operators if o.recomputed(modules)]
            core = sum(o.forward for o in operators if o.name == "attention")
            core_back = sum(o.dgrad for o in operators if o.name == "attention")
            ahead = self.network.forward(layer, core)
            behind = self.network.backward(layer, core_back)
            forward = self._forward(operators) + Pass(
                0.0, ahead.tensor, ahead.context, ahead.experts
            )
            backward = self._backward(operators, repeated) + Pass(
                0.0, behind.tensor, behind.context, behind.experts
            )
            if again:
                # the collectives of the forward run again too
                backward = backward + Pass(0.0, ahead.tensor, ahead.context, ahead.experts)
            elif "moe" in modules:
                backward = backward + Pass(0.0, 0.0, 0.0, ahead.experts)
            self._visits[key] = (forward, backward)
        return self._visits[key]

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
