"""Distinct experts over the loop and the ratio of attention to FFN."""

from __future__ import annotations

from itertools import combinations

import pytest

from loopmoe_train.config.schema import LoopConfig, ModelConfig, MoEConfig
from loopmoe_train.errors import Refused
from loopmoe_train.spec.arithmetic import layer_parameters
from loopmoe_train.spec.capacity import (
    UniqueExperts,
    attention_ffn_ratio,
    independent,
    measured,
    overlapping,
    unique_experts,
)


def test_independent_routing_by_enumeration() -> None:
    """All pairs of 2 of 5 experts, twice."""
    sets = list(combinations(range(5), 2))
    mean = sum(len({*a, *b}) for a in sets for b in sets) / len(sets) ** 2
    assert independent(5, 2, 2) == pytest.approx(mean)
    assert independent(136, 6, 1) == pytest.approx(6)


@pytest.mark.parametrize("jaccard", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_two_iterations_have_the_given_overlap(jaccard: float) -> None:
    """|A | B| = 2k / (1 + J), whatever the assumption about more iterations."""
    assert overlapping(jaccard)(136, 6, 2) == pytest.approx(12 / (1 + jaccard))


def test_overlap_runs_from_chance_to_the_same_experts() -> None:
    shared = 36 / 136  # two independent draws of 6 of 136
    assert overlapping(shared / (12 - shared))(136, 6, 4) == pytest.approx(independent(136, 6, 4))
    assert overlapping(1)(136, 6, 4) == 6
    counts = [overlapping(j / 10)(136, 6, 4) for j in range(1, 10)]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("unique", "experts"),
    [(overlapping(0.01), 16), (measured(5.9), 64), (measured(24.1), 64), (measured(17), 16),
     (measured(float("nan")), 64)],
)  # fmt: skip
def test_impossible_counts_are_refused(unique: UniqueExperts, experts: int) -> None:
    with pytest.raises(Refused):
        unique(experts, 6, 4)


def test_ratio_counts_weights_once_and_distinct_experts() -> None:
    model = ModelConfig(
        prefix_layers=1, body_layers=1, suffix_layers=0, dense_layers=1, hidden_size=8,
        dense_ffn_hidden_size=16, loop=LoopConfig(iterations=3),
        moe=MoEConfig(num_experts=10, top_k=2, expert_hidden_size=4, num_shared_experts=1),
    )  # fmt: skip
    attention = layer_parameters(model, False, True).attention
    expert, dense = 3 * 8 * 4, 3 * 8 * 16
    expected = 2 * attention / (dense + (5 + 1) * expert)
    assert attention_ffn_ratio(model, measured(5)) == pytest.approx(expected)
    assert unique_experts(model) == pytest.approx(10 * (1 - 0.8**3))
