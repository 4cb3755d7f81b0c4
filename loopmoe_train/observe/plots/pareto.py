"""layouts.png: what layouts need of memory and of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loopmoe_train.observe.plots.style import COLOURS, GREY, drawing

Point = tuple[float, float, str]  # GiB, seconds, name


def plot_pareto(
    front: Sequence[Point], best: Sequence[Point], limit: float, path: Path | str, title: str
) -> None:
    """Draw the fastest layouts and the line of those that none beats in both.

    Args:
        front: not beaten in memory and time together, by memory.
        best: the fastest, in order.
        limit: GiB that may be used.
        title: of what the layouts are.
    """
    with drawing(path, 10, 5.4) as figure:
        axes = figure.subplots()
        axes.set_title(f"{title}: step time against memory of the fullest device")
        axes.plot(
            [gib for gib, _, _ in front], [seconds for _, seconds, _ in front], "o-",
            color=COLOURS[0], label="not beaten in both",
        )  # fmt: skip
        axes.plot(
            [gib for gib, _, _ in best], [seconds for _, seconds, _ in best], "o",
            color=COLOURS[1], fillstyle="none", markersize=9, label=f"the {len(best)} fastest",
        )  # fmt: skip
        axes.axvline(limit, color=GREY, linestyle="--", linewidth=1, label="may be used")
        middle = (min(gib for gib, *_ in [*front, *best]) + limit) / 2
        for gib, seconds, name in [*front[:-1][-4:], *best[:1]]:
            side, shift = ("left", 8) if gib < middle else ("right", -8)  # towards the middle
            axes.annotate(
                name, (gib, seconds), xytext=(shift, 8), textcoords="offset points", ha=side,
                fontsize=8.5, color=GREY,
            )  # fmt: skip
        axes.set_xlabel("GiB")
        axes.set_ylabel("seconds a step")
        axes.margins(x=0.25, y=0.12)
        axes.legend(loc="upper right")
