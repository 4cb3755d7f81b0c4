"""timeline.png: what every pipeline stage does when, and where it waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopmoe_train.observe.plots.style import COLOURS, GREY, drawing, shades
from loopmoe_train.spec.replay import Span, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (stage, chunk) -> iteration of the loop from 1, or None for layers outside it
IterationOf = Callable[[int, int], int | None]

WIDTH = 14.0  # inches, as all sizes here but those of letters
ROW = 0.34
TALL = 12  # stages of that height; more share the space
MOST_NAMES = 32  # of stages, beside the rows
BESIDE = 1.35  # stage names and busy shares
BOX = 0.86  # of a row's height
PALE = 0.6  # how far a backward's colour is from its forward's on the way to white
FEW = 5  # iterations with distinct colours, also from the others' pale ones; more: ordered scale
SMALLEST, LIKED, LARGEST = 5.5, 7.0, 9.0  # points, of the numbers
DIGIT = 0.75  # width and margin of a digit, of its size
MOST_ENTRIES = 9


def by_chunk(_stage: int, chunk: int) -> int:
    """Iterations where the loop body is all there is: chunk 0 is the first."""
    return chunk + 1


def plot_timeline(
    timeline: Timeline,
    path: Path | str,
    iteration_of: IterationOf = by_chunk,
    title: str = "",
    unit: str = "",
) -> None:
    """Draw ``timeline`` into the PNG ``path``: stages over time, coloured by iteration.

    Forwards are dark, backwards pale, idle time is white. Boxes carry their micro-batch, from 0;
    where forwards are too narrow for that, the beginning and the end are drawn again, larger.

    Args:
        title: what was run; bubble share and makespan follow it.
        unit: of the times, e.g. "ms".
    """
    colours = colours_of(timeline, iteration_of)
    end = timeline.makespan
    number = _points_of_a_number(timeline)  # wide, for one unit of size
    forward = float(np.median([s.end - s.start for s in timeline.spans if s.action.kind == "F"]))
    points = 72 * (WIDTH - BESIDE)
    near = points * forward / (LIKED * number)  # what a panel can show with readable numbers
    cramped = points * forward / end < SMALLEST * number
    windows = {"": (0.0, end)}
    if cramped:
        windows |= {"The beginning": (0.0, near), "The end": (end - near, end)}
    row = ROW if timeline.stages <= TALL else ROW * TALL / timeline.stages
    heights = [row * timeline.stages + 0.85] * len(windows)
    with drawing(path, WIDTH, sum(heights) + 0.6) as figure:
        panels = figure.subplots(len(windows), 1, squeeze=False)[:, 0]
        for axes, (heading, (begin, until)) in zip(panels, windows.items(), strict=True):
            scale = points / (until - begin)
            shown = [s for s in timeline.spans if s.end > begin and s.start < until]
            draw_boxes(axes, shown, iteration_of, colours, scale)
            size = min(LARGEST, 72 * 0.6 * row, max(SMALLEST, forward * scale / number))
            inside = [s for s in shown if begin <= s.start and s.end <= until]
            draw_numbers(axes, inside, iteration_of, colours, size, size * number / scale)
            _stage_axis(axes, timeline, (begin, until))
            axes.set_xlabel(f"time [{unit}]" if unit else "time")
            axes.set_title(heading or _headline(timeline, title, unit))
        _busy(panels[0], timeline)
        _legend(figure, colours)


def colours_of(timeline: Timeline, iteration_of: IterationOf) -> dict[int | None, Any]:
    """RGB of the forwards of every iteration in ``timeline``; None: layers outside the loop."""
    from matplotlib.colors import to_rgb

    found = {iteration_of(s.stage, s.action.chunk) for s in timeline.spans}
    numbers = sorted(k for k in found if k is not None)
    scale: Sequence[Any] = COLOURS if len(numbers) <= FEW else shades(len(numbers))
    colours: dict[int | None, Any] = {k: to_rgb(c) for k, c in zip(numbers, scale, strict=False)}
    if None in found:
        colours[None] = to_rgb(GREY)
    return colours


def pale(colour: Sequence[float]) -> tuple[float, float, float]:
    """The colour of a backward, given its forward's."""
    red, green, blue = (c + PALE * (1 - c) for c in colour[:3])
    return red, green, blue


def draw_boxes(
    axes: Axes,
    spans: Sequence[Span],
    iteration_of: IterationOf,
    colours: dict[int | None, Any],
    points_per_unit: float,
) -> None:
    """One box a span; a collection for every iteration and kind, or thousands would be slow."""
    from matplotlib.collections import PolyCollection

    half = BOX / 2
    alike: dict[tuple[int | None, str], list[Span]] = {}
    for span in spans:
        key = iteration_of(span.stage, span.action.chunk), span.action.kind
        alike.setdefault(key, []).append(span)
    for (iteration, kind), members in alike.items():
        corners = [
            [(s.start, s.stage - half), (s.start, s.stage + half),
             (s.end, s.stage + half), (s.end, s.stage - half)]
            for s in members
        ]  # fmt: skip
        narrow = min(s.end - s.start for s in members) * points_per_unit
        colour = colours[iteration]
        boxes = PolyCollection(
            corners,
            facecolors=[colour if kind == "F" else pale(colour)],
            edgecolors="white",
            linewidths=min(0.8, 0.08 * narrow),
            zorder=2,
        )
        axes.add_collection(boxes, autolim=False)


def draw_numbers(
    axes: Axes,
    spans: Sequence[Span],
    iteration_of: IterationOf,
    colours: dict[int | None, Any],
    size: float,
    room: float,
) -> None:
    """The micro-batch inside every box at least ``room`` wide, in letters of ``size`` points."""
    for span in spans:
        if span.end - span.start >= 0.999 * room:
            colour = colours[iteration_of(span.stage, span.action.chunk)]
            axes.text(
                (span.start + span.end) / 2, span.stage, str(span.action.micro_batch),
                ha="center", va="center_baseline", fontsize=size, zorder=3,
                color=_ink(colour if span.action.kind == "F" else pale(colour)),
            )  # fmt: skip


def _ink(paper: Sequence[float]) -> str:
    """Black or white, whichever stands out more."""
    red, green, blue = paper[:3]
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.58 else "black"


def _points_of_a_number(timeline: Timeline) -> float:
    """Width of the longest micro-batch number, of its letters' size."""
    most = max((s.action.micro_batch for s in timeline.spans), default=0)
    return DIGIT * (len(str(most)) + 0.35)


def _stage_axis(axes: Axes, timeline: Timeline, window: tuple[float, float]) -> None:
    every = -(-timeline.stages // MOST_NAMES)
    axes.set_yticks(range(0, timeline.stages, every))
    axes.set_yticklabels([f"stage {stage}" for stage in range(0, timeline.stages, every)])
    axes.set_ylim(timeline.stages - 0.45, -0.55)  # stage 0 on top
    axes.set_xlim(*window)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)


def _busy(axes: Axes, timeline: Timeline) -> None:
    """How much of the time each stage works, at the end of its row."""
    for stage in range(0, timeline.stages, -(-timeline.stages // MOST_NAMES)):
        axes.annotate(
            f"{timeline.busy[stage] / timeline.makespan:.0%} busy", (1, stage),
            xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=GREY,
        )  # fmt: skip


def _headline(timeline: Timeline, title: str, unit: str) -> str:
    length = timeline.makespan
    number = f"{length:,.0f}" if length >= 1000 else f"{length:.4g}"
    figures = f"{100 * timeline.bubble_share:.1f} % bubble, makespan {number} {unit}".rstrip()
    return f"{title}: {figures}" if title else figures


def _legend(figure: Any, colours: dict[int | None, Any]) -> None:
    """Forward and backward colour side by side, for every iteration."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    names = [k for k in colours if k is not None]
    if len(names) > MOST_ENTRIES:  # an ordered scale: a sample of it is enough
        names = [names[i] for i in np.linspace(0, len(names) - 1, MOST_ENTRIES).astype(int)]
    entries = [(f"iteration {k}", colours[k]) for k in names]
    if None in colours:
        entries.append(("outside the loop", colours[None]))
    handles = [(Patch(color=colour), Patch(color=pale(colour))) for _, colour in entries]
    figure.legend(
        handles,
        [text for text, _ in entries],
        loc="outside lower center",
        ncols=len(entries),
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        handlelength=3.2,
        title="forward, backward; the number is the micro-batch",
        title_fontsize=9.5,
    )
