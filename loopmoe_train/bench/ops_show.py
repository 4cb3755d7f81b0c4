"""What ``loopmoe bench ops`` prints."""

from __future__ import annotations

import statistics
from typing import Dict, List

from loopmoe_train.sim.table import LAYOUTS, Size, Table, work

_SIZES = {
    "matmul": "rows x columns x inner",
    "grouped": "groups x rows x columns x inner",
    "attention": "sequence x heads x qk x v",
    "vector": "bytes moved",
}


def show(table: Table) -> None:
    """Print every operator with its time, its rate and its share of the best, and a headline."""
    head = table.header
    software = ", ".join(f"{name} {version}" for name, version in head.software.items())
    print(
        f"\n{head.hardware}, {software}, {head.precision}; {head.processes} at once, "
        f"{head.threads} threads each; an operator that does nothing: {head.launch_us:.1f} us"
    )
    for kind, layouts in LAYOUTS.items():
        names = [f"{kind}/{layout}" for layout in layouts if f"{kind}/{layout}" in table.points]
        if kind == "vector":
            for name in names:
                _list(table, kind, [name])
        elif names:
            _list(table, kind, names)
    print(f"headline: {' '.join(f'{name}={value:.4g}' for name, value in headline(table).items())}")


def _list(table: Table, kind: str, names: List[str]) -> None:
    unit, scale = ("GB/s", 1e9) if kind == "vector" else ("TFLOP/s", 1e12)
    spread = statistics.median(
        point.spread for name in names for point in table.points[name].values()
    )
    layouts = [name.partition("/")[2] for name in names]
    title = " ".join([kind, *layouts]) if kind == "vector" else kind
    print(f"\n{title} in {unit}, with the share of the best; spread {spread:.0%}")
    print(f"{_SIZES[kind]:32}" + "".join(f"{layout:>30}" for layout in layouts))
    sizes: List[Size] = sorted({size for name in names for size in table.points[name]})
    for size in sizes:
        cells = ""
        for name, layout in zip(names, layouts):
            point = table.points[name].get(size)
            if point is None:
                cells += f"{'':30}"
                continue
            rate = work(kind, layout, size) / point.seconds
            share = rate / (table.best(kind, layout) or rate)
            cells += f"{_time(point.seconds):>12}{rate / scale:>11.3g}{share:>7.0%}"
        print(f"{' x '.join(map(str, size)):32}{cells}")


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


def headline(table: Table) -> Dict[str, float]:
    """Best products and attention; copying at the largest size; 0 for what was not measured."""
    return {
        "matmul_tflops": (table.best("matmul") or 0.0) / 1e12,
        "attention_tflops": (table.best("attention") or 0.0) / 1e12,
        "copy_gbytes_per_s": (table.largest("vector/copy") or 0.0) / 1e9,
        "points": float(len(table)),
    }
