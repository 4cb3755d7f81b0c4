"""What is simulated: a transformer, its layout on the ranks, a batch, and what is kept or hidden.

:func:`workload_of` makes one of a run's configuration, :mod:`.published` of a row of published
measurements, :mod:`.scripts` of a launch script.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Collection, FrozenSet, Optional, Sequence, Tuple

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.sim.shape import Shape, shape_of
from loopmoe_train.spec.batch import global_batch
from loopmoe_train.spec.grid import Grid, grid_of
from loopmoe_train.spec.placement import placement_of


@dataclass(frozen=True)
class Memory:
    """What is not kept for backward, and where states live.

    Attributes:
        full: layers of every slot that are recomputed whole; None: none; 0 is none too.
        modules: parts that are recomputed: ``norm``, ``core_attn``, ``mla_up_proj``, ``act``,
            ``mlp``, ``moe``, ``shared_experts``.
        swap: ``optimizer``: states live on the host; ``attention``: what attention keeps does.
        reuse_fp32: the 16-bit weights are half of the fp32 ones (MindSpeed's reuse-fp32-param).
    """

    full: Optional[int] = None
    modules: FrozenSet[str] = frozenset()
    swap: FrozenSet[str] = frozenset()
    reuse_fp32: bool = False


@dataclass(frozen=True)
class Overlap:
    """What runs behind the arithmetic.

    Attributes:
        gradients: reductions, behind the last backward.
        weights: gathering, behind the first forward.
        pipeline: sends between stages.
        tensor: gathers and scatters of tensor parallelism (MC2, CoC, user buffers).
        experts: share of the exchange that is hidden.
    """

    gradients: bool = False
    weights: bool = False
    pipeline: bool = True
    tensor: bool = False
    experts: float = 0.0


@dataclass(frozen=True)
class Workload:
    """One training step.

    Attributes:
        slots: of every slot (chunk * stages + stage) the visits, as places in ``shape.order``.
        sharding: ``none``, ``optimizer`` (states over data-parallel ranks) or ``full`` (weights
            too, gathered layer by layer: FSDP, ZeRO-3).
        exchange: ``alltoall``, ``allgather`` (all tokens to all ranks), ``hierarchical`` and
            ``deduplicated`` (a token crosses to a node once), ``chunked`` (both levels of that
            side by side, as DeepEP has it and the trainer does not).
        imbalance: tokens of the fullest rank over the mean.
        probs_first: router weights multiply inside the expert, so that its output is not kept.
        fused_loss: the loss needs no copy of the logits in fp32.
        fused_gradient: products add to the gradient buffer themselves.
        dropout: masks are kept.
        context: how keys and values reach the ranks of context parallelism: ``ring`` (behind the
            attention), ``gather``, ``ulysses`` (heads instead of tokens, by all-to-all).
        states: bytes of the optimizer's states and master weights of a parameter.
        gradient: bytes of a parameter's gradient buffer.
    """

    shape: Shape
    grid: Grid
    slots: Tuple[Tuple[int, ...], ...]
    sequence: int
    micro_batch: int
    global_batch: int
    precision: str = "bf16"
    sequence_parallel: bool = True
    sharding: str = "optimizer"
    exchange: str = "alltoall"
    imbalance: float = 1.0
    probs_first: bool = True
    fused_loss: bool = False
    fused_gradient: bool = False
    dropout: bool = False
    context: str = "ring"
    states: float = 12.0
    gradient: float = 4.0
    graphs: bool = False  # steps are replayed graphs: the host starts no operator
    memory: Memory = field(default_factory=Memory)
    overlap: Overlap = field(default_factory=Overlap)

    @property
    def stages(self) -> int:
        return self.grid.pipeline

    @property
    def chunks(self) -> int:
        return len(self.slots) // self.grid.pipeline

    @property
    def iterations(self) -> int:
        """How often the loop body comes, 1 without one: the chunks that it makes on a pipeline."""
        order = self.shape.order
        return max(order.count(layer) for layer in set(order))

    @property
    def micro_batches(self) -> int:
        return max(1, self.global_batch // (self.micro_batch * self.grid.data))

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.global_batch * self.sequence


def workload_of(run: RunConfig) -> Workload:
    """The workload of a run.

    Raises:
        ValueError: its layout cannot be (:mod:`loopmoe_train.config.rules` refuses it before).
    """
    placement = placement_of(run)
    vocabulary = run.model.vocab_size or run.tokenizer.vocab_size
    parallel, moe, offloaded = run.parallel, run.model.moe, run.optim.offload == "cpu"
    return Workload(
        shape=shape_of(run.model, vocabulary),
        grid=grid_of(run),
        slots=tuple(tuple(visit.index for visit in slot) for slot in placement.slots),
        sequence=run.sequence_length,
        micro_batch=run.micro_batch_size,
        global_batch=global_batch(run, 0),
        precision=run.precision,
        sharding=_sharding(run),
        exchange=moe.dispatcher,
        imbalance=1.0 if moe.pad_to_capacity else IMBALANCE,
        dropout=run.model.hidden_dropout > 0,
        context=parallel.context_parallel,
        states=8.0 if run.precision == "fp32" else 12.0,
        memory=Memory(
            full=max(map(len, placement.slots)) if run.memory.recompute == "full" else None,
            modules=frozenset(run.memory.recompute_modules),  # empty but for `selective`
            # On cluster=cpu the host's memory is the device's.
            swap=frozenset({"optimizer"} if offloaded and run.cluster.device != "cpu" else ()),
        ),
        overlap=Overlap(
            gradients=parallel.overlap_grad_reduce,
            weights=parallel.overlap_param_gather,
            pipeline=parallel.overlap_p2p_comm,
        ),
    )


def _sharding(run: RunConfig) -> str:
    if run.engine == "deepspeed" and run.parallel.zero_stage == 3:
        return "full"
    return "optimizer" if run.parallel.distributed_optimizer else "none"


IMBALANCE = 1.15  # of a router with an auxiliary loss, over 8 to 64 ranks


def even_slots(visits: int, slots: int) -> Tuple[Tuple[int, ...], ...]:
    """``visits`` in order on ``slots``, as evenly as they go.

    What is missing for a full round is missing at the end, which has the head, then at the
    beginning, which has the embedding, and so on inwards.
    """
    most = -(-visits // slots)
    lengths = [most] * slots
    ends = [place for pair in zip(range(slots - 1, -1, -1), range(slots)) for place in pair]
    for place in ends[: slots * most - visits]:
        lengths[place] -= 1
    found, begin = [], 0
    for length in lengths:
        found.append(tuple(range(begin, begin + length)))
        begin += length
    return tuple(found)


def without_idle(
    slots: Sequence[Sequence[int]], idle: Collection[int]
) -> Tuple[Tuple[int, ...], ...]:
    """``slots`` without the places ``idle``, whose layers do nothing; the others are renumbered."""
    left = sorted(place for slot in slots for place in slot if place not in idle)
    number = {place: new for new, place in enumerate(left)}
    return tuple(tuple(number[place] for place in slot if place in number) for slot in slots)
