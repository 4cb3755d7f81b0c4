"""Intervals and tests against scipy's own, and against simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from loopmoe_train.study.statistics import holm, mean, paired

OURS, THEIRS = [2.10, 2.05, 2.12, 2.03, 2.08], [2.15, 2.06, 2.20, 2.09, 2.10]


def test_mean_and_interval() -> None:
    ours = mean(OURS)
    low, high = stats.t.interval(0.95, 4, np.mean(OURS), stats.sem(OURS))
    assert (ours.low, ours.high) == pytest.approx((low, high))
    assert ours.sd == pytest.approx(np.std(OURS, ddof=1))


def test_one_value_has_no_interval() -> None:
    one = mean([2.0])
    assert one.mean == 2.0 and math.isnan(one.low) and math.isnan(one.sd)
    pair = paired([2.0], [2.1])
    assert math.isnan(pair.p) and pair.below == 1


def test_paired_test_is_scipys() -> None:
    ours = paired(OURS, THEIRS)
    assert ours.p == pytest.approx(stats.ttest_rel(OURS, THEIRS).pvalue)
    assert ours.below == 5
    assert ours.difference.mean == pytest.approx(np.mean(OURS) - np.mean(THEIRS))


def test_differences_that_are_all_equal() -> None:
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1
    assert paired([1.0, 2.0], [0.5, 1.5]).p == 0


def test_a_detectable_difference_is_found_eight_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    studies = rng.normal(size=(3000, 6))
    pairs = [paired(study, np.zeros(6)) for study in studies[:200]]
    ratio = pairs[0].detectable / (pairs[0].difference.sd / math.sqrt(6))
    assert all(p.detectable * math.sqrt(6) / p.difference.sd == pytest.approx(ratio) for p in pairs)
    effect = ratio / math.sqrt(6)  # for a standard deviation of 1
    assert np.mean(stats.ttest_1samp(studies - effect, 0, axis=1).pvalue < 0.05) == pytest.approx(
        0.8, abs=0.03
    )


def test_several_comparisons_need_a_larger_difference() -> None:
    """Of three, the strictest step of Holm is at a third of 0.05."""
    rng = np.random.default_rng(0)
    studies = rng.normal(size=(3000, 6))
    one = paired(studies[0], np.zeros(6), comparisons=3)
    effect = one.detectable / one.difference.sd
    found = stats.ttest_1samp(studies - effect, 0, axis=1).pvalue < 0.05 / 3
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1
    adjusted = holm({"a": math.nan, "b": 0.02})
    assert math.isnan(adjusted["a"]) and adjusted["b"] == 0.02
