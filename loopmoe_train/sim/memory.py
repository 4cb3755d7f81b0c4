"""Peak memory of one rank of every pipeline stage, by class.

Weights, gradients and states once; what forward keeps as often as passes are in flight
(:func:`loopmoe_train.spec.schedule.peak`); a looped layer's weights once and its activations for
every iteration. Formulas of kept tensors: arXiv 2205.05198.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from loopmoe_train.sim.shape import Layer
from loopmoe_train.sim.stage import Stages, Weights
from loopmoe_train.spec.schedule import peak, table


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


def held(stages: Stages) -> List[Held]:
    """Of every stage."""
    workload = stages.workload
    micro = min(workload.micro_batches, 4 * workload.stages)
    if workload.chunks > 1:
        micro = max(workload.stages, micro // workload.stages * workload.stages)
    schedule = table(workload.stages, micro, workload.chunks)
    return [_stage(stages, stage, schedule[stage]) for stage in range(workload.stages)]


def _stage(stages: Stages, stage: int, actions: list) -> Held:  # type: ignore[type-arg]
    workload, grid = stages.workload, stages.workload.grid
    own = stages.weights(stage)
    element = 4 if workload.precision == "fp32" else 2
    weights = element * own.total
    gradients = workload.gradient * own.total
    states = workload.states * own.total
    if workload.sharding != "none":
        # as distributed optimizer: dense over data x context ranks, experts over theirs
        states = workload.states * (
            own.dense / (grid.data * grid.context) + own.experts / grid.expert_data
        )
        if workload.memory.reuse_fp32:
            states -= 2 * (own.dense / (grid.data * grid.context) + own.experts / grid.expert_data)
    elif workload.memory.reuse_fp32:
        states -= 2 * own.total
    if workload.sharding == "full":
        ranks = grid.data * grid.context
        weights, gradients = weights / ranks, gradients / ranks
        largest = max(
            (layer.dense_parameters(workload.shape.hidden) + layer.expert_parameters(
                workload.shape.hidden)) / grid.tensor for layer in workload.shape.layers
        )  # fmt: skip
        weights += 2 * element * largest
        gradients += element * largest
    moments = _moments(stages, own)
    if "optimizer" in workload.memory.swap:
        states = moments = 0.0
    kept = [chunk_bytes(stages, stage, chunk) for chunk in range(workload.chunks)]
    logits = 0.0
    if stage == workload.stages - 1:
        logits = sum(o.keeps for o in stages.rank.head()[1:])
    return Held(
        weights, gradients, states, moments, peak(actions, kept), _transient(stages, stage), logits
    )


def _moments(stages: Stages, own: Weights) -> float:
    """Both moments of Adam in fp32."""
    grid = stages.workload.grid
    if stages.workload.sharding == "none":
        return 8 * own.total
    return 8 * (own.dense / (grid.data * grid.context) + own.experts / grid.expert_data)


def chunk_bytes(stages: Stages, stage: int, chunk: int) -> float:
    """Bytes that one micro-batch keeps in a chunk between forward and backward."""
    full = stages.workload.memory.full
    total = 0.0
    for place, layer in enumerate(stages.layers(stage, chunk)):
        total += layer_bytes(stages, layer, full is not None and place < full)
    if stages.is_last(stage, chunk):
        last = stages.workload.shape.layers[-1]
        for _ in range(stages.workload.shape.mtp):
            total += layer_bytes(stages, last, full is not None)
            total += sum(o.keeps for o in stages.rank.prediction(last)[:2])
            total += sum(o.keeps for o in stages.rank.head())
        total += sum(o.keeps for o in stages.rank.head())
    return total


def layer_bytes(stages: Stages, layer: Layer, again: bool) -> float:
    """Bytes that one visit keeps."""
    rank = stages.rank
    if again:
        return rank.between * rank.hidden * rank.element
    modules = stages.workload.memory.modules
    kept = sum(o.keeps for o in stages.operators(layer) if not o.recomputed(modules))
    if "attention" in stages.workload.memory.swap:
        core = [o for o in stages.operators(layer) if o.name in ("attention", "qkv")]
        kept -= sum(o.keeps for o in core if not o.recomputed(modules))
    return kept


def _transient(stages: Stages, stage: int) -> float:
    """The most that backward of one visit, or the loss, needs beside what is kept."""
    workload, rank = stages.workload, stages.rank
    need = 0.0
    layers = {layer for chunk in range(workload.chunks) for layer in stages.layers(stage, chunk)}
    full = workload.memory.full
    for layer in layers:
        operators = stages.operators(layer)
        largest = max(o.keeps for o in operators)
        if not workload.fused_gradient:
            largest += 4 * max(o.weights for o in operators)
        again = 0.0
        if full:
            again = sum(o.keeps for o in operators)
        else:
            again = sum(o.keeps for o in operators if o.recomputed(workload.memory.modules))
        need = max(need, again + largest)
    if stage == workload.stages - 1:
        # the gradient of the logits beside them
        need = max(need, rank.rows * workload.shape.vocab / rank.tp * rank.element)
    return need
