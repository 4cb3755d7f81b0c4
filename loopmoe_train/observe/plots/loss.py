"""loss.png: training loss, validation bits per byte and learning rate against tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopmoe_train.observe.metrics import Metrics
from loopmoe_train.observe.plots.style import (
    COLOURS,
    GREY,
    count_axis,
    drawing,
    from_zero,
    marker_for,
    say,
    short_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_loss(
    metrics_by_run: Mapping[str, Metrics], path: Path | str, gzip_bits: float | None = None
) -> None:
    """Draw one run, or several over each other, into the PNG ``path``.

    Args:
        metrics_by_run: run name to its metrics, in the order of the legend.
        gzip_bits: bits per byte that ``gzip -9`` needs for the validation text.
    """
    by_tokens = all(m.tokens_at(np.zeros(1)) is not None for m in metrics_by_run.values())
    looks = {
        name: {"color": COLOURS[i % 7], "linestyle": ("-", "--", ":")[i // 7 % 3]}
        for i, name in enumerate(metrics_by_run)
    }
    with drawing(path, 9, 9 + 0.12 * len(looks)) as figure:
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.2])
        window = 1
        for name, metrics in metrics_by_run.items():
            window = max(window, _draw_train(top, metrics, by_tokens, looks[name]))
            _draw_valid(middle, metrics, by_tokens, looks[name])
            _draw_lr(bottom, metrics, by_tokens, looks[name])
        _label_train(top, window, len(looks))
        _label_valid(middle, metrics_by_run, gzip_bits)
        bottom.set_title("Learning rate")
        from_zero(bottom)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        count_axis(bottom, "tokens" if by_tokens else "step")
        if len(looks) > 1:
            figure.legend(
                handles=[_handle(short_name(name), look) for name, look in looks.items()],
                loc="outside upper left",
                ncols=3 if max(map(len, looks)) <= 26 else 2,
            )


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean over ``window`` points that skips NaN and shrinks at the ends."""
    half = min(window, len(values)) // 2
    if half == 0:
        return values
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    # the window stays symmetric at the ends, or a falling curve would start too low
    reach = np.minimum(np.minimum(index, index[::-1]), half)
    first, stop = index - reach, index + reach + 1
    count = counts[stop] - counts[first]
    return np.where(count > 0, (sums[stop] - sums[first]) / np.maximum(count, 1), np.nan)


def _x(metrics: Metrics, steps: np.ndarray, by_tokens: bool) -> np.ndarray:
    tokens = metrics.tokens_at(steps) if by_tokens else None
    return steps if tokens is None else tokens


def _draw_train(axes: Axes, metrics: Metrics, by_tokens: bool, look: dict[str, Any]) -> int:
    """Draw one run; returns the window of the smoothing (1: none)."""
    loss = metrics.train.get("loss")
    if loss is None:
        return 1
    x = _x(metrics, metrics.train["step"], by_tokens)
    window = 1 if len(loss) <= 25 else max(5, len(loss) // 40)
    if window > 1:
        axes.plot(x, loss, color=look["color"], alpha=0.25, linewidth=0.9)
    axes.plot(x, smooth(loss, window), linewidth=1.9, marker=marker_for(len(loss)), ms=4, **look)
    return window


def _label_train(axes: Axes, window: int, runs: int) -> None:
    axes.set_title("Training loss")
    if not axes.lines:
        say(axes, "No training step recorded yet.")
        return
    axes.set_ylabel("loss (nats per token)")
    if window > 1:
        points = f"mean of {window} points" if runs == 1 else "moving mean"
        axes.legend(
            handles=[
                _handle("as recorded", {"color": GREY, "alpha": 0.4, "linewidth": 1}),
                _handle(points, {"color": GREY, "linewidth": 2}),
            ],
            loc="upper right",
        )


def _draw_valid(axes: Axes, metrics: Metrics, by_tokens: bool, look: dict[str, Any]) -> None:
    bits = metrics.valid.get("val_bits_per_byte")
    if bits is None or not np.isfinite(bits).any():
        return
    known = np.isfinite(bits)  # a gap would break a line of few points into invisible ones
    x = _x(metrics, metrics.valid["step"][known], by_tokens)
    axes.plot(x, bits[known], linewidth=1.9, marker=marker_for(len(bits)), ms=4.5, **look)


def _label_valid(
    axes: Axes, metrics_by_run: Mapping[str, Metrics], gzip_bits: float | None
) -> None:
    title = "Validation"
    if not axes.lines:
        axes.set_title(title)
        say(axes, "No validation yet.")
        return
    if len(metrics_by_run) == 1:
        last = next(iter(metrics_by_run.values())).last("valid", "val_bits_per_byte")
        title += f": {last:.3f} bits per byte at the end"
    axes.set_title(title)
    axes.set_ylabel("bits per byte of text")
    if gzip_bits is not None and np.isfinite(gzip_bits):
        axes.axhline(gzip_bits, color=GREY, linestyle=(0, (5, 3)), linewidth=1.4)
        axes.annotate(
            f"gzip -9: {gzip_bits:.3f}", (1, gzip_bits), xycoords=("axes fraction", "data"),
            xytext=(0, 4), textcoords="offset points", ha="right", va="bottom",
            color=GREY, fontsize=9.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    axes.margins(y=0.1)


def _draw_lr(axes: Axes, metrics: Metrics, by_tokens: bool, look: dict[str, Any]) -> None:
    lr = metrics.train.get("lr")
    if lr is None:
        return
    x = _x(metrics, metrics.train["step"], by_tokens)
    axes.plot(x, lr, linewidth=1.5, marker=marker_for(len(lr)), ms=3, **look)


def _handle(label: str, look: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)
