"""The order in which each pipeline stage runs forwards and backwards, as megatron-core 0.16.1.

A test holds the tables equal to what core's schedules call on real ranks. Sources: 1F1B,
arXiv 2006.09503; interleaved 1F1B, arXiv 2104.04473, section 2.2, in core
``pipeline_parallel/schedules.py``. Not covered: ``overlap_moe_expert_parallel_comm``, which
runs one more forward before the pairs.

With P stages, chunk c on stage s is *slot* c * P + s; a micro-batch goes forward through the
slots in ascending order and backward in descending. In the *looped pipeline* the loop body is
spread over the stages and chunk c is one iteration of it: the interleaved schedule, with the
weights of all chunks on a stage tied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Literal, Optional, Sequence, Tuple

Kind = Literal["F", "B"]


@dataclass(frozen=True)
class Action:
    """One forward ("F") or backward ("B") of a micro-batch through a stage's chunk."""

    kind: Kind
    micro_batch: int
    chunk: int


Table = List[List[Action]]  # of every stage, its actions in order


def table(stages: int, micro_batches: int, chunks: int = 1, group: Optional[int] = None) -> Table:
    """The schedule core picks: interleaved for ``chunks`` > 1, else 1F1B.

    Args:
        stages: pipeline-parallel size P.
        micro_batches: of one step on one data-parallel rank.
        chunks: virtual chunks per stage.
        group: see :func:`interleaved`.

    Raises:
        ValueError: core refuses these sizes.
    """
    if chunks == 1:
        return one_f_one_b(stages, micro_batches)
    return interleaved(stages, micro_batches, chunks, group)


def one_f_one_b(stages: int, micro_batches: int) -> Table:
    """Stage s runs P - s - 1 forwards, pairs of forward and backward, then the backwards left.

    One stage alternates them, as core does without a pipeline.

    Raises:
        ValueError: no stage or no micro-batch.
    """
    _at_least_one(stages=stages, micro_batches=micro_batches)
    order = [(micro_batch, 0) for micro_batch in range(micro_batches)]
    return [_in_order(order, order, stages - stage - 1) for stage in range(stages)]


def interleaved(stages: int, micro_batches: int, chunks: int, group: Optional[int] = None) -> Table:
    """Groups of micro-batches go through all chunks of a stage in turn.

    Stage s begins with 2 (P - s - 1) + (chunks - 1) * group forwards. Backwards visit the same
    groups with the chunks reversed.

    Args:
        group: micro-batches that follow one another through one chunk before the next chunk's
            turn (core's ``microbatch_group_size_per_vp_stage``); P by default.

    Raises:
        ValueError: what core refuses: one stage; a group below P or above ``micro_batches``; a
            last group that is neither empty nor at least P.
    """
    _at_least_one(stages=stages, micro_batches=micro_batches, chunks=chunks)
    size = stages if group is None else group
    if stages == 1:
        raise ValueError("an interleaved schedule needs 2 pipeline stages or more")
    if not stages <= size <= micro_batches:
        raise ValueError(
            f"groups of {size} micro-batches: must be from {stages} (pipeline stages) to "
            f"{micro_batches} (micro-batches)"
        )
    if 0 < micro_batches % size < stages:
        raise ValueError(
            f"{micro_batches} micro-batches in groups of {size} leave {micro_batches % size} for "
            f"the last group: must be none or at least {stages}, the pipeline stages"
        )
    forwards, backwards = [], []
    for first in range(0, micro_batches, size):
        members = range(first, min(first + size, micro_batches))
        forwards += [(m, chunk) for chunk in range(chunks) for m in members]
        backwards += [(m, chunk) for chunk in reversed(range(chunks)) for m in members]
    return [
        _in_order(forwards, backwards, 2 * (stages - stage - 1) + (chunks - 1) * size)
        for stage in range(stages)
    ]


def in_flight(actions: Sequence[Action]) -> int:
    """Most (micro-batch, chunk) pairs of one stage at once between forward and backward."""
    return round(peak(actions, None))


def peak(actions: Sequence[Action], weights: Optional[Sequence[float]]) -> float:
    """As :func:`in_flight`, each pair weighing ``weights[chunk]``, e.g. bytes it keeps."""
    held = highest = 0.0
    for action in actions:
        weight = 1.0 if weights is None else weights[action.chunk]
        held += weight if action.kind == "F" else -weight
        highest = max(highest, held)
    return highest


def _in_order(
    forwards: Sequence[Tuple[int, int]], backwards: Sequence[Tuple[int, int]], warm_up: int
) -> List[Action]:
    """``warm_up`` forwards, then forward-backward pairs, then the backwards that are left."""
    warm_up = min(warm_up, len(forwards))
    actions = [Action("F", *place) for place in forwards[:warm_up]]
    for forward, backward in zip(forwards[warm_up:], backwards):
        actions += [Action("F", *forward), Action("B", *backward)]
    return actions + [Action("B", *place) for place in backwards[len(forwards) - warm_up :]]


def _at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: must be at least 1")
