"""kernels.png: how near each op comes to copying, by size, beside what else computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence

from loopmoe_train.observe.plots.style import COLOURS, GREY, drawing

_MARKS = "osD^vP*X"


def plot_kernels(
    rows: Sequence[Dict[str, Any]], ops: Sequence[str], path: Path | str, title: str
) -> None:
    """One panel per op: share of the copy bandwidth against the size, a line per side.

    Args:
        rows: of ``loopmoe bench kernels``.
        ops: which to draw, in this order.
        title: on what it was measured.
    """
    shown = [op for op in ops if any(row["op"] == op for row in rows)]
    columns = min(5, len(shown))
    lines = -(-len(shown) // columns)
    names = list(dict.fromkeys(name for row in rows for name in row["sides"]))
    with drawing(path, 3.1 * columns + 0.6, 3.0 * lines + 0.9) as figure:
        figure.suptitle(f"share of the bandwidth of a copy: {title}", x=0.01, ha="left")
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
        for axes, op in zip(panels, shown):
            here = [row for row in rows if row["op"] == op]
            _panel(axes, op, here, names)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _panel(axes: Any, op: str, rows: List[Dict[str, Any]], names: List[str]) -> None:
    axes.set_title(op)
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.axhline(0.8, color=GREY, linewidth=1, linestyle="--")
    ticks = [f"{row['tokens']}\n{row['hidden']}" for row in rows]
    for number, name in enumerate(names):
        places = [place for place, row in enumerate(rows) if name in row["sides"]]
        shares = [rows[place]["sides"][name]["copy_share"] for place in places]
        axes.plot(
            places, shares, linestyle="-" if len(places) == len(rows) else "none",
            marker=_MARKS[number % len(_MARKS)], markersize=5, label=name,
            color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), ticks, fontsize=6.5)
    axes.set_ylim(0, 1.15)
    axes.margins(x=0.08)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
