"""The picture of a pipeline shows what is in the timeline, and so does its trace."""

from __future__ import annotations

import json
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from loopmoe_train.observe.plots import timeline as module
from loopmoe_train.observe.plots.timeline import by_chunk, colours_of, draw_boxes, pale
from loopmoe_train.observe.plots.trace import trace
from loopmoe_train.spec.replay import Span, Timeline, replay
from loopmoe_train.spec.schedule import Kind, table


def with_ends(stage: int, chunk: int) -> int | None:
    """The first and the last slot are layers outside the loop."""
    return None if (stage, chunk) in ((0, 0), (3, 2)) else chunk + 1


def uneven(stage: int, chunk: int, kind: Kind) -> float:
    return (1 + 0.3 * stage + 0.1 * chunk) * (1 if kind == "F" else 2.1)


@pytest.fixture(scope="module")
def run() -> Timeline:
    return replay(table(4, 8, 3), uneven, 0.25)


def test_every_span_is_a_box_of_its_colour(run: Timeline) -> None:
    axes = Figure().subplots()
    colours = colours_of(run, with_ends)
    draw_boxes(axes, run.spans, with_ends, colours, points_per_unit=10)
    assert sorted(colours, key=str) == [1, 2, 3, None]
    drawn: Counter[Any] = Counter()
    for boxes in axes.collections:
        colour = tuple(np.round(boxes.get_facecolor()[0][:3], 4))
        for path in boxes.get_paths():
            (left, top), (right, bottom) = path.vertices.min(0), path.vertices.max(0)
            drawn[(round((top + bottom) / 2), round(left, 6), round(right, 6), colour)] += 1

    def expected(span: Span) -> Any:
        colour = colours[with_ends(span.stage, span.action.chunk)]
        shade = colour if span.action.kind == "F" else pale(colour)
        return span.stage, round(span.start, 6), round(span.end, 6), tuple(np.round(shade, 4))

    assert drawn == Counter(expected(span) for span in run.spans)
    assert len(run.spans) == 4 * 3 * 8 * 2 == sum(drawn.values())


def test_all_colours_differ() -> None:
    for chunks in (1, 2, 5, 8):
        colours = colours_of(replay(table(2, 2, chunks), uneven), by_chunk)
        both = [np.round(c, 3) for k in colours for c in (colours[k][:3], pale(colours[k][:3]))]
        assert len({tuple(c) for c in both}) == 2 * chunks


SHAPES = {
    "two stages": (2, 3, 1),
    "numbers fit": (4, 4, 3),
    "beginning and end apart": (4, 48, 1),
    "one stage": (1, 2, 1),
    "ordered colours": (2, 2, 6),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_without_a_warning(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = 0
    numbers: Counter[str] = Counter()
    real = module.draw_numbers

    def spy(axes: Any, *rest: Any) -> None:
        nonlocal panels
        real(axes, *rest)
        panels += 1
        numbers.update(text.get_text() for text in axes.texts)

    monkeypatch.setattr(module, "draw_numbers", spy)
    stages, micro_batches, chunks = SHAPES[shape]
    picture = tmp_path / "timeline.png"
    made = replay(table(stages, micro_batches, chunks), lambda s, c, k: 1.0 if k == "F" else 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.plot_timeline(made, picture, title="a $loop_1$", unit="ms")
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width == 1680 and 200 < height < 2200
    assert panels == (3 if shape == "beginning and end apart" else 1)
    if panels == 1:  # every box carries its number
        expected = {str(m): 2 * stages * chunks for m in range(micro_batches)}
        assert numbers == expected
    else:
        assert {"0", str(micro_batches - 1)} <= set(numbers)


def test_the_headline_has_the_figures() -> None:
    made = replay(table(2, 2, 1), lambda *_: 500.0)
    assert module._headline(made, "x", "ms") == "x: 33.3 % bubble, makespan 3,000 ms"
    made = replay(table(1, 1, 1), lambda *_: 0.5)
    assert module._headline(made, "", "") == "0.0 % bubble, makespan 1"


def test_the_trace_holds_every_span(run: Timeline, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(trace(run, with_ends, seconds_per_unit=1e-3)))
    events = json.loads(file.read_text())["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named == {stage: f"stage {stage}" for stage in range(4)}
    spans = [e for e in events if e["ph"] == "X"]
    assert len(spans) == len(run.spans)
    for event, span in zip(spans, run.spans):
        assert event["pid"] == span.stage
        assert event["ts"] == pytest.approx(1e3 * span.start)
        assert event["ts"] + event["dur"] == pytest.approx(1e3 * span.end)
        assert event["cat"] == {"F": "forward", "B": "backward"}[span.action.kind]
        assert event["args"] == {
            "micro_batch": span.action.micro_batch,
            "chunk": span.action.chunk,
            "iteration": with_ends(span.stage, span.action.chunk),
        }
