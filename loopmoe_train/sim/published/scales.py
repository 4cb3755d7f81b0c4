"""One factor per hardware and software version.

No software is known well enough for absolute times; one run of it on the hardware gives the
factor. Errors are reported of validation rows, with factors fitted on the calibration rows
alone. The file holds those fitted on all rows (``loopmoe bench sim --calibrate``), for rows of
other files.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from importlib import resources
from typing import Dict, List, Sequence, Tuple

from loopmoe_train.sim.published.rows import Row

FILE = "scales.json"
_PRIOR = 12.0  # rows that the wider group counts for, beside a version's own


def base_model(row: Row) -> str:
    """A row's model, without the layout that some names hold."""
    return re.sub(r"(_(tp\d|l\d+_)| \().*", "", row.model.lower())


def is_calibration(rows: Sequence[Row]) -> Dict[str, bool]:
    """Of every row (by id) whether it is for calibration: every second model of a family is."""
    models: Dict[str, List[str]] = {}
    for row in rows:
        found = models.setdefault(row.family, [])
        if base_model(row) not in found:
            found.append(base_model(row))
    return {row.id: sorted(models[row.family]).index(base_model(row)) % 2 == 1 for row in rows}


def fit(pairs: Sequence[Tuple[Row, float, float]]) -> Dict[str, float]:
    """Factors of (row, predicted, measured) by group, family and machine.

    A version's factor leans on that of its family, that of a family on the machine's.
    """
    logs: Dict[str, List[float]] = {}
    for row, predicted, measured in pairs:
        for level in levels(row):
            logs.setdefault(level, []).append(math.log(measured / predicted))
    found: Dict[str, float] = {}
    for row, _, _ in pairs:
        wider = 0.0
        for level in levels(row):
            own = logs[level]
            weight = len(own) / (len(own) + _PRIOR)
            wider = weight * statistics.median(own) + (1 - weight) * wider
            found[level] = math.exp(wider)
    return found


def levels(row: Row) -> List[str]:
    """Groups of a row, the widest first."""
    found = [row.machine, f"{row.family}/{row.machine}"]
    if row.version:
        found.append(row.group)
    return found


def factor(scales: Dict[str, float], row: Row) -> float:
    """The factor of the narrowest group that is known."""
    for level in reversed(levels(row)):
        if level in scales:
            return scales[level]
    return 1.0


def shipped() -> Dict[str, float]:
    """The factors that come with the package."""
    text = (resources.files("loopmoe_train.sim.published") / FILE).read_text(encoding="utf-8")
    found: Dict[str, float] = json.loads(text)
    return found
