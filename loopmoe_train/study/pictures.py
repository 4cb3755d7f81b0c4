"""study.png: the arms against each other. loop.png: what the loops do in each iteration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import numpy as np

from loopmoe_train.observe.plots.style import (
    COLOURS,
    GREY,
    count_axis,
    drawing,
    say,
    sentence_picture,
    shades,
)
from loopmoe_train.study.results import Arm, Results, gap
from loopmoe_train.study.statistics import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_study(results: Results, path: Path) -> None:
    """Bits per byte of every run with means, and the gap to the reference over the tokens."""
    colours = {arm.name: COLOURS[i % len(COLOURS)] for i, arm in enumerate(results.arms)}
    with drawing(path, 12, 4.8) as figure:
        ends, gaps = figure.subplots(1, 2, width_ratios=[1, 1.35])
        _draw_ends(ends, results, colours)
        _draw_gaps(gaps, results, colours)


def _draw_ends(axes: Axes, results: Results, colours: Dict[str, str]) -> None:
    arms = results.arms
    seeds = sorted({seed for arm in arms for seed in arm.seeds})
    for seed in seeds:  # a thin line joins the runs of a seed
        points = [
            (place, arm.bits[arm.seeds.index(seed)])
            for place, arm in enumerate(arms)
            if seed in arm.seeds
        ]
        axes.plot(*zip(*points), color=GREY, linewidth=0.8, alpha=0.45, marker="o", ms=3.5)
    for place, arm in enumerate(arms):
        spread = arm.spread()
        half = np.nan_to_num(spread.high - spread.mean)
        axes.errorbar(
            place, spread.mean, yerr=half, color=colours[arm.name], marker="D", ms=7,
            elinewidth=2.2, capsize=5, capthick=2.2, zorder=3,
        )  # fmt: skip
        axes.annotate(
            f"{spread.mean:.3f}", (place, spread.mean), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9.5, color=colours[arm.name],
        )  # fmt: skip
    axes.set_xticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_xlim(-0.5, len(arms) - 0.3)
    where = "at the end" if results.step == results.steps else f"at step {results.step}"
    axes.set_title(f"Held-out bits per byte {where}")
    axes.set_ylabel("bits per byte; mean, 95 %, thin: a seed")


def _draw_gaps(axes: Axes, results: Results, colours: Dict[str, str]) -> None:
    reference = results.arm(results.study.reference)
    axes.set_title(f"Gap to {reference.name} (below 0: better)")
    axes.axhline(0, color=GREY, linewidth=1.2)
    others = [arm for arm in results.arms if arm is not reference]
    for place, arm in enumerate(others):
        spreads = [mean(column) for column in gap(arm, reference).T]
        middle = np.array([spread.mean for spread in spreads])
        half = np.nan_to_num(np.array([spread.high - spread.mean for spread in spreads]))
        tokens = np.array(arm.tokens, dtype=float)
        # side by side, or the bars would hide each other
        shift = 0.008 * tokens[-1] * (place - (len(others) - 1) / 2)
        axes.errorbar(
            tokens + shift, middle, yerr=half, color=colours[arm.name], marker="o", ms=4.5,
            linewidth=1.8, elinewidth=1.2, capsize=3, label=arm.name,
        )  # fmt: skip
    axes.set_ylabel("difference in bits per byte; mean over pairs, 95 %")
    count_axis(axes, "tokens")
    axes.legend(loc="best")


def draw_loop(results: Results, path: Path) -> None:
    """Gates, overlap of expert sets and load of every looped layer, means over seeds."""
    rows = [(arm, layer) for arm in results.arms for layer in _looped_layers(arm)]
    if not rows:
        sentence_picture(path, "Loops", "No arm of this study has a looped MoE layer.")
        return
    with drawing(path, 15, 3.2 * len(rows)) as figure:
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (arm, layer) in zip(parts, rows):
            part.suptitle(
                f"{arm.name}, layer {layer}", fontsize=12, fontweight="bold", x=0.01, ha="left"
            )
            alpha, gamma, overlap, load = part.subplots(1, 4)
            _draw_alpha(alpha, arm, layer)
            _draw_gamma(gamma, arm, layer)
            _draw_overlap(overlap, arm, layer)
            _draw_load(load, arm, layer)


def _looped_layers(arm: Arm) -> List[int]:
    probes = [run.routing[-1] for run in arm.runs if run.routing]
    return sorted({e.layer for probe in probes for e in probe.layers if len(e.iterations) > 1})


def _gate(arm: Arm, layer: int, stat: str) -> Tuple[np.ndarray, np.ndarray]:
    """Iterations [K] and the newest value [seeds, K] of a gate statistic."""
    iterations = sorted({k for run in arm.runs for other, k in run.metrics.gates if other == layer})
    values = np.full((len(arm.runs), len(iterations)), np.nan)
    for row, run in enumerate(arm.runs):
        for column, k in enumerate(iterations):
            series = run.metrics.gates.get((layer, k), {}).get(stat)
            if series is not None:
                values[row, column] = series.value[-1]
    return np.array(iterations), values


def _draw_stat(axes: Axes, arm: Arm, layer: int, stat: str, **look: Any) -> bool:
    iterations, values = _gate(arm, layer, stat)
    if not np.isfinite(values).any():
        return False
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(iterations))
    axes.errorbar(iterations, values.mean(0), yerr=spread, marker="o", ms=5, capsize=3, **look)
    axes.set_xticks(iterations)
    axes.set_xlim(iterations[0] - 0.5, iterations[-1] + 0.5)
    axes.axhline(0, color=GREY, linewidth=1.0, zorder=1)
    axes.set_xlabel("iteration")
    return True


def _draw_alpha(axes: Axes, arm: Arm, layer: int) -> None:
    axes.set_title("Attention gate alpha")
    if not _draw_stat(axes, arm, layer, "alpha_mean", color=COLOURS[0], label="alpha"):
        say(axes, "No iteration conditioning.")
        return
    _draw_stat(axes, arm, layer, "alpha_abs", color=COLOURS[5], ls="--", label="|alpha|")
    axes.legend(loc="best")
    axes.set_ylabel("mean; bars: sd over seeds")


def _draw_gamma(axes: Axes, arm: Arm, layer: int) -> None:
    axes.set_title("Scale gamma")
    drawn = _draw_stat(
        axes, arm, layer, "gamma_attn_mean", color=COLOURS[1], label="attention"
    ) and _draw_stat(axes, arm, layer, "gamma_moe_mean", color=COLOURS[2], ls="--", label="MoE")
    if not drawn:
        say(axes, "No iteration conditioning.")
        return
    axes.legend(loc="best")


def _entries(arm: Arm, layer: int) -> List[Any]:
    probes = [run.routing[-1] for run in arm.runs if run.routing]
    return [e for probe in probes for e in probe.layers if e.layer == layer]


def _draw_overlap(axes: Axes, arm: Arm, layer: int) -> None:
    """Jaccard overlap of iterations' expert sets, [K, K]."""
    entries = _entries(arm, layer)
    overlap = np.mean([entry.overlap for entry in entries], axis=0)
    axes.set_title("Overlap of expert sets (Jaccard)")
    axes.grid(False)
    axes.imshow(overlap, cmap="viridis", vmin=0, vmax=1)
    ticks = [str(k) for k in entries[0].iterations]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_yticks(range(len(ticks)), ticks)
    axes.set_xlabel("iteration")
    for (row, column), value in np.ndenumerate(overlap):
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)


def _draw_load(axes: Axes, arm: Arm, layer: int) -> None:
    """Share of each iteration's tokens per expert, the fullest expert first."""
    entries = _entries(arm, layer)
    iterations = entries[0].iterations
    for row, (k, colour) in enumerate(zip(iterations, shades(len(iterations)))):
        ordered = np.mean([np.sort(entry.load[row])[::-1] for entry in entries], axis=0)
        axes.plot(
            np.arange(1, len(ordered) + 1), ordered * len(ordered), color=colour,
            linewidth=1.7, label=f"iteration {k}",
        )  # fmt: skip
    axes.axhline(1, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
    axes.set_ylim(bottom=0)
    axes.set_title("Load, experts in order of it")
    axes.set_ylabel("x the even share")
    axes.set_xlabel("expert")
    axes.legend(loc="upper right")
