"""Peak memory of one rank of every pipeline stage, by class.

Weights, gradients and states once; what forward keeps as often as passes are in flight
(:func:`loopmoe_train.spec.schedule.peak`); a looped layer's weights once and its activations for
every iteration. Formulas of kept tensors: arXiv 2205.05198.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import List, Tuple

from loopmoe_train.sim.machine import GIB, Machine
from loopmoe_train.sim.stage import Stages, Weights
from loopmoe_train.sim.workload import Workload
from loopmoe_train.spec.schedule import table

MARGIN = 0.08  # an underestimated peak within it still runs: a search keeps as much free


@dataclass(frozen=True)
class Held:
    """Bytes on one rank.

    Attributes:
        states: of the optimizer, the fp32 copy of the weights among them.
        moments: those of ``states`` that the first update makes.
        activations: kept for backward at the fullest moment.
        logits: of one micro-batch, which outlive the step.
        transient: more that the largest single step needs on top.
    """

    weights: float
    gradients: float
    states: float
    moments: float
    activations: float
    transient: float
    logits: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.states + self.activations + self.transient

    @property
    def first_step(self) -> float:
        """The peak until the first update is done: before it there are no moments."""
        always = self.weights + self.gradients + self.states
        return max(always + self.logits, always - self.moments + self.activations + self.transient)


def communicators(workload: Workload) -> int:
    """Groups of one rank that talk: those of every axis, the experts' joint one, all ranks."""
    grid = workload.grid
    sizes = (
        grid.tensor, grid.context, grid.pipeline, grid.context * grid.data, grid.expert,
        grid.expert_tensor, grid.expert_data, grid.world,
    )  # fmt: skip
    both = grid.expert > 1 and grid.expert_tensor > 1
    return sum(size > 1 for size in sizes) + both


def beside(workload: Workload, machine: Machine) -> float:
    """Bytes of a device that are not the allocator's: the runtime, communicators' buffers."""
    return machine.reserved + communicators(workload) * machine.communicator


def of_device(peak: float, workload: Workload, machine: Machine) -> float:
    """Bytes of a device at the fullest moment: tensors (``peak``), what the allocator holds back,
    runtime and buffers."""
    return peak * (1 + machine.fragmentation) + beside(workload, machine)


def room(workload: Workload, machine: Machine) -> float:
    """Bytes that a layout's peak may reach: what is left by all else, less what the allocator
    holds back and the simulator's own error."""
    free = machine.memory - beside(workload, machine)
    return free / (1 + machine.fragmentation) / (1 + MARGIN)


def describe(workload: Workload, machine: Machine) -> str:
    """What a layout may use, and what the rest of the device is for."""
    free = machine.memory - beside(workload, machine)
    unused = free - room(workload, machine)
    return (
        f"{room(workload, machine) / GIB:.1f} of {machine.memory / GIB:.1f} GiB may be used "
        f"(runtime {machine.reserved / GIB:.1f}, {communicators(workload)} communicators "
        f"{communicators(workload) * machine.communicator / GIB:.1f}, fragments and the "
        f"simulator's error {unused / GIB:.1f})"
    )


def held(stages: Stages) -> List[Held]:
    """Of every stage."""
    return [_stage(stages, stage) for stage in range(stages.workload.stages)]


def peak(stages: Stages) -> float:
    """Bytes on the fullest rank of all."""
    return max(one.total for one in held(stages))


def fits(stages: Stages, room: float) -> bool:
    """Whether no rank needs more than ``room`` bytes. The ends are looked at first."""
    count = stages.workload.stages
    return all(
        _stage(stages, stage).total <= room for stage in (0, count - 1, *range(1, count - 1))
    )


def always(stages: Stages, stage: int) -> float:
    """Bytes of a stage's weights, gradients and states, whatever is recomputed."""
    return sum(_model(stages, stages.weights(stage))[:3])


@lru_cache(maxsize=1024)
def _fullest(stages: int, micro_batches: int, chunks: int) -> List[List[Tuple[int, ...]]]:
    """Of every stage the moments at which it may keep most: passes in flight of each chunk.

    Moments that keep no more of any chunk than another one are left out.
    """
    found = []
    for actions in table(stages, micro_batches, chunks):
        counts, moments = [0] * chunks, set()
        for action in actions:
            counts[action.chunk] += 1 if action.kind == "F" else -1
            moments.add(tuple(counts))
        found.append(
            [
                one for one in moments
                if not any(
                    other != one and all(a >= b for a, b in zip(other, one)) for other in moments
                )
            ]
        )  # fmt: skip
    return found


def _stage(stages: Stages, stage: int) -> Held:
    workload = stages.workload
    own = stages.weights(stage)
    weights, gradients, states, moments = _model(stages, own)
    # After a few rounds nothing new comes.
    micro = min(workload.micro_batches, 4 * workload.stages)
    if workload.chunks > 1:
        micro = max(workload.stages, micro // workload.stages * workload.stages)
    kept = [chunk_bytes(stages, stage, chunk) for chunk in range(workload.chunks)]
    activations = max(
        sum(count * size for count, size in zip(counts, kept))
        for counts in _fullest(workload.stages, micro, workload.chunks)[stage]
    )
    logits = 0.0
    if stage == workload.stages - 1:
        logits = sum(o.keeps for o in stages.head()[1:])
    return Held(weights, gradients, states, moments, activations, _transient(stages, stage), logits)


def _model(stages: Stages, own: Weights) -> Tuple[float, float, float, float]:
    """Bytes of weights, gradients, states, and of the moments among the states."""
    workload = stages.workload
    element = 4 if workload.precision == "fp32" else 2
    weights, gradients = element * own.total, workload.gradient * own.total
    spread = stages.updated(own)
    states, moments = workload.states * spread, 8 * spread
    if workload.memory.reuse_fp32:
        states -= 2 * spread
    if workload.sharding == "full":
        weights, gradients = element * spread, workload.gradient * spread
        largest = max(stages.layer_weights(kind).total for kind in range(len(stages.placed.kinds)))
        weights += 2 * element * largest
        gradients += element * largest
    if "optimizer" in workload.memory.swap:
        states = moments = 0.0
    return weights, gradients, states, moments


def chunk_bytes(stages: Stages, stage: int, chunk: int) -> float:
    """Bytes that one micro-batch keeps in a chunk between forward and backward."""
    total = 0.0
    for kind, again, count in stages.counted(stage, chunk):
        total += count * layer_bytes(stages, kind, again)
    if stages.is_last(stage, chunk):
        depths = stages.workload.shape.mtp
        if depths:
            full = stages.workload.memory.full is not None
            total += depths * layer_bytes(stages, stages.placed.last, full)
            total += depths * sum(o.keeps for o in stages.joint())
        total += (1 + depths) * sum(o.keeps for o in stages.head())
    return total


def layer_bytes(stages: Stages, kind: int, again: bool) -> float:
    """Bytes that one visit keeps; ``again``: it is recomputed whole."""
    key = (kind, again)
    if key not in stages.kept:
        stages.kept[key] = _visit_bytes(stages, kind, again)
    return stages.kept[key]


def _visit_bytes(stages: Stages, kind: int, again: bool) -> float:
    rank, memory = stages.rank, stages.workload.memory
    if again:
        return rank.between * rank.hidden * rank.element
    kept = [o for o in stages.operators(kind) if not o.recomputed(memory.modules)]
    if "attention" in memory.swap:
        kept = [o for o in kept if o.name not in ("attention", "qkv")]
    return sum(o.keeps for o in kept)


def _transient(stages: Stages, stage: int) -> float:
    """The most that backward of one visit, or the loss, needs beside what is kept."""
    workload, rank = stages.workload, stages.rank
    need = max(
        (
            _visit_needs(stages, kind)
            for chunk in range(workload.chunks)
            for kind, _, _ in stages.counted(stage, chunk)
        ),
        default=0.0,
    )
    if stage == workload.stages - 1:
        # the gradient of the logits beside them
        need = max(need, rank.rows * workload.shape.vocab / rank.tp * rank.element)
    return need


def _visit_needs(stages: Stages, kind: int) -> float:
    if kind not in stages.needed:
        memory, operators = stages.workload.memory, stages.operators(kind)
        largest = max(o.keeps for o in operators)
        if not stages.workload.fused_gradient:
            largest += 4 * max(o.weights for o in operators)
        again = [o for o in operators if memory.full or o.recomputed(memory.modules)]
        stages.needed[kind] = largest + sum(o.keeps for o in again)
    return stages.needed[kind]
