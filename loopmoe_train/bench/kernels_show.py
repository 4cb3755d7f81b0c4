"""What ``loopmoe bench kernels`` prints."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List

from rich.console import Console
from rich.table import Table

OURS = "ours"
# Bound by memory: those whose share of copying says how good they are.
STREAMS = (
    "permute", "permute_backward", "combine", "combine_backward", "reorder", "reorder_backward",
    "swiglu", "swiglu_backward", "adaln", "adaln_backward",
)  # fmt: skip


def show(found: Dict[str, Any]) -> None:
    """Print every op with its time, its share of copying and the others' times, and a headline."""
    software = ", ".join(f"{name} {version}" for name, version in found["software"].items())
    copies = statistics.median(row["copy_gbytes_per_s"] for row in found["rows"])
    print(
        f"\n{found['hardware']}, {software}, {found['precision']}; medians of {found['rounds']} "
        f"rounds; copying {found['copy']['bytes'] / 2**20:.0f} MiB in all: {copies:.0f} GB/s"
    )
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["sides"]))
    table = Table(box=None, pad_edge=False)
    for column in ("op", "tokens", "hidden", "MB", "GB/s", "of copying", "spread", *names):
        table.add_column(column, justify="left" if column == "op" else "right")
    for row in found["rows"]:
        ours = row["sides"][OURS]
        spread = (ours["high_ms"] - ours["low_ms"]) / ours["ms"]
        cells = [_time(row["sides"].get(name)) for name in names]
        table.add_row(
            row["op"], str(row["tokens"]), str(row["hidden"]), f"{row['bytes'] / 1e6:.0f}",
            f"{ours['gbytes_per_s']:.0f}", f"{ours['copy_share']:.0%}", f"{spread:.0%}", *cells,
        )  # fmt: skip
    Console(width=120 + 12 * max(0, len(names) - 5)).print(table)
    print(f"headline: {' '.join(f'{name}={value:.3g}' for name, value in headline(found).items())}")


def _time(side: Dict[str, float] | None) -> str:
    return "" if side is None else f"{side['ms']:.3f} ms"


def headline(found: Dict[str, Any]) -> Dict[str, float]:
    """Of each op that memory bounds the median share of copying, and the lowest of all; the time
    of the fastest other over ours, at the median and at the worst of all ops and sizes."""
    shares: Dict[str, List[float]] = {}
    ratios: List[float] = []
    for row in found["rows"]:
        ours = row["sides"][OURS]
        if row["op"] in STREAMS:
            shares.setdefault(row["op"], []).append(ours["copy_share"])
        others = [side["ms"] for name, side in row["sides"].items() if name != OURS]
        if others:
            ratios.append(min(others) / ours["ms"])
    return {
        **{op: statistics.median(values) for op, values in shares.items()},
        "lowest_share": min(min(values) for values in shares.values()),
        "fastest_peer": statistics.median(ratios),
        "fastest_peer_worst": min(ratios),
        "copy_gbytes_per_s": statistics.median(row["copy_gbytes_per_s"] for row in found["rows"]),
    }
