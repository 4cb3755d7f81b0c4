"""How much of a prediction rests on measured rates (:mod:`.table`) and how much on formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

EXACT, NEAR, FORMULA = range(3)  # measured at this size; between measured sizes; not measured
Timed = Tuple[float, int]  # seconds, and which of these they are


def measured(*parts: Timed) -> Tuple[float, float]:
    """Seconds that are :data:`EXACT`, and that are :data:`NEAR`."""
    exact = near = 0.0
    for seconds, source in parts:
        if source == EXACT:
            exact += seconds
        elif source == NEAR:
            near += seconds
    return exact, near


@dataclass(frozen=True)
class Coverage:
    """Seconds of operators, launches not counted, by where they come from.

    Attributes:
        exact: operators that were measured at just their size.
        near: whose rate is interpolated between measured sizes.
        formula: of which nothing near was measured.
    """

    exact: float = 0.0
    near: float = 0.0
    formula: float = 0.0

    @property
    def total(self) -> float:
        return self.exact + self.near + self.formula

    @property
    def share(self) -> float:
        """Of the time, exact or near; 0 of no time."""
        return (self.exact + self.near) / self.total if self.total else 0.0

    @property
    def exact_share(self) -> float:
        return self.exact / self.total if self.total else 0.0

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            self.exact + other.exact, self.near + other.near, self.formula + other.formula
        )

    def __mul__(self, times: int) -> Coverage:
        return Coverage(self.exact * times, self.near * times, self.formula * times)

    def __str__(self) -> str:
        return (
            f"{self.share:.0%} of the arithmetic's time measured "
            f"({self.exact_share:.0%} at just its sizes)"
        )
