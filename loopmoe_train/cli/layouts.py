"""``loopmoe plan``: the best layouts of a run on its cluster, and one of them explained."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.cli.drawing import write_timeline, written
from loopmoe_train.cli.numbers import short
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.sim import memory as peaks
from loopmoe_train.sim import search as searching
from loopmoe_train.sim.architecture import explore
from loopmoe_train.sim.machine import GIB, Machine, machine_of, named
from loopmoe_train.sim.memory import Held
from loopmoe_train.sim.scripts import launch
from loopmoe_train.sim.search import Found, Scored
from loopmoe_train.sim.space import Candidate
from loopmoe_train.sim.step import Estimate, estimate, timeline
from loopmoe_train.sim.techniques import using
from loopmoe_train.sim.workload import Workload, workload_of
from loopmoe_train.spec.placement import placement_of

_MOST_DRAWN = 4  # micro-batches of a stage in a picture: then a schedule repeats itself

# Settings of a layout: what is given on the command line is kept, the rest is searched.
_LAYOUT = {
    "parallel.tensor_parallel_size", "parallel.context_parallel_size",
    "parallel.pipeline_parallel_size", "parallel.virtual_pipeline_size",
    "parallel.expert_parallel_size", "parallel.expert_tensor_parallel_size", "micro_batch_size",
    "memory.recompute", "memory.recompute_modules", "model.moe.dispatcher",
}  # fmt: skip


def fixed_settings(run: RunConfig, words: Sequence[str]) -> Dict[str, Any]:
    """Settings of a layout that the command line names, with the values that they took."""
    from loopmoe_train.config.rules import get

    named = {word.lstrip("+").partition("=")[0] for word in words}
    found = {name: get(run, name) for name in sorted(_LAYOUT & named)}
    if any(word.startswith("memory=") for word in words):
        found["memory.recompute"] = run.memory.recompute
        found["memory.recompute_modules"] = run.memory.recompute_modules
    return found


def find(
    words: Sequence[str], top: int, techniques: Sequence[str]
) -> Tuple[RunConfig, Machine, Found]:
    """Search the layouts of the run that ``words`` compose.

    Raises:
        Refused: the run cannot be, whatever its layout; the cluster is not described.
    """
    from loopmoe_train.config.compose import compose

    run = compose(["parallel=data", *words], layout=False)
    machine = machine_of(run.cluster)
    found = searching.search(run, machine, top, techniques, fixed_settings(run, words))
    return run, machine, found


# -- the table ---------------------------------------------------------------------------------
def report(
    words: Sequence[str], top: int, techniques: Sequence[str], picture: Optional[str]
) -> Tuple[Dict[str, Any], str]:
    """The best layouts as figures and as a printed table.

    Raises:
        Refused: as :func:`find`; no layout fits.
    """
    run, machine, found = find(words, top, techniques)
    if not found.best:
        raise searching.refusal(run, machine, found)
    first = found.best[0].candidate
    figures = {
        "model": run.model.name,
        "cluster": machine.name,
        "devices": run.cluster.devices,
        "considered": found.considered,
        "simulated": found.simulated,
        "seconds": found.seconds,
        "dropped": found.dropped,
        "layouts": [_figures(one) for one in found.best],
        "pareto": [_figures(one) for one in found.pareto],
    }
    lines = [
        f"{run.model.name} on {run.cluster.devices} x {machine.name}, sequences of "
        f"{run.sequence_length}, {run.global_batch_size} a step; "
        f"{peaks.describe(found.best[0].workload, machine)}",
        "",
        *_table(found.best),
        "",
        f"{found.considered} layouts looked at, {found.simulated} simulated, "
        f"{found.seconds:.1f} s. Dropped:",
        *(f"  {count:7} {reason}" for reason, count in found.dropped.items()),
        "",
        "the trainer does not have all that --with names"
        if techniques
        else f"run the first: loopmoe train {_command(words, first)}",
        *_limits(machine),
    ]
    if picture is not None:
        _draw(found, machine, picture, run.model.name)
        lines.append(f"wrote {picture}")
    return figures, "\n".join(lines)


def _command(words: Sequence[str], layout: Candidate) -> str:
    """The words that train with a layout, quoted for a shell, each setting once."""
    own = layout.overrides()
    told = {word.partition("=")[0] for word in own}
    kept = [word for word in words if word.partition("=")[0] not in told]
    return " ".join(map(shlex.quote, [*kept, *own]))


def _figures(one: Scored) -> Dict[str, Any]:
    return {
        **one.candidate.settings(),
        "exchange": one.candidate.exchange,
        "saving": list(one.candidate.saving),
        "step_s": one.estimate.seconds,
        "tokens_per_s": one.tokens_per_s(),
        "bubble_share": one.estimate.bubble,
        "peak_gib": one.estimate.peak_gib,
        "parts_s": one.estimate.parts,
    }


def _table(best: Sequence[Scored]) -> List[str]:
    head = ["", "TP", "CP", "PP", "VPP", "EP", "ETP", "DP", "micro", "recompute", "exchange",
            "step", "tokens/s", "bubble", "memory", "why slower than the first"]  # fmt: skip
    rows = [head]
    for number, one in enumerate(best, 1):
        c, e = one.candidate, one.estimate
        rows.append(
            [str(number), *(str(size) for size in (
                c.tensor, c.context, c.pipeline, c.virtual, c.expert, c.expert_tensor,
                one.workload.grid.data, c.micro_batch)),
             " + ".join([c.recompute, *c.saving]), c.exchange,
             f"{e.seconds:.3g} s", short(one.tokens_per_s()),
             f"{e.bubble:.1%}", f"{e.peak_gib:.1f} GiB",
             _why(e, best[0].estimate) if number > 1 else ""]
        )  # fmt: skip
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{word:<{w}}" for word, w in zip(row, widths)).rstrip() for row in rows]


def _why(one: Estimate, best: Estimate) -> str:
    """The part that costs most more than in the best layout."""
    more = {part: one.parts.get(part, 0.0) - best.parts.get(part, 0.0) for part in one.parts}
    part = max(more, key=lambda name: more[name])
    if more[part] <= 0:
        return "the same"
    return f"{part} +{more[part] / best.seconds:.0%}"


def _limits(machine: Machine) -> List[str]:
    known = []
    if machine.scale != 1.0:
        known = [f"Times are scaled by {machine.scale:g} (cluster.efficiency.scale)."]
    if machine.software:
        known.append(f"Figures are of {machine.software}.")
    return [
        *known,
        f"Rates are those of configs/cluster/{machine.name}.yaml; `loopmoe bench sim` says "
        "how far such predictions are off.",
    ]


def _draw(found: Found, machine: Machine, picture: str, name: str) -> None:
    from loopmoe_train.observe.plots.pareto import plot_pareto

    def points(some: Sequence[Scored]) -> List[Tuple[float, float, str]]:
        return [
            (one.estimate.peak_gib, one.estimate.seconds, _short(one.candidate)) for one in some
        ]

    if not picture.endswith(".png"):
        raise Refused(f"--pareto {picture}: not a .png", "e.g. --pareto layouts.png")
    room = peaks.room(found.best[0].workload, machine) / GIB
    written(
        picture,
        lambda: plot_pareto(points(found.pareto), points(found.best), room, picture, name),
    )


def _short(c: Candidate) -> str:
    stages = f" PP{c.pipeline}" + (f"x{c.virtual}" if c.virtual > 1 else "")
    cuts = f"TP{c.tensor}{stages if c.pipeline > 1 else ''} EP{c.expert}"
    cuts += f" CP{c.context}" if c.context > 1 else ""
    return f"{cuts} micro {c.micro_batch}"


# -- other shapes ------------------------------------------------------------------------------
def shapes(words: Sequence[str], top: int) -> Tuple[Dict[str, Any], str]:
    """Other shapes with the parameters and FLOPs of a model, by their speed on the cluster.

    Raises:
        Refused: the run cannot be; no shape fits.
    """
    from loopmoe_train.config.compose import compose

    run = compose(["parallel=data", *words], layout=False)
    machine = machine_of(run.cluster)
    found = explore(run, machine, fixed=fixed_settings(run, words), progress=_say)
    if not found:
        raise Refused(f"no shape of {run.model.name} fits", "more devices")
    own = next((one for one in found if one.model == run.model), None)
    head = ["", "hidden", "heads", "layers", "K", "experts", "top-k", "width", "parameters",
            "FLOPs", "step", "tokens/s", "TP", "PP", "EP"]  # fmt: skip
    rows = [head]
    for number, one in enumerate(found[:top], 1):
        m, c = one.model, one.best.candidate
        layers = f"{m.prefix_layers}+{m.body_layers}+{m.suffix_layers}"
        rows.append(
            ["*" if one is own else str(number), str(m.hidden_size), str(m.attention.num_heads),
             layers, str(m.loop.iterations), str(m.moe.num_experts), str(m.moe.top_k),
             str(m.moe.expert_hidden_size), f"{one.parameters - 1:+.1%}", f"{one.flops - 1:+.1%}",
             f"{one.best.estimate.seconds:.3g} s", short(one.best.tokens_per_s()),
             str(c.tensor), str(c.pipeline), str(c.expert)]
        )  # fmt: skip
    figures = {
        "shapes": [
            {**_figures(one.best), "hidden_size": one.model.hidden_size,
             "num_heads": one.model.attention.num_heads, "layers": [
                 one.model.prefix_layers, one.model.body_layers, one.model.suffix_layers],
             "iterations": one.model.loop.iterations, "num_experts": one.model.moe.num_experts,
             "top_k": one.model.moe.top_k, "expert_hidden_size": one.model.moe.expert_hidden_size,
             "parameters": one.parameters, "flops": one.flops, "reference": one is own}
            for one in found
        ]
    }  # fmt: skip
    place = found.index(own) + 1 if own is not None else None
    lines = [
        f"{len(found)} shapes with the parameters and FLOPs of {run.model.name} (within 3 %), on "
        f"{run.cluster.devices} x {machine.name}",
        "",
        *_aligned(rows),
        "",
        f"{run.model.name} itself is number {place}, {own.best.estimate.seconds:.3g} s"
        if own is not None
        else f"{run.model.name} itself does not fit",
        "Speed alone: what a shape learns is for a trial to say.",
        *_limits(machine),
    ]
    return figures, "\n".join(lines)


def _say(done: int, count: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {count} shapes", end="", file=sys.stderr, flush=True)


# -- one layout --------------------------------------------------------------------------------
def explain(
    words: Sequence[str],
    techniques: Sequence[str] = (),
    picture: Optional[str] = None,
    trace_file: Optional[str] = None,
) -> Tuple[Dict[str, Any], str]:
    """Time and memory of the layout that ``words`` compose, part by part.

    Args:
        picture: a .png for the simulated timeline; ``trace_file``: for the same as a trace.

    Raises:
        Refused: the run cannot be, or a file cannot be written.
    """
    from loopmoe_train.config.compose import compose

    run = compose(words)
    machine = machine_of(run.cluster)
    work = using(workload_of(run), techniques)
    figures, text = explained(run.model.name, work, machine)
    if picture is not None:
        placement = placement_of(run)
        micro = min(work.micro_batches, _MOST_DRAWN * work.stages)
        title = f"{run.model.name} on {machine.name}"
        found = timeline(work, machine, micro)
        write_timeline(found, placement.iteration, title, "s", picture, trace_file, 1.0)
        text += f"\nwrote {picture}" + (f" and {trace_file}" if trace_file else "")
    return figures, text


def of_script(
    file: str, words: Sequence[str], techniques: Sequence[str]
) -> Tuple[Dict[str, Any], str]:
    """As :func:`explain`, of a Megatron or MindSpeed launch script.

    Args:
        words: ``cluster=NAME`` for another machine than the script tells, and options of the
            script as NAME=VALUE, which win over its own.

    Raises:
        Refused: the script cannot be read or lacks something; one line with all that it lacks.
    """
    more: List[str] = []
    preset = ""
    for word in words:
        name, _, value = word.partition("=")
        if name == "cluster":
            preset = value
        elif "." in name:
            raise Refused(
                f"{word}: with --script only cluster=NAME and options of the script count",
                "as vocab-size=32000, or nnodes=4 for another number of devices",
            )
        else:
            more += [f"--{name.replace('_', '-')}", *([value] if value else [])]
    try:
        script = launch.load(Path(file), dict(os.environ), more)
        work = using(launch.workload_of_script(script), techniques)
    except Refused as error:
        hint = "options may be added to the command, as vocab-size=32000"
        raise Refused(error.what, f"{error.fix}; {hint}") from error
    machine = machine_of(named(preset or script.preset or "ascend_a2"))
    figures, text = explained(script.name, work, machine)
    figures["not_simulated"] = list(script.unused)
    notes = []
    if not preset and not script.preset:
        notes.append("The script does not tell its hardware: ascend_a2 is assumed, cluster=NAME")
    if script.unused:
        notes.append(f"Not simulated: {', '.join(script.unused)}")
    if script.lost:
        notes.append(f"Bash passes none of these on: {', '.join(script.lost)}")
    return figures, "\n".join([text, *notes])


def explained(name: str, work: Workload, machine: Machine) -> Tuple[Dict[str, Any], str]:
    """As :func:`explain`, of a workload.

    Raises:
        Refused: the machine does not have its precision.
    """
    if work.precision not in machine.peak:
        raise Refused(
            f"{machine.name} has no {work.precision}",
            f"another cluster=..., or cluster.peak_tflops_{work.precision}=...",
        )
    found = estimate(work, machine)
    grid, peak = work.grid, machine.peak[work.precision]
    flops = work.shape.train_flops(work.sequence) * work.tokens
    mfu = flops / grid.world / found.seconds / peak
    rate = work.tokens / found.seconds
    figures = {
        "step_s": found.seconds,
        "tokens_per_s": rate,
        "mfu": mfu,
        "bubble_share": found.bubble,
        "parts_s": found.parts,
        "memory_bytes": [vars(one) for one in found.memory],
        "peak_gib": found.peak_gib,
        "room_gib": peaks.room(work, machine) / GIB,
        "fits": found.peak <= peaks.room(work, machine),
    }
    lines = [
        f"{name} on {grid.world} x {machine.name}: TP {grid.tensor}, CP {grid.context}, "
        f"PP {grid.pipeline} x {work.chunks} chunks, DP {grid.data}, EP {grid.expert}, "
        f"ETP {grid.expert_tensor}; {work.micro_batches} micro-batches of {work.micro_batch} "
        f"x {work.sequence} tokens",
        "",
        f"step {found.seconds:.4g} s, {short(rate)} tokens/s, "
        f"{rate / grid.world:.4g} per device, MFU {mfu:.1%} "
        f"(causal attention, recomputation not counted), bubble {found.bubble:.1%}",
    ]
    width = max(len(part) for part in found.parts)
    lines += [
        f"  {part:<{width}}  {seconds:9.4f} s  {seconds / found.seconds:6.1%}"
        for part, seconds in found.parts.items()
        if abs(seconds) > 5e-5 * found.seconds
    ]
    if found.coverage is not None:
        figures["measured_share"] = found.coverage.share
        lines += ["", f"table: {found.coverage}"]
    lines += ["", *_stages(found.memory)]
    verdict = "fits" if figures["fits"] else "DOES NOT FIT"
    lines += ["", f"{verdict}: {found.peak_gib:.1f} GiB; {peaks.describe(work, machine)}"]
    return figures, "\n".join([*lines, *_limits(machine)])


def _stages(memory: Sequence[Held]) -> List[str]:
    """Memory per stage; equal neighbours in one line."""
    parts = ("weights", "gradients", "states", "activations", "transient")
    rows = [["GiB on a rank of stage", *parts, "in all"]]
    cells = [
        [f"{getattr(one, part) / GIB:.2f}" for part in parts] + [f"{one.total / GIB:.2f}"]
        for one in memory
    ]
    first = 0
    for stage in range(len(cells)):
        if stage + 1 == len(cells) or cells[stage + 1] != cells[first]:
            label = str(first) if first == stage else f"{first} to {stage}"
            rows.append([label, *cells[first]])
            first = stage + 1
    return _aligned(rows)
