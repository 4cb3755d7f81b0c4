"""Schedule tables: the order in which megatron-core's own schedules call forward and backward."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from loopmoe_train.spec.schedule import (
    Action,
    Table,
    in_flight,
    interleaved,
    one_f_one_b,
    peak,
    table,
)
from tests.dist import ranks

RANKS = 4


def case(
    stages: int,
    micro_batches: int,
    chunks: int = 1,
    group: int | None = None,
    overlap: bool = False,
) -> Dict[str, Any]:
    return dict(
        stages=stages, micro_batches=micro_batches, chunks=chunks, group=group, overlap=overlap
    )


CASES = [
    case(1, 1), case(1, 5),
    *(case(stages, m) for stages in (2, 4) for m in (1, 2, 3, 4, 5, 9, 12)),
    *(case(p, m * p, chunks) for p in (2, 4) for chunks in (2, 3, 4) for m in (1, 2, 3)),
    # a last group that is smaller than the others, and groups larger than the pipeline
    case(2, 5, 2, group=3), case(2, 7, 3, group=4), case(4, 9, 2, group=5), case(4, 12, 2, group=6),
    case(2, 4, 3, overlap=True), case(2, 7, 2, group=4, overlap=True), case(4, 8, 3, overlap=True),
]  # fmt: skip

REFUSED = [case(2, 5, 2), case(4, 3, 2), case(4, 6, 2), case(2, 4, 2, group=5), case(4, 8, 2, 3)]


def sizes(of: Dict[str, Any]) -> List[Any]:
    return [of["stages"], of["micro_batches"], of["chunks"], of["group"]]


def test_the_order_is_that_of_megatron_core() -> None:
    every = sorted(CASES + REFUSED, key=lambda each: each["stages"])
    by_rank = ranks.run("tests.spec.schedule_worker:record", RANKS, every)
    for index, each in enumerate(every):
        for rank in range(RANKS):
            called = by_rank[rank][index]
            if each in REFUSED:
                assert isinstance(called, str) and "micro-batches" in called, (each, called)
                continue
            # Pipeline is the slowest axis: 4 ranks in 2 stages are 0, 1 and 2, 3.
            stage = rank // (RANKS // each["stages"])
            ours = table(*sizes(each))[stage]
            assert [(a.kind, a.micro_batch, a.chunk) for a in ours] == called, (each, rank)


@pytest.mark.parametrize("each", REFUSED, ids=lambda each: "-".join(map(str, sizes(each))))
def test_what_core_refuses_is_refused(each: Dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="micro-batches"):
        table(*sizes(each))


def test_one_stage_has_nothing_to_interleave() -> None:
    with pytest.raises(ValueError, match="2 pipeline stages or more"):
        table(1, 4, 2)
    with pytest.raises(ValueError, match="micro_batches=0"):
        table(2, 0)


def text(of: List[Action]) -> str:
    return " ".join(f"{a.kind}{a.micro_batch}.{a.chunk}" for a in of)


def test_tables_by_hand() -> None:
    assert text(one_f_one_b(2, 3)[0]) == "F0.0 F1.0 B0.0 F2.0 B1.0 B2.0"
    assert text(one_f_one_b(2, 3)[1]) == "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0"
    assert text(one_f_one_b(1, 2)[0]) == "F0.0 B0.0 F1.0 B1.0"
    assert text(interleaved(2, 2, 2)[1]) == "F0.0 F1.0 F0.1 B0.1 F1.1 B1.1 B0.0 B1.0"


def test_every_pair_runs_once_and_backward_after_forward() -> None:
    tables: List[Table] = [table(p, m * p, v) for p in (2, 3, 8) for m in (1, 4) for v in (1, 2, 5)]
    for made in tables:
        for actions in made:
            places = {(a.micro_batch, a.chunk) for a in actions}
            assert len(actions) == 2 * len(places) == len(set(actions))
            at = {action: place for place, action in enumerate(actions)}
            for micro_batch, chunk in places:
                assert at[Action("F", micro_batch, chunk)] < at[Action("B", micro_batch, chunk)]


def test_in_flight_is_warm_up_and_one() -> None:
    assert [in_flight(actions) for actions in one_f_one_b(4, 9)] == [4, 3, 2, 1]
    assert [in_flight(actions) for actions in one_f_one_b(4, 2)] == [2, 2, 2, 1]
    # 2 (P - s - 1) + (V - 1) P + 1, arXiv 2104.04473
    assert [in_flight(actions) for actions in interleaved(4, 12, 3)] == [15, 13, 11, 9]
    assert [in_flight(actions) for actions in interleaved(2, 2, 3)] == [6, 5]
    assert peak(interleaved(2, 2, 3)[0], [10, 1, 0]) == 22
