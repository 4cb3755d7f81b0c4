"""``loopmoe plan --draw``: which visits stand where, and the schedule as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.files import write_text
from loopmoe_train.spec.arithmetic import visit_flops
from loopmoe_train.spec.batch import global_batch, micro_batches
from loopmoe_train.spec.placement import Placement, placement_of
from loopmoe_train.spec.replay import Timeline, replay
from loopmoe_train.spec.schedule import peak, table
from loopmoe_train.spec.visits import Visit, visits

_MOST = 8192  # forwards of one chunk, of all stages


def draw(
    settings: Sequence[str], picture: str, trace_file: Optional[str]
) -> Tuple[Dict[str, Any], str]:
    """Place, replay and draw one step of a run; returns the figures and the printed table.

    Raises:
        Refused: the run cannot be, or a file cannot be written.
    """
    from loopmoe_train.config.compose import compose

    run = compose(settings)
    micro = micro_batches(run, global_batch(run, 0))
    if run.parallel.pipeline_parallel_size * micro > _MOST:
        raise Refused(
            f"{run.parallel.pipeline_parallel_size} stages x {micro} micro-batches: "
            "more than a picture can show",
            "lower global_batch_size: the steady part only gets longer with it",
        )
    placement = placement_of(run)
    unit = _unit(run)
    schedule = table(placement.stages, micro, placement.chunks)
    timeline = replay(schedule, lambda *where: placement.duration(*where) / unit)
    passes = [
        peak(actions, [len(placement.at(stage, chunk)) for chunk in range(placement.chunks)])
        for stage, actions in enumerate(schedule)
    ]
    report = {
        "model": run.model.name,
        "stages": placement.stages,
        "chunks": placement.chunks,
        "micro_batches": micro,
        "pipeline_layout": placement.layout(),
        "bubble_share": timeline.bubble_share,
        "busy": [busy / timeline.makespan for busy in timeline.busy],
        "visits_in_flight": passes,
    }
    _write(run, placement, timeline, picture, trace_file)
    return report, "\n".join(_lines(report, placement, picture, trace_file))


def _unit(run: RunConfig) -> float:
    """FLOPs of one token in one pass through a layer of the body (of the first MoE layer)."""
    order = visits(run.model)
    body = [visit for visit in order if visit.looped] or [v for v in order if not v.dense]
    return visit_flops(run.model, body[0], run.sequence_length)


def _write(
    run: RunConfig, placement: Placement, timeline: Timeline, picture: str,
    trace_file: Optional[str],
) -> None:  # fmt: skip
    title = f"{run.model.name}, {_count(placement)}"
    # A trace needs seconds: a layer's forward is drawn as a millisecond.
    write_timeline(
        timeline, placement.iteration, title, "forwards of one layer of the body", picture,
        trace_file, seconds_per_unit=1e-3,
    )  # fmt: skip


def write_timeline(
    timeline: Timeline,
    iteration_of: Callable[[int, int], Optional[int]],
    title: str,
    unit: str,
    picture: str,
    trace_file: Optional[str],
    seconds_per_unit: float,
) -> None:
    """Draw a timeline as a .png and, if asked for, as a trace.

    Raises:
        Refused: not a .png, or a file cannot be written.
    """
    from loopmoe_train.observe.plots.timeline import plot_timeline
    from loopmoe_train.observe.plots.trace import trace

    if trace_file is not None and Path(trace_file).resolve() == Path(picture).resolve():
        raise Refused(f"--trace {trace_file}: the same file as --draw", "name another")
    if not picture.endswith(".png"):
        raise Refused(f"--draw {picture}: not a .png", "e.g. --draw schedule.png")
    written(picture, lambda: plot_timeline(timeline, picture, iteration_of, title, unit))
    if trace_file is not None:
        content = json.dumps(trace(timeline, iteration_of, seconds_per_unit=seconds_per_unit))
        written(trace_file, lambda: write_text(Path(trace_file), content + "\n"))


def written(file: str, write: Callable[[], Any]) -> None:
    """Call ``write``, which writes ``file``.

    Raises:
        Refused: it cannot be written.
    """
    try:
        write()
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}", "name another file") from error


def _count(placement: Placement) -> str:
    def some(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    return f"{some(placement.stages, 'stage')} x {some(placement.chunks, 'chunk')}"


def _lines(
    report: Dict[str, Any], placement: Placement, picture: str, trace_file: Optional[str]
) -> List[str]:
    """The placement with a row per chunk, and what the replay says of every stage."""
    stages = range(placement.stages)
    rows = [["", *(f"stage {stage}" for stage in stages)]]
    for chunk in range(placement.chunks):
        rows.append([f"chunk {chunk}", *(_words(placement.at(s, chunk)) for s in stages)])
    rows.append(["busy", *(f"{busy:.1%}" for busy in report["busy"])])
    rows.append(["visits kept", *(f"{kept:.0f}" for kept in report["visits_in_flight"])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{report['model']}: {_count(placement)}, micro-batches: {report['micro_batches']}; "
        "L3.2 is layer 3 in iteration 2",
        "",
    ]
    lines += ["  ".join(f"{word:<{w}}" for word, w in zip(row, widths)).rstrip() for row in rows]
    lines += ["", f"bubble share {report['bubble_share']:.1%} (by FLOPs, without communication)"]
    lines += [f"by hand: parallel.pipeline_layout=[{','.join(map(str, placement.layout()))}]"]
    lines += [f"wrote {picture}" + (f" and {trace_file}" if trace_file else "")]
    return lines


def _words(found: Sequence[Visit]) -> str:
    return " ".join(
        f"L{visit.layer}.{visit.iteration}" if visit.looped else f"L{visit.layer}"
        for visit in found
    )
