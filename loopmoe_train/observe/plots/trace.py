"""A pipeline's timeline as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing.

Format: "Trace Event Format", complete events ("X") with ``ts`` and ``dur`` in microseconds.
"""

from __future__ import annotations

from typing import Any

from loopmoe_train.observe.plots.timeline import IterationOf, by_chunk
from loopmoe_train.spec.replay import Timeline


def trace(
    timeline: Timeline, iteration_of: IterationOf = by_chunk, seconds_per_unit: float = 1.0
) -> dict[str, Any]:
    """What to write as JSON: one process a stage, one complete event a span.

    Args:
        seconds_per_unit: what one unit of the timeline's times is.
    """
    events: list[dict[str, Any]] = []
    for stage in range(timeline.stages):
        common = {"ph": "M", "pid": stage, "tid": 0}
        events += [
            {**common, "name": "process_name", "args": {"name": f"stage {stage}"}},
            {**common, "name": "process_sort_index", "args": {"sort_index": stage}},
        ]
    for span in timeline.spans:
        action = span.action
        iteration = iteration_of(span.stage, action.chunk)
        where = "outside the loop" if iteration is None else f"iteration {iteration}"
        events.append(
            {
                "name": f"{action.kind}{action.micro_batch}, {where}",
                "cat": "forward" if action.kind == "F" else "backward",
                "ph": "X",
                "pid": span.stage,
                "tid": 0,
                "ts": 1e6 * seconds_per_unit * span.start,
                "dur": 1e6 * seconds_per_unit * (span.end - span.start),
                "args": {
                    "micro_batch": action.micro_batch,
                    "chunk": action.chunk,
                    "iteration": iteration,
                },
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
