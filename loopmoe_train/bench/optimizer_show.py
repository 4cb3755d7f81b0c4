"""What ``loopmoe bench optimizer`` prints."""

from __future__ import annotations

import statistics
from typing import Any, Dict

from rich.console import Console
from rich.table import Table

OURS = "offload_update=torch"
OURS_DEEPSPEED = "offload_update=deepspeed"


def show(found: Dict[str, Any]) -> None:
    """Print elements per second of every implementation by size, and a headline."""
    software = ", ".join(f"{name} {version}" for name, version in found["software"].items())
    print(
        f"\n{found['hardware']}, {found['threads']} threads, {software}; fp32 AdamW, million "
        f"elements/s, medians (lowest to highest) of {found['rounds']} rounds"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("tensors x elements")
    for row in found["rows"]:
        table.add_column(f"{row['tensors']} x {row['elements']:,}", justify="right")
    for name in found["rows"][0]["elements_per_s"]:
        speeds = [row["elements_per_s"][name] for row in found["rows"]]
        table.add_row(name, *map(_cell, speeds))
    Console(width=140).print(table)
    print(f"headline: {' '.join(f'{name}={value:.4g}' for name, value in headline(found).items())}")


def _cell(speeds: list[float]) -> str:
    middle, low, high = statistics.median(speeds), min(speeds), max(speeds)
    return f"{middle / 1e6:.0f} ({low / 1e6:.0f} to {high / 1e6:.0f})"


def headline(found: Dict[str, Any]) -> Dict[str, float]:
    """Million elements/s of the largest size, and how often faster DeepSpeed's is there: medians
    of the ratios of each round."""
    speeds = found["rows"][-1]["elements_per_s"]
    best = {
        "torch_fused": "torch fused",
        "torch_foreach": "torch foreach",
        "core": "torch, one by one (core's on a host)",
    }
    ours = speeds.get(OURS_DEEPSPEED)
    told = {"offload_torch": statistics.median(speeds[OURS]) / 1e6}
    if ours is not None:
        told["offload_deepspeed"] = statistics.median(ours) / 1e6
        for name, side in best.items():
            ratios = [a / b for a, b in zip(ours, speeds[side])]
            told[f"over_{name}"] = statistics.median(ratios)
    return told
