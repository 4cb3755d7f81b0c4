"""A run with Muon goes on in another layout as if nothing had happened."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from tests.dist import ranks

BF16 = ["precision=bf16", "model.moe.expert_hidden_size=32"]


def _run(processes: int, cases: List[Dict[str, Any]]) -> Dict[str, Any]:
    return ranks.run("tests.optim.worker:run_cases", processes, cases)[0]


def _case(name: str, expert_parallel: int, *more: str, saved: Any = None) -> Dict[str, Any]:
    layout = f"parallel.expert_parallel_size={expert_parallel}"
    return dict(name=name, overrides=[layout, "optim=muon", *more], saved=saved)


@pytest.fixture(scope="module")
def one() -> Dict[str, Any]:
    return _run(1, [_case("fp32", 1), _case("bf16", 1, *BF16)])


@pytest.fixture(scope="module")
def two(one: Dict[str, Any]) -> Dict[str, Any]:
    return _run(
        2,
        [
            _case("DP2", 1, saved=one["fp32"]["saved"]),
            _case("EP2", 2, saved=one["fp32"]["saved"]),
            _case("EP2 bf16", 2, *BF16, saved=one["bf16"]["saved"]),
            _case("EP2 from the start", 2),
        ],
    )


def same(found: List[float], wanted: List[float], tolerance: float) -> None:
    assert found == pytest.approx(wanted, rel=tolerance, abs=0)


@pytest.mark.parametrize("layout", ["DP2", "EP2"])
def test_from_one_rank_to_two(one: Any, two: Any, layout: str) -> None:
    same(two[layout]["losses"], one["fp32"]["losses"][2:], 1e-6)


def test_from_two_ranks_to_one(one: Any, two: Any) -> None:
    again = _run(1, [_case("again", 1, saved=two["EP2 from the start"]["saved"])])
    same(again["again"]["losses"], one["fp32"]["losses"][2:], 1e-6)


def test_master_weights_travel_too(one: Any, two: Any) -> None:
    assert any("fp32_param" in key for key, _ in one["bf16"]["saved"]["shards"])
    same(two["EP2 bf16"]["losses"], one["bf16"]["losses"][2:], 5e-3)


def test_without_momentum_it_would_show(one: Any) -> None:
    saved = one["fp32"]["saved"]
    shards = {
        place: (shape, part * 0 if "momentum_buffer" in place[0] else part)
        for place, (shape, part) in saved["shards"].items()
    }
    bare = _run(1, [_case("bare", 1, saved={**saved, "shards": shards})])
    assert abs(bare["bare"]["losses"][1] - one["fp32"]["losses"][3]) > 1e-4
