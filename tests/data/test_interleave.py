"""Proportions of a mixture: never a whole sample off, at any point, found without history."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.data import interleave
from loopmoe_train.data.interleave import PERIOD_LIMIT, Interleave, parts_of

PARTS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def _members(mixture: Interleave, samples: int) -> List[int]:
    return [mixture.locate(sample)[0] for sample in range(samples)]


@settings(deadline=None, max_examples=30)
@given(PARTS)
def test_no_member_is_ever_a_sample_ahead_or_behind(parts: List[int]) -> None:
    mixture, period = Interleave(parts), sum(parts)
    given_out = np.zeros(len(parts), dtype=np.int64)
    bound = 1 - Fraction(1, max(2 * len(parts) - 2, 1))  # Tijdeman 1980; 1/2 for two members
    for n, member in enumerate(_members(mixture, 2 * period), start=1):
        given_out[member] += 1
        for count, part in zip(given_out, parts):
            assert abs(int(count) - Fraction(part * n, period)) <= bound
        assert mixture.counts(n).tolist() == given_out.tolist()


@settings(deadline=None, max_examples=30)
@given(PARTS, st.integers(0, 10**15))
def test_a_member_reads_its_own_samples_one_after_another(parts: List[int], first: int) -> None:
    mixture = Interleave(parts)
    own = mixture.counts(first)
    for sample in range(first, first + 2 * sum(parts)):
        member, number = mixture.locate(sample)
        assert number == own[member]
        own[member] += 1


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1.0], [1]),
        ([5.0, 5.0], [1, 1]),
        ([0.7, 0.3], [7, 3]),
        ([0.1, 0.2, 0.3], [1, 2, 3]),
        ([3.0, 5.0, 11.25], [12, 20, 45]),
        ([1e-3, 1e3 - 1e-3], [0, 1]),  # too small a share: the caller refuses it
        ([123456789.0, 987654321.0], [11111, 88889]),
    ],
)
def test_parts_are_the_decimals_as_written(weights: List[float], parts: List[int]) -> None:
    assert parts_of(weights) == parts


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_parts_are_as_near_as_the_period_allows(weights: List[float]) -> None:
    parts, total = parts_of(weights), sum(map(Fraction, map(repr, weights)))
    assert sum(parts) <= PERIOD_LIMIT
    for part, weight in zip(parts, weights):
        error = abs(Fraction(part, sum(parts)) - Fraction(repr(weight)) / total)
        assert error < Fraction(1, PERIOD_LIMIT)


def test_scale_of_the_weights_does_not_matter() -> None:
    assert parts_of([3.0, 1.0]) == parts_of([0.75, 0.25]) == parts_of([300.0, 100.0])


def test_the_longest_period_is_quick() -> None:
    parts = parts_of([1 / 3 + i / 97 for i in range(10)])
    assert sum(parts) == PERIOD_LIMIT
    mixture = Interleave(parts)
    assert Counter(_members(mixture, PERIOD_LIMIT)) == Counter(dict(enumerate(parts)))


def test_the_sequence_is_pinned() -> None:
    """A change here breaks resuming of every mixture that exists."""
    assert _members(Interleave([3, 1]), 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    assert "".join(map(str, _members(Interleave([5, 3, 2]), 10))) == "0102010210"


def test_without_the_deadlines_the_bound_would_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above can fail: with the members simply one after another it does."""

    def blocks(parts: List[int]) -> np.ndarray:
        return np.repeat(np.arange(len(parts)), parts)

    monkeypatch.setattr(interleave, "_assign", blocks)
    with pytest.raises(AssertionError):
        test_no_member_is_ever_a_sample_ahead_or_behind.hypothesis.inner_test([9, 9])
