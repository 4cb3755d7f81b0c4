"""One look for all pictures: fonts, colours that colour-blind readers tell apart, saving."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), without the yellow that white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"

_RC: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "figure.facecolor": "white",
    "savefig.dpi": 120,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.wspace": 0.04,
    # a run name with a dollar sign or an underscore is text, not mathematics
    "text.parse_math": False,
}


@contextmanager
def drawing(path: Path | str, width: float, height: float) -> Iterator[Any]:
    """A figure of this size in inches, saved to ``path`` (atomically) on leaving.

    Works without pyplot: no global figure list, no display, any thread.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        part = path.with_name(path.name + ".part")
        figure.savefig(part, format="png", metadata={"Software": None})
        os.replace(part, path)


def say(axes: Axes, sentence: str) -> None:
    """A sentence in the place of a curve that cannot be drawn."""
    axes.text(
        0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center",
        color=GREY, fontsize=10.5, linespacing=1.5,
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def sentence_picture(path: Path | str, title: str, sentence: str) -> None:
    """A picture that says why there is nothing to see."""
    with drawing(path, 9, 2.4) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        say(axes, sentence)


def shades(count: int) -> list[Any]:
    """Ordered colours, dark to light but never too pale (for iterations or many layers)."""
    import matplotlib

    colour_map = matplotlib.colormaps["viridis"]
    return [colour_map(0.88 * i / max(count - 1, 1)) for i in range(count)]


def layer_colours(layers: Sequence[int]) -> dict[int, Any]:
    """One colour per layer: distinct ones while they last, an ordered scale beyond."""
    colours = COLOURS if len(layers) <= len(COLOURS) else shades(len(layers))
    return dict(zip(layers, colours, strict=False))


def short_number(value: float, _position: int | None = None) -> str:
    """1500 -> 1.5k, 2e6 -> 2M, 3e9 -> 3B (usable as a tick formatter)."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def short_name(name: str, limit: int = 44) -> str:
    """Cut the middle out of a long name, as beginnings and ends tell runs apart."""
    if len(name) <= limit:
        return name
    half = (limit - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def count_axis(axes: Axes, label: str) -> None:
    """An x axis of steps or tokens."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    axes.set_xlabel(label)


def from_zero(axes: Axes, at_least: float = 0.0) -> None:
    """A y axis from 0 to a little above the highest point (of all lines drawn so far)."""
    import numpy as np

    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    highest = max((float(np.nanmax(v)) for v in values if np.isfinite(v).any()), default=0.0)
    top = max(1.08 * highest, at_least)
    axes.set_ylim(0, top if top > 0 else 1)


def marker_for(points: int) -> str:
    """Dots while there are few enough to see; one point alone would be invisible as a line."""
    return "o" if points <= 25 else ""
