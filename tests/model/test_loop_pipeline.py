"""The loop pipeline beside the parity grid: randomness, ownership, core's counters."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from loopmoe_train.spec.arithmetic import parameters
from tests.dist import ranks


@pytest.fixture(scope="module")
def found() -> Dict[int, Dict[str, Any]]:
    return {n: ranks.run("tests.model.loop_pipeline_worker:look", n) for n in (1, 2)}


def test_every_iteration_drops_other_tokens(found: Dict[int, Any]) -> None:
    for rank in found[2]:
        assert rank["masks"], "a stage without a looped layer"
        for numbers in rank["masks"]:
            # Four micro-batches, three iterations, two sublayers.
            assert len(numbers) == len(set(numbers)) == 24


def test_recomputation_drops_the_same_tokens(found: Dict[int, Any]) -> None:
    for result in (*found[1], *found[2]):
        assert result["recomputed"] == pytest.approx(result["kept"], rel=1e-6)


def test_each_weight_stands_on_one_stage(found: Dict[int, Any]) -> None:
    from tests.parity.worker import VOCAB, golden

    total = parameters(golden(["cluster.devices=1", "parallel=data"]).model, VOCAB)["total"]
    for results in found.values():
        assert sum(results[0]["weights"]) == total
    assert min(found[2][0]["weights"]) > 0.3 * total


def test_core_counts_balance_losses_by_visit(found: Dict[int, Any]) -> None:
    one, two = found[1][0]["tracker"], found[2][0]["tracker"]
    assert one.keys() == two.keys() and "seq_load_balancing_loss" in one
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-5)
        assert sum(value > 0 for value in values) == 7  # eight visits, one of a dense layer


def test_fewer_uses_of_a_weight_are_not_silent(found: Dict[int, Any]) -> None:
    """Why a drawn number of iterations is refused with a pipeline."""
    assert any("Communication call has not been issued" in rank["fewer"] for rank in found[2])
