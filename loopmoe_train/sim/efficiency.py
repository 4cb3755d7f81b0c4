"""How long an operator runs: by the table of measured rates where it reaches, else by formula.

The formula is the slower of an operator's arithmetic and its memory traffic. A matrix product is
cut into tiles that the cores take in waves; the last wave and the edges are partly idle, and a
short inner dimension does not fill the pipeline of a tile. Launches are counted elsewhere.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Optional, Tuple

from loopmoe_train.sim.coverage import EXACT, FORMULA, NEAR, Timed
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.table import Size, Table

# A library picks the tile; smaller ones reuse less of what they load.
_TILES: Tuple[Tuple[int, int, float], ...] = (
    (256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.92), (128, 64, 0.8), (64, 64, 0.65),
)  # fmt: skip
# Arithmetic of an operator that is no product, in fp32 operations for a byte that it moves: a
# bf16 element takes an addition; a square, a sum and two products; an exponential and a division.
_INTENSITY = {
    "copy": 0.25, "norm": 1.0, "norm_backward": 1.3, "activation": 2.0, "activation_backward": 1.6,
}  # fmt: skip
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
    machine: Machine, rows: float, columns: float, inner: float, precision: str, groups: int = 1,
    layout: str = "forward",
) -> Timed:  # fmt: skip
    """Of ``groups`` products [rows, inner] x [inner, columns], without the launch.

    Args:
        layout: ``forward``, ``dgrad`` or ``wgrad``: how the operands lie in memory.
    """
    if rows <= 0 or columns <= 0 or inner <= 0:
        return 0.0, FORMULA
    m, n, k = max(1, round(rows)), max(1, round(columns)), max(1, round(inner))
    flops = 2 * groups * rows * columns * inner
    if machine.table is not None and machine.table.header.precision == precision:
        kind, size = ("grouped", (groups, m, n, k)) if groups > 1 else ("matmul", (m, n, k))
        found = _looked_up(machine.table, f"{kind}/{layout}", size, flops)
        if found is not None:
            return found
    share = matmul_share(m, n, k, machine.cores, groups)
    rate = machine.matmul[precision] * (machine.grouped if groups > 1 else 1.0)
    element = 4 if precision == "fp32" else 2
    traffic = groups * element * (rows * inner + inner * columns + rows * columns)
    return max(flops / (rate * share), traffic / machine.bandwidth), FORMULA


def attention(
    machine: Machine, size: Optional[Size], flops: float, precision: str, backward: bool = False
) -> Timed:
    """Of fused attention, without the launch.

    Args:
        size: sequence, heads x batch, qk dim, v dim; None: not causal over the whole sequence.
        flops: of this pass.
    """
    if size and machine.table is not None and machine.table.header.precision == precision:
        name = "attention/backward" if backward else "attention/forward"
        found = _looked_up(machine.table, name, size, flops)
        if found is not None:
            return found
    return flops / (machine.attention_backward if backward else machine.attention), FORMULA


def vector(machine: Machine, traffic: float, layout: str = "copy", kernels: int = 1) -> Timed:
    """Of ``kernels`` operators that together move ``traffic`` bytes."""
    if machine.table is not None and traffic > 0:
        size = (max(1, round(traffic / max(1, kernels))),)
        found = _looked_up(machine.table, f"vector/{layout}", size, traffic)
        if found is not None:
            return found
    return max(traffic / machine.bandwidth, traffic * _INTENSITY[layout] / machine.vector), FORMULA


def _looked_up(table: Table, name: str, size: Size, work: float) -> Optional[Timed]:
    found = table.rate(name, size)
    return None if found is None else (work / found[0], EXACT if found[1] else NEAR)
