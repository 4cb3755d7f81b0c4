"""Means with intervals, paired differences, and what the study could have seen at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Sequence

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8


@dataclass
class Mean:
    """Of a sample that is taken as normal: ``low``..``high`` is Student's 95 % interval.

    One value has no interval: ``sd``, ``low`` and ``high`` are NaN.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass
class Paired:
    """Differences of pairs against zero.

    Attributes:
        difference: their mean with its interval.
        p: two-sided, of the paired t-test; NaN for one pair.
        below: pairs in which the first was lower.
        detectable: a true difference that such a study finds 8 times in 10, also if it is the
            first of its comparisons that Holm looks at.
    """

    difference: Mean
    p: float
    below: int
    detectable: float


def mean(values: Sequence[float]) -> Mean:
    """Mean and interval of at least one value."""
    sample = np.asarray(values, dtype=np.float64)
    n, middle = len(sample), float(sample.mean())
    if n < 2:
        return Mean(n, middle, math.nan, math.nan, math.nan)
    sd = float(sample.std(ddof=1))
    half = _quantile((1 + CONFIDENCE) / 2, n - 1) * sd / math.sqrt(n)
    return Mean(n, middle, sd, middle - half, middle + half)


def paired(ours: Sequence[float], theirs: Sequence[float], comparisons: int = 1) -> Paired:
    """``ours - theirs``, pair by pair (the same length, at least one).

    Args:
        comparisons: how many are made together (for ``detectable``; ``p`` is not adjusted).
    """
    from scipy import stats

    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    result, n = mean(differences.tolist()), len(differences)
    p = detectable = math.nan
    if n > 1:
        error = result.sd / math.sqrt(n)
        # All pairs differ by the same: certain, or certainly nothing.
        p = float(stats.ttest_1samp(differences, 0).pvalue if error else result.mean == 0)
        detectable = _noncentrality(n - 1, comparisons) * error
    return Paired(result, p, int((differences < 0).sum()), detectable)


def holm(p: Dict[str, float]) -> Dict[str, float]:
    """p-values of several comparisons, adjusted (Holm 1979): below 0.05 for any of them that is
    true by chance in 5 % of studies at most. NaN stays and counts for nothing."""
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, highest = dict(p), 0.0
    for place, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - place) * value))
        adjusted[name] = highest
    return adjusted


def _noncentrality(degrees: int, comparisons: int) -> float:
    """Standard errors that a true difference must have to be found with ``POWER``."""
    from scipy import optimize, stats

    critical = _quantile(1 - (1 - CONFIDENCE) / 2 / comparisons, degrees)
    return float(
        optimize.brentq(lambda far: stats.nct.sf(critical, degrees, far) - POWER, 0, 10 * critical)
    )


def _quantile(level: float, degrees: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(level, degrees))
