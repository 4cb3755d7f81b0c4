"""Predict every row of a file, and say how near that is, beside the baselines."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.memory import MARGIN
from loopmoe_train.sim.published import scales, score
from loopmoe_train.sim.published.baselines import BASELINES
from loopmoe_train.sim.published.predict import Case, case_of, raw
from loopmoe_train.sim.published.rows import Row, Skipped
from loopmoe_train.sim.workload import Workload

SIMULATOR = "simulator"


@dataclass(frozen=True)
class Prediction:
    """Of one row.

    Attributes:
        case: None if the row is skipped.
        guesses: seconds (or bytes) by the simulator and the baselines, before any factor.
        skipped: why there is none.
    """

    row: Row
    case: Optional[Case]
    guesses: Dict[str, float]
    skipped: str = ""

    @property
    def is_time(self) -> bool:
        return self.case is not None and self.case.kind == "time"


def predict(rows: Sequence[Row], progress: Callable[[int], None] = lambda _: None) -> List[
    Prediction
]:  # fmt: skip
    """Of every row, in order."""
    found = []
    for number, row in enumerate(rows):
        progress(number)
        try:
            case = case_of(row)
            guesses = {SIMULATOR: raw(case)}
            if case.kind == "time":
                guesses |= _baselines(case.workload, case.machine)
            found.append(Prediction(row, case, guesses))
        except Skipped as why:
            found.append(Prediction(row, None, {}, str(why)))
    return found


def _baselines(work: Workload, machine: Machine) -> Dict[str, float]:
    return {name: guess(work, machine) for name, guess in BASELINES.items()}


def calibrate(
    found: Sequence[Prediction], method: str = SIMULATOR, everything: bool = False
) -> Dict[str, float]:
    """Factors from the calibration rows alone, or from ``everything``."""
    chosen = scales.is_calibration([one.row for one in found])
    return scales.fit(
        [
            (one.row, one.guesses[method], one.case.measured)
            for one in found
            if one.case is not None and one.is_time and (everything or chosen[one.row.id])
        ]
    )


def in_unit(one: Prediction, factors: Dict[str, float]) -> float:
    """The simulator's prediction in the row's unit.

    Raises:
        ValueError: the row was skipped.
    """
    if one.case is None:
        raise ValueError(f"{one.row.id}: {one.skipped}")
    value = one.guesses[SIMULATOR]
    if one.is_time:
        value *= scales.factor(factors, one.row)
    return one.case.to_unit(value)


def report(found: Sequence[Prediction]) -> Dict[str, Any]:
    """Errors of the validation rows by group, ranking, memory; all as plain numbers."""
    chosen = scales.is_calibration([one.row for one in found])
    times = [one for one in found if one.is_time and not chosen[one.row.id]]
    groups: Dict[str, Any] = {}
    for one in times:
        groups.setdefault(f"{one.row.family}/{one.row.machine}", []).append(one)
    methods = (SIMULATOR, *BASELINES)
    fitted = {method: calibrate(found, method) for method in methods}

    def pairs(some: Sequence[Prediction], method: str, scaled: bool) -> List[Tuple[float, float]]:
        return [
            (one.guesses[method] * (scales.factor(fitted[method], one.row) if scaled else 1.0),
             one.case.measured)
            for one in some if one.case is not None
        ]  # fmt: skip

    def ranked(method: str) -> Dict[str, Any]:
        # Order needs no factor: within a group it is the same for all.
        rows = [one for one in found if one.is_time]
        return asdict(
            score.ranking(
                [(one.row, one.guesses[method], one.case.measured) for one in rows if one.case]
            )
        )

    table = {
        name: {
            "raw": asdict(score.errors(pairs(some, SIMULATOR, False))),
            **{method: asdict(score.errors(pairs(some, method, True))) for method in methods},
        }
        for name, some in sorted(groups.items())
    }
    memory = [one for one in found if one.case is not None and one.case.kind == "memory"]
    return {
        "rows": len(found),
        "predicted": sum(one.case is not None for one in found),
        "skipped": _reasons(found),
        "groups": table,
        "all": {m: asdict(score.errors(pairs(times, m, True))) for m in methods}
        | {"raw": asdict(score.errors(pairs(times, SIMULATOR, False)))},
        "ranking": {method: ranked(method) for method in methods},
        "memory": _memory(memory),
    }


def _reasons(found: Sequence[Prediction]) -> Dict[str, int]:
    reasons: Dict[str, int] = {}
    for one in found:
        if one.case is None:
            reasons[one.skipped] = reasons.get(one.skipped, 0) + 1
    return dict(sorted(reasons.items(), key=lambda item: -item[1]))


def _memory(found: Sequence[Prediction]) -> Dict[str, Any]:
    """Errors of peaks, and what they mean: all these runs did fit."""
    pairs = [(one.guesses[SIMULATOR], one.case.measured, one.case) for one in found if one.case]
    peaks = [pair for pair in pairs if pair[2].row.metric.startswith("peak_mem")
             and "saving" not in pair[2].row.metric]  # fmt: skip
    under = sorted(max(0.0, measured / predicted - 1) for predicted, measured, _ in peaks)
    families: Dict[str, List[Tuple[float, float]]] = {}
    for predicted, measured, case in pairs:
        families.setdefault(f"{case.row.family}/{case.row.machine}", []).append(
            (predicted, measured)
        )
    fits = sum(predicted <= case.machine.memory for predicted, _, case in peaks)
    return {
        "groups": {name: asdict(score.errors(some)) for name, some in sorted(families.items())},
        "all": asdict(score.errors([(p, m) for p, m, _ in pairs])),
        "margin_p95": score.quantile(under, 0.95) if under else math.nan,
        "confusion": {
            "fits, predicted to fit": fits,
            "fits, predicted not to": len(peaks) - fits,
            "underestimated by more than 8 %": sum(one > MARGIN for one in under),
        },
    }
