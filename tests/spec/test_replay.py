"""Replay of schedules: bubbles by formula, bounds that any run keeps, what cannot finish."""

from __future__ import annotations

import random
import time
from typing import Dict, List, Tuple

import pytest

from loopmoe_train.spec.replay import Timeline, replay
from loopmoe_train.spec.schedule import Action, Kind, interleaved, one_f_one_b, table

SIZES = [(p, m, v) for p in (1, 2, 3, 4, 8) for m in (p, 2 * p, 5 * p) for v in (1, 2, 5)
         if p > 1 or v == 1]  # fmt: skip


def uniform(stage: int, chunk: int, kind: Kind) -> float:
    return 1.0 if kind == "F" else 2.0


@pytest.mark.parametrize("stages, micro_batches, chunks", SIZES)
def test_the_bubble_of_equal_chunks_is_the_formula(
    stages: int, micro_batches: int, chunks: int
) -> None:
    # (P - 1) / V steps are idle beside m steps of work, arXiv 2104.04473, section 2.2
    run = replay(table(stages, micro_batches, chunks), uniform)
    expected = (stages - 1) / (micro_batches * chunks + stages - 1)
    assert run.bubble_share == pytest.approx(expected)
    assert run.makespan == pytest.approx(3 * (micro_batches * chunks + stages - 1))
    assert run.busy == pytest.approx([3.0 * micro_batches * chunks] * stages)


def uneven(seed: int) -> Dict[Tuple[int, int, Kind], float]:
    some = random.Random(seed)
    return {(s, c, k): some.uniform(0.1, 3) for s in range(9) for c in range(6) for k in ("F", "B")}


@pytest.mark.parametrize("stages, micro_batches, chunks", SIZES)
@pytest.mark.parametrize("transfer", [0.0, 0.7])
def test_a_run_keeps_every_bound_and_dependency(
    stages: int, micro_batches: int, chunks: int, transfer: float
) -> None:
    cost = uneven(stages * 100 + micro_batches + chunks)
    run = replay(table(stages, micro_batches, chunks), lambda *key: cost[key], transfer)
    slots = [(slot % stages, slot // stages) for slot in range(stages * chunks)]
    hop = transfer if stages > 1 else 0.0
    one = sum(cost[s, c, "F"] + cost[s, c, "B"] for s, c in slots) + 2 * hop * (len(slots) - 1)
    assert run.makespan >= max(run.busy) - 1e-9
    assert run.makespan >= one - 1e-9, "a micro-batch's own way"
    assert len(run.spans) == 2 * micro_batches * chunks * stages
    ends = {(*slot_of(run, s.stage, s.action), s.action.kind): s.end for s in run.spans}
    for span in run.spans:
        micro_batch, slot = slot_of(run, span.stage, span.action)
        assert span.end - span.start == pytest.approx(
            cost[span.stage, span.action.chunk, span.action.kind]
        )
        before = slot - 1 if span.action.kind == "F" else slot + 1
        if 0 <= before < len(slots):
            assert span.start >= ends[micro_batch, before, span.action.kind] + hop - 1e-9
        if span.action.kind == "B":
            assert span.start >= ends[micro_batch, slot, "F"] - 1e-9
    for one_span, next_span in zip(run.spans, run.spans[1:]):
        if one_span.stage == next_span.stage:
            assert one_span.end <= next_span.start + 1e-9


def slot_of(run: Timeline, stage: int, action: Action) -> Tuple[int, int]:
    return action.micro_batch, action.chunk * run.stages + stage


def test_nothing_starts_later_than_it_must() -> None:
    cost = uneven(3)
    run = replay(interleaved(4, 8, 3), lambda *key: cost[key], 0.4)
    ends = {(*slot_of(run, s.stage, s.action), s.action.kind): s.end for s in run.spans}
    free = [0.0] * 4
    for span in run.spans:
        micro_batch, slot = slot_of(run, span.stage, span.action)
        before = (micro_batch, slot + (-1 if span.action.kind == "F" else 1), span.action.kind)
        arrived = ends[before] + 0.4 if before in ends else 0.0
        assert span.start == pytest.approx(max(free[span.stage], arrived))
        free[span.stage] = span.end


def test_a_transfer_is_paid_on_every_hop_of_one_micro_batch() -> None:
    run = replay(one_f_one_b(3, 1), uniform, transfer=0.5)
    assert run.makespan == 3 * 3 + 4 * 0.5
    assert replay(one_f_one_b(1, 3), uniform, transfer=0.5).makespan == 9


def test_what_can_never_finish_is_told() -> None:
    good = one_f_one_b(2, 2)
    swapped: List[List[Action]] = [good[0], [good[1][2], *good[1][:2], good[1][3]]]
    assert replay(swapped, uniform).makespan > replay(good, uniform).makespan
    backward_first = [good[0], [good[1][1], good[1][0], *good[1][2:]]]
    with pytest.raises(ValueError, match="stage 1 runs .* before its own forward"):
        replay(backward_first, uniform)
    with pytest.raises(ValueError, match="stage 0 waits for ever at .*'B'.*micro_batch=1"):
        replay([good[0], good[1][:2]], uniform)


def test_replay_is_fast() -> None:
    large = interleaved(16, 128, 8)
    started = time.process_time()
    replay(large, uniform)
    assert time.process_time() - started < 0.3
