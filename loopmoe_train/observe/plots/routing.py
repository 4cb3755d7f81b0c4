"""routing.png: where the tokens go, how even that is over time, and how it turns in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopmoe_train.observe.metrics import Metrics
from loopmoe_train.observe.plots.style import (
    count_axis,
    drawing,
    from_zero,
    layer_colours,
    marker_for,
    say,
    sentence_picture,
)
from loopmoe_train.observe.routing import LayerRouting, RoutingProbe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

WIDTH = 12.0
OVERLAPS_PER_ROW = 4
MAX_OVERLAPS = 8  # matrices of more layers would make a picture nobody reads

_CURVES = (
    ("max_violation", "Max violation", "largest load / mean load - 1"),
    ("dead", "Dead experts", "experts without a token"),
    ("entropy", "Entropy of the load", "entropy / log E (1: even)"),
)


def plot_routing(metrics: Metrics, routing: Sequence[RoutingProbe], path: Path | str) -> None:
    """Draw the last probe of routing.jsonl and the router/... curves into the PNG ``path``."""
    layers = routing[-1].layers if routing else []
    if not layers and not metrics.routing:
        sentence_picture(
            path,
            "Expert routing",
            "No routing was recorded: no MoE layer in this model, or no probe yet.",
        )
        return
    looped = [entry for entry in layers if entry.overlap is not None and len(entry.iterations) > 1]
    shown = looped[:MAX_OVERLAPS]
    rows = sum(len(entry.iterations) for entry in layers)
    overlap_rows = -(-len(shown) // OVERLAPS_PER_ROW)
    heights = [
        min(max(0.25 * rows, 0.8), 12.0) + 1.3,
        3.3,
        2.9 * overlap_rows if shown else 0.9,
    ]
    with drawing(path, WIDTH, sum(heights)) as figure:
        heat, curves, overlaps = figure.subfigures(3, 1, height_ratios=heights)
        _draw_load(heat, layers, routing[-1].step if routing else 0)
        _draw_curves(curves, metrics)
        _draw_overlaps(overlaps, shown, len(looped) - len(shown))


def _draw_load(figure: SubFigure, layers: Sequence[LayerRouting], step: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    if not layers:
        axes.set_title("Expert load")
        say(axes, "No probe in routing.jsonl yet.")
        return
    experts = max(entry.load.shape[1] for entry in layers)
    ratio = np.full((sum(len(entry.iterations) for entry in layers), experts), np.nan)
    labels: list[str] = []
    looped = any(len(entry.iterations) > 1 for entry in layers)
    for entry in layers:
        start = len(labels)
        share = entry.load * entry.load.shape[1]  # over the mean load 1/E
        ratio[start : start + len(share), : share.shape[1]] = share
        if start and looped:
            axes.axhline(start - 0.5, color="black", linewidth=1.2)
        if len(entry.iterations) == 1:
            labels.append(f"L{entry.layer}")
        else:
            labels += [f"L{entry.layer} it{k}" for k in entry.iterations]
    dead = ratio == 0
    _draw_heat(figure, axes, ratio, dead)
    every = -(-len(labels) // 48)  # more labels than that would touch
    axes.set_yticks(range(0, len(labels), every), labels[::every])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    axes.set_xlabel("expert")
    axes.grid(False)
    # 0 is a shade of its own: an expert that learns nothing is a fault, not a low load
    note = ", black: no token" if dead.any() else ""
    axes.set_title(
        f"Expert load on held-out text at step {step}: rows are layer and iteration "
        f"(colour: load / mean{note})"
    )


def _draw_heat(figure: SubFigure, axes: Axes, ratio: np.ndarray, dead: np.ndarray) -> None:
    import matplotlib
    from matplotlib.colors import TwoSlopeNorm

    highest = float(np.nanmax(ratio)) if np.isfinite(ratio).any() else 1.0
    top = min(max(highest, 2.0), 4.0)
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(under="black", bad="#dddddd")
    image = axes.imshow(
        np.ma.masked_invalid(np.where(dead, -1.0, ratio)),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=top),
    )
    bar = figure.colorbar(
        image,
        ax=axes,
        extend="max" if highest > top else "neither",
        pad=0.01,
        # as wide beside many rows as beside few, and not as tall as a tall map
        aspect=min(max(8, len(ratio)), 20),
        shrink=min(1.0, 20 / len(ratio)),
        anchor=(0.0, 1.0),
    )
    bar.set_label("load / mean")
    bar.set_ticks([0, 0.5, 1, (1 + top) / 2, top])
    bar.ax.set_yticklabels(["0", "0.5", "1", f"{(1 + top) / 2:.2g}", f"{top:.2g}"])


def _draw_curves(figure: SubFigure, metrics: Metrics) -> None:
    panels = figure.subplots(1, 3)
    layers = sorted({layer for layer, _ in metrics.routing})
    colours = layer_colours(layers)
    loops = any(iteration > 1 for _, iteration in metrics.routing)
    for axes, (stat, title, unit) in zip(panels, _CURVES, strict=True):
        axes.set_title(f"{title}, training text")
        for (layer, iteration), curves in metrics.routing.items():
            series = curves.get(stat)
            if series is None or not np.isfinite(series.value).any():
                continue
            last = max(k for other, k in metrics.routing if other == layer)
            axes.plot(
                series.step,
                series.value,
                color=colours[layer],
                # iterations of a layer go from pale to full
                alpha=1.0 if last == 1 else 0.35 + 0.65 * (iteration - 1) / (last - 1),
                linewidth=1.4,
                marker=marker_for(len(series.step)),
                ms=3.5,
            )
        if axes.lines:
            count_axis(axes, "step")
            axes.set_ylabel(unit)
            _limits(axes, stat)
        else:
            say(axes, "Not recorded yet.")
    if layers:
        _layer_legend(figure, colours, loops)


def _limits(axes: Axes, stat: str) -> None:
    if stat == "entropy":
        low, high = axes.get_ylim()
        # near-even loads differ in the third digit: keep the axis from magnifying noise
        axes.set_ylim(max(min(low, 0.9), -0.02), max(high, 1.005))
        return
    from matplotlib.ticker import MaxNLocator

    from_zero(axes, at_least=1.0)
    if stat == "dead":
        axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # a line at 0 stays off the axis
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _layer_legend(figure: SubFigure, colours: dict[int, Any], loops: bool) -> None:
    from matplotlib.lines import Line2D

    layers = list(colours)
    if len(layers) > 8:  # an ordered scale: eight samples of it are enough
        layers = [layers[i] for i in np.linspace(0, len(layers) - 1, 8).astype(int)]
    handles = [Line2D([], [], color=colours[n], linewidth=2.2, label=f"L{n}") for n in layers]
    if loops:
        handles.append(Line2D([], [], linestyle="", label="pale to full: iteration 1 to K"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _draw_overlaps(figure: SubFigure, layers: Sequence[LayerRouting], left_out: int) -> None:
    if not layers:
        axes = figure.subplots()
        say(axes, "No looped MoE layer with measured overlap: each token chooses experts once.")
        return
    title = "Overlap of the expert sets that two iterations choose (mean Jaccard, 1: the same)"
    if left_out:
        title += f"; {left_out} more layers not shown"
    figure.suptitle(title, fontsize=12.5, fontweight="bold", x=0.01, ha="left")
    rows = -(-len(layers) // OVERLAPS_PER_ROW)
    panels = figure.subplots(rows, OVERLAPS_PER_ROW, squeeze=False).ravel()
    image: Any = None
    for axes, entry in zip(panels, layers, strict=False):
        image = _draw_overlap(axes, entry)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    # beside the last matrix, not at the far edge of empty places
    used = list(panels[: len(layers)])
    bar = figure.colorbar(image, ax=used if rows > 1 else used[-1], shrink=0.9, aspect=14)
    bar.set_label("Jaccard overlap")


def _draw_overlap(axes: Axes, entry: LayerRouting) -> Any:
    assert entry.overlap is not None
    count = len(entry.iterations)
    image = axes.imshow(entry.overlap, cmap="cividis", vmin=0, vmax=1)
    axes.set_title(f"L{entry.layer}", fontsize=10.5)
    axes.set_xticks(range(count), [str(k) for k in entry.iterations])
    axes.set_yticks(range(count), [str(k) for k in entry.iterations])
    axes.set_xlabel("iteration")
    axes.set_ylabel("iteration")
    axes.grid(False)
    for row in range(count):
        for column in range(count):
            value = entry.overlap[row, column]
            if np.isfinite(value):
                axes.text(
                    column, row, f"{value:.2f}" if count <= 5 else f"{value:.1f}".lstrip("0"),
                    ha="center", va="center", fontsize=8.5 if count <= 6 else 7.5,
                    color="black" if value > 0.55 else "white",
                )  # fmt: skip
    return image
