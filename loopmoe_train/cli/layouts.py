"""``loopmoe plan``: the best layouts of a run on its cluster, and other shapes of its model."""

from __future__ import annotations

import shlex
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.cli.drawing import written
from loopmoe_train.cli.explain import limits
from loopmoe_train.cli.numbers import aligned, short
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.sim import memory as peaks
from loopmoe_train.sim import search as searching
from loopmoe_train.sim.architecture import explore
from loopmoe_train.sim.machine import GIB, Machine, machine_of
from loopmoe_train.sim.search import Found, Scored
from loopmoe_train.sim.space import Candidate
from loopmoe_train.sim.step import Estimate

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
        *limits(machine),
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
    return aligned(rows)


def _why(one: Estimate, best: Estimate) -> str:
    """The part that costs most more than in the best layout."""
    more = {part: one.parts.get(part, 0.0) - best.parts.get(part, 0.0) for part in one.parts}
    part = max(more, key=lambda name: more[name])
    if more[part] <= 0:
        return "the same"
    return f"{part} +{more[part] / best.seconds:.0%}"


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
        *aligned(rows),
        "",
        f"{run.model.name} itself is number {place}, {own.best.estimate.seconds:.3g} s"
        if own is not None
        else f"{run.model.name} itself does not fit",
        "Speed alone: what a shape learns is for a trial to say.",
        *limits(machine),
    ]
    return figures, "\n".join(lines)


def _say(done: int, count: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {count} shapes", end="", file=sys.stderr, flush=True)
