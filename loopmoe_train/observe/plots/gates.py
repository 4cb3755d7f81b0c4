"""gates.png: what the loop does differently in each iteration (alpha, gamma, beta)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopmoe_train.observe.metrics import Metrics, Series
from loopmoe_train.observe.plots.style import (
    GREY,
    count_axis,
    drawing,
    from_zero,
    layer_colours,
    marker_for,
    say,
    sentence_picture,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 13.0
PER_ROW = 4
MAX_PANELS = 8

_NO_GATES = (
    "No loop gates were recorded: this model is not looped or has no iteration conditioning,\n"
    "or there was no probe yet."
)


def plot_gates(metrics: Metrics, path: Path | str) -> None:
    """Draw the gate/... records into the PNG ``path``; without any, a sentence says so."""
    layers = sorted({layer for layer, _ in metrics.gates})
    if not layers:
        sentence_picture(path, "Gates of the loop", _NO_GATES)
        return
    panels = min(len(layers), MAX_PANELS)
    rows = -(-panels // PER_ROW)
    heights = [4.0, 3.2 * rows + 0.6]
    with drawing(path, WIDTH, sum(heights)) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=heights)
        _draw_last(top, metrics, layers)
        _draw_over_steps(bottom, metrics, layers, panels)


def _draw_last(figure: Any, metrics: Metrics, layers: list[int]) -> None:
    """Four panels over the iterations, at the last probe."""
    colours = layer_colours(layers)
    step = max(s.step[-1] for curves in metrics.gates.values() for s in curves.values())
    _headline(figure, f"By iteration, at step {step:.0f}")
    alpha, gamma_attn, gamma_moe, beta = figure.subplots(1, 4)
    alpha.set_title("Attention gate alpha")
    alpha.set_ylabel("mean, bars: std over tokens, dashed: mean |alpha|")
    gamma_attn.set_title("Attention scale gamma")
    gamma_moe.set_title("MoE scale gamma")
    beta.set_title("Shift beta")
    beta.set_ylabel("mean |beta|, dashed: MoE")
    for place, layer in enumerate(layers):
        # side by side, or the bars of two layers would hide each other
        shift = 0.12 * (place - (len(layers) - 1) / 2) / max(1, (len(layers) - 1) / 2)
        look = {"color": colours[layer], "marker": "o", "ms": 5, "linewidth": 1.6}
        dashed = {**look, "linestyle": "--", "linewidth": 1.1, "ms": 3.5, "alpha": 0.75}
        x, mean = _by_iteration(metrics, layer, "alpha_mean")
        _, std = _by_iteration(metrics, layer, "alpha_token_std")
        alpha.errorbar(x + shift, mean, yerr=np.nan_to_num(std), capsize=3, elinewidth=1.1, **look)
        alpha.plot(*_by_iteration(metrics, layer, "alpha_abs"), **dashed)
        for axes, part in ((gamma_attn, "attn"), (gamma_moe, "moe")):
            axes.plot(*_by_iteration(metrics, layer, f"gamma_{part}_mean"), **look)
            axes.plot(*_by_iteration(metrics, layer, f"gamma_{part}_abs"), **dashed)
        beta.plot(*_by_iteration(metrics, layer, "beta_attn_abs"), **look)
        beta.plot(*_by_iteration(metrics, layer, "beta_moe_abs"), **dashed)
    for axes in (gamma_attn, gamma_moe):
        axes.set_ylabel("mean, dashed: mean |gamma|")
    for axes, has_sign in ((alpha, True), (gamma_attn, True), (gamma_moe, True), (beta, False)):
        _iteration_axis(axes, metrics, has_sign)
    _legend(figure, [(f"L{layer}", colours[layer]) for layer in layers])


def _by_iteration(metrics: Metrics, layer: int, stat: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations [K] and the newest value of a statistic at each (NaN: not recorded)."""
    iterations = [k for other, k in metrics.gates if other == layer]
    values = [_newest(metrics.gates[layer, k].get(stat)) for k in iterations]
    return np.array(iterations, dtype=float), np.array(values)


def _newest(series: Series | None) -> float:
    return float(series.value[-1]) if series is not None else float("nan")


def _iteration_axis(axes: Axes, metrics: Metrics, has_sign: bool) -> None:
    iterations = sorted({k for _, k in metrics.gates})
    axes.set_xticks(iterations)
    axes.set_xlim(iterations[0] - 0.5, iterations[-1] + 0.5)
    axes.set_xlabel("iteration")
    if has_sign:
        axes.axhline(0, color=GREY, linewidth=1.0, zorder=1)
    else:
        from_zero(axes)
    curves = [line for line in axes.lines if line.get_marker() == "o"]
    if not any(np.isfinite(line.get_ydata()).any() for line in curves):
        axes.set_ylabel("")
        say(axes, "Not recorded.")


def _draw_over_steps(figure: Any, metrics: Metrics, layers: list[int], panels: int) -> None:
    """One panel per layer: alpha of each iteration over the steps."""
    iterations = sorted({k for _, k in metrics.gates})
    colours = dict(zip(iterations, shades(len(iterations)), strict=True))
    title = "Attention gate alpha over training (0: the sublayer is off)"
    if len(layers) > panels:
        title += f"; {len(layers) - panels} more layers not shown"
    _headline(figure, title)
    columns = min(panels, PER_ROW)
    grid = figure.subplots(-(-panels // PER_ROW), columns, squeeze=False, sharey=True)
    for axes, layer in zip(grid.ravel(), layers, strict=False):
        axes.set_title(f"L{layer}")
        for (other, k), curves in metrics.gates.items():
            series = curves.get("alpha_mean")
            if other != layer or series is None:
                continue
            points = len(series.step)
            axes.plot(
                series.step, series.value, color=colours[k], linewidth=1.6,
                marker=marker_for(points), ms=4,
            )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=1.0, zorder=1)
        count_axis(axes, "step")
    for axes in grid[:, 0]:
        axes.set_ylabel("alpha, mean")
    for axes in grid.ravel()[panels:]:
        axes.set_visible(False)
    _legend(figure, [(f"iteration {k}", colours[k]) for k in iterations])


def _headline(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize=12.5, fontweight="bold", x=0.01, ha="left")


def _legend(figure: Figure, entries: list[tuple[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    if len(entries) > 8:  # an ordered scale: eight samples of it are enough
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, 8).astype(int)]
    handles = [Line2D([], [], color=colour, linewidth=2.2, label=text) for text, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
