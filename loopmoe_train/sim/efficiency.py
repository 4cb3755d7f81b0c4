"""How long an operator runs: the slower of its arithmetic and its memory traffic, plus a launch.

A matrix product is cut into tiles that the cores take in waves; the last wave and the edges are
partly idle, and a short inner dimension does not fill the pipeline of a tile.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Tuple

from loopmoe_train.sim.machine import Machine

# A library picks the tile; smaller ones reuse less of what they load.
_TILES: Tuple[Tuple[int, int, float], ...] = (
    (256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.92), (128, 64, 0.8), (64, 64, 0.65),
)  # fmt: skip
_FILL = 256  # inner dimension at which half the rate of a long one is reached


@lru_cache(maxsize=65536)
def matmul_share(rows: int, columns: int, inner: int, cores: int, groups: int = 1) -> float:
    """Share of a large product's rate that [rows, inner] x [inner, columns] reaches.

    Args:
        groups: so many of these at once (experts).
    """
    best = 0.0
    for height, width, quality in _TILES:
        down, across = math.ceil(rows / height), math.ceil(columns / width)
        tiles = down * across * groups
        waves = math.ceil(tiles / cores)
        used = rows * columns * groups / (waves * cores * height * width)
        best = max(best, used * quality)
    return best * inner / (inner + _FILL)


def matmul(
    machine: Machine, rows: float, columns: float, inner: float, precision: str, groups: int = 1
) -> float:
    """Seconds of ``groups`` products [rows, inner] x [inner, columns], without the launch."""
    if rows <= 0 or columns <= 0 or inner <= 0:
        return 0.0
    share = matmul_share(
        max(1, round(rows)), max(1, round(columns)), max(1, round(inner)), machine.cores, groups
    )
    rate = machine.matmul[precision] * (machine.grouped if groups > 1 else 1.0)
    size = 4 if precision == "fp32" else 2
    traffic = groups * size * (rows * inner + inner * columns + rows * columns)
    return max(2 * groups * rows * columns * inner / (rate * share), traffic / machine.bandwidth)


def vector(machine: Machine, traffic: float) -> float:
    """Seconds of an operator that only moves ``traffic`` bytes."""
    return traffic / machine.bandwidth
