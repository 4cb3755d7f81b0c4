"""Numbers as people read them; without numpy, which the pictures need."""

from __future__ import annotations

from typing import List, Sequence


def short(value: float) -> str:
    """Four digits and a unit: 3.182B; ``-`` for nothing."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:#.4g}{unit}"
    return f"{value:.4g}" if value else "-"


def aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a table whose columns stand under one another."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{word:<{w}}" for word, w in zip(row, widths)).rstrip() for row in rows]
