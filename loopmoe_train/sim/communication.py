"""The collectives of one visit and of one step, on the groups that the grid makes."""

from __future__ import annotations

from dataclasses import dataclass

from loopmoe_train.sim import collectives
from loopmoe_train.sim.collectives import Group
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.operators import Rank
from loopmoe_train.sim.shape import Layer

# What MC2, CoC or user buffers hide of a gather or scatter beside its product.
_TENSOR_HIDDEN = 0.7
_IN_LEVELS = {
    "hierarchical": collectives.hierarchical, "deduplicated": collectives.deduplicated,
    "chunked": collectives.chunked,
}  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """Seconds that communication adds to one visit. What a collective's own neighbour hides is
    not in it; the experts' exchange is whole."""

    tensor: float = 0.0
    context: float = 0.0
    experts: float = 0.0

    @property
    def total(self) -> float:
        return self.tensor + self.context + self.experts


class Groups:
    """The groups of a rank. Tensor is the innermost axis, then context, data, pipeline."""

    def __init__(self, rank: Rank) -> None:
        grid = rank.workload.grid
        self.tensor = Group(grid.tensor)
        self.context = Group(grid.context, grid.tensor)
        self.data = Group(grid.context * grid.data, grid.tensor)
        self.expert_tensor = Group(grid.expert_tensor)
        self.expert = Group(grid.expert, grid.expert_tensor)
        self.expert_data = Group(grid.expert_data, grid.expert_tensor * grid.expert)
        self.stage_stride = grid.world // grid.pipeline


class Network:
    """Communication of a workload on a machine."""

    def __init__(self, rank: Rank, machine: Machine) -> None:
        self.rank, self.machine = rank, machine
        self.workload, self.groups = rank.workload, Groups(rank)

    def forward(self, layer: Layer, attention: float) -> Exchange:
        """Of one visit's forward. ``attention``: seconds of its core attention."""
        return Exchange(
            tensor=self._tensor(layer),
            context=self._context(layer, attention, 1),
            experts=self._experts(layer),
        )

    def backward(self, layer: Layer, attention: float) -> Exchange:
        """Of one visit's backward: the same the other way; keys and values also back."""
        return Exchange(
            tensor=self._tensor(layer),
            context=self._context(layer, attention, 2),
            experts=self._experts(layer),
        )

    def _sublayer(self, width: float) -> float:
        """Gather before and scatter after (or an all-reduce, which is both)."""
        rank, group = self.rank, self.groups.tensor
        if group.size < 2:
            return 0.0
        into = collectives.gather(self.machine, group, rank.rows * width * rank.element)
        out = collectives.gather(self.machine, group, rank.rows * rank.hidden * rank.element)
        hidden = _TENSOR_HIDDEN if self.workload.overlap.tensor else 0.0
        if not self.workload.sequence_parallel:
            into = out
        return (into + out) * (1 - hidden)

    def _tensor(self, layer: Layer) -> float:
        a, ffn, hidden = layer.attention, layer.ffn, self.rank.hidden
        width: float = hidden
        if a.kv_rank is not None and a.q_rank is not None:
            width = a.q_rank + a.kv_rank + a.rope_dim
        total = self._sublayer(width)
        if not ffn.experts or ffn.shared:
            total += self._sublayer(hidden)
        return total

    def _context(self, layer: Layer, attention: float, ways: int) -> float:
        rank, group, a = self.rank, self.groups.context, layer.attention
        if group.size < 2:
            return 0.0
        e, tp = rank.element, rank.tp
        keys = a.kv_rank + a.rope_dim if a.kv_rank else a.groups * (a.qk_dim + a.v_dim) / tp
        if self.workload.context == "ulysses":
            moved = rank.rows * e * (a.queries + a.groups * (a.qk_dim + a.v_dim) + a.values) / tp
            return collectives.all_to_all(self.machine, group, moved)
        if a.kv_rank and self.workload.context == "ring":
            keys = a.heads * (a.qk_dim + a.v_dim) / tp
        whole = rank.rows * group.size * keys * e
        time = ways * collectives.gather(self.machine, group, whole)
        if self.workload.context == "gather":
            return time
        # Each step of the ring runs beside the attention of the one before.
        return max(0.0, time - attention * (group.size - 1) / group.size)

    def exchange(self, layer: Layer, kind: str = "") -> float:
        """One way of the experts' exchange, with nothing hidden; ``kind``: another than the
        workload's."""
        rank, groups, ffn = self.rank, self.groups, layer.ffn
        if not ffn.experts:
            return 0.0
        e, h = rank.element, rank.hidden
        sent = rank.between * ffn.top_k * h * e * rank.imbalance
        kind = kind or self.workload.exchange
        time = 0.0
        if groups.expert.size > 1:
            if kind == "allgather":
                whole = rank.between * h * e * groups.expert.size
                time += collectives.gather(self.machine, groups.expert, whole)
            elif kind in _IN_LEVELS:
                time += _IN_LEVELS[kind](
                    self.machine, groups.expert, rank.between, h * e, ffn.top_k, rank.imbalance
                )
            else:
                time += collectives.all_to_all(self.machine, groups.expert, sent)
        if groups.expert_tensor.size > 1:
            time += collectives.gather(
                self.machine, groups.expert_tensor, sent * groups.expert_tensor.size
            )
        return time

    def _experts(self, layer: Layer) -> float:
        return 2 * self.exchange(layer)

    def to_next_stage(self) -> float:
        """Seconds that a micro-batch needs to the next stage."""
        if self.workload.stages < 2:
            return 0.0
        # Ranks of tensor parallelism send a part each, and gather (arXiv 2104.04473, section 4.1).
        size = self.rank.rows * self.rank.hidden * self.rank.element
        part = size / self.rank.tp
        reach = self.groups.stage_stride * self.workload.stages
        time = collectives.point_to_point(self.machine, reach, part)
        if not self.workload.sequence_parallel:
            time += collectives.gather(self.machine, self.groups.tensor, size)
        return time
