"""Numbers as people read them; without numpy, which the pictures need."""

from __future__ import annotations


def short(value: float) -> str:
    """Four digits and a unit: 3.182B; ``-`` for nothing."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:#.4g}{unit}"
    return f"{value:.4g}" if value else "-"
