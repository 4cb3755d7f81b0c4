"""``loopmoe plan --explain`` and ``--script``: one layout, part by part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.cli.drawing import write_timeline
from loopmoe_train.cli.numbers import aligned, short
from loopmoe_train.errors import Refused
from loopmoe_train.sim import memory as peaks
from loopmoe_train.sim.machine import GIB, Machine, machine_of, named
from loopmoe_train.sim.memory import Held
from loopmoe_train.sim.scripts import launch
from loopmoe_train.sim.step import estimate, timeline
from loopmoe_train.sim.techniques import using
from loopmoe_train.sim.workload import Workload, workload_of
from loopmoe_train.spec.placement import placement_of

_MOST_DRAWN = 4  # micro-batches of a stage in a picture: then a schedule repeats itself


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
    return figures, "\n".join([*lines, *limits(machine)])


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
    return aligned(rows)


def limits(machine: Machine) -> List[str]:
    """What the figures rest on, in words."""
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
