"""How near predictions come: errors, ranking of layouts, memory."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Dict, Hashable, List, Sequence, Tuple

from loopmoe_train.sim.published.rows import Row
from loopmoe_train.sim.published.scales import base_model

LEAST = 5  # layouts of one model, size and batch whose order is looked at


@dataclass(frozen=True)
class Errors:
    """Of one group.

    Attributes:
        median, p90: of the absolute error, relative to the measurement.
        bias: median of the signed error.
    """

    rows: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True)
class Ranking:
    """Of the order of layouts.

    Attributes:
        groups: in which layouts were compared.
        tau: median of Kendall's tau-b.
        regret: median and most of what the predicted best costs over the measured best.
        top3: groups whose measured best is among the three predicted best.
    """

    groups: int
    tau: float
    regret: float
    worst_regret: float
    top3: float


def errors(pairs: Sequence[Tuple[float, float]]) -> Errors:
    """Of (predicted, measured) pairs; not a number of none."""
    if not pairs:
        return Errors(0, math.nan, math.nan, math.nan)
    signed = [predicted / measured - 1 for predicted, measured in pairs]
    size = sorted(abs(one) for one in signed)
    return Errors(
        len(size), statistics.median(size), quantile(size, 0.9), statistics.median(signed)
    )


def quantile(values: Sequence[float], share: float) -> float:
    """With interpolation."""
    import numpy

    return float(numpy.quantile(values, share))


def comparable(row: Row) -> Hashable:
    """Rows with equal keys differ in their layout alone."""
    f = row.fields
    return (row.family, base_model(row), row.version, f["devices"], f["gbs"], f["seq"],
            f["precision"])  # fmt: skip


def ranking(found: Sequence[Tuple[Row, float, float]]) -> Ranking:
    """Of (row, predicted seconds, measured seconds)."""
    groups: Dict[Hashable, List[Tuple[float, float]]] = {}
    for row, predicted, measured in found:
        groups.setdefault(comparable(row), []).append((predicted, measured))
    taus, regrets, hits = [], [], []
    for pairs in groups.values():
        if len(pairs) < LEAST:
            continue
        taus.append(tau_b(pairs))
        best = min(measured for _, measured in pairs)
        order = sorted(pairs)
        # a method that cannot tell some apart may take any of them
        first = [measured for predicted, measured in order if predicted <= order[0][0] * 1.000001]
        regrets.append(statistics.mean(first) / best - 1)
        third = order[2][0]
        hits.append(
            any(m == best for p, m in order[:3])
            and sum(p <= third * 1.000001 for p, _ in order) <= LEAST
        )
    if not taus:
        return Ranking(0, float("nan"), float("nan"), float("nan"), float("nan"))
    return Ranking(
        len(taus), statistics.median(taus), statistics.median(regrets), max(regrets),
        sum(hits) / len(hits),
    )  # fmt: skip


def tau_b(pairs: Sequence[Tuple[float, float]]) -> float:
    """Kendall's tau-b of two orders; 0 if one of them is all ties."""
    from scipy.stats import kendalltau

    found = float(kendalltau(*zip(*pairs)).statistic)
    return 0.0 if math.isnan(found) else found
