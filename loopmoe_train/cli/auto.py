"""``parallel=auto`` and ``model.moe.dispatcher=auto``: the simulator chooses before anything is
started. Of a layout it is held against what was measured at the end."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from loopmoe_train.errors import Refused
from loopmoe_train.sim.machine import GIB
from loopmoe_train.spec.exchange import DISPATCHERS

AUTO = "parallel=auto"
DISPATCHER = "model.moe.dispatcher="
_SETTLED = 3  # steps before which caches and allocators still warm up


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        settings: as words of a command line.
        step_s, peak_gib: predicted.
        scale: that is in ``step_s`` (``cluster.efficiency.scale``).
    """

    settings: List[str]
    step_s: float
    peak_gib: float
    scale: float = 1.0


def resolve(words: Sequence[str]) -> Tuple[List[str], Optional[Choice]]:
    """The command line with every ``auto`` replaced by what is predicted fastest.

    Raises:
        Refused: no layout fits, or the cluster is not described.
    """
    if AUTO not in words:
        return with_dispatcher(words), None
    from loopmoe_train.cli.layouts import find
    from loopmoe_train.sim.memory import of_device
    from loopmoe_train.sim.search import refusal

    if "engine=deepspeed" in words:
        raise Refused(
            f"{AUTO} searches the layouts of engine=megatron, among them pipelines",
            "with engine=deepspeed name parallel=data or parallel=expert",
        )
    others = [word for word in searched(words) if word != AUTO]
    for word in others:
        if word.startswith("parallel="):
            raise Refused(f"{AUTO} and {word} contradict each other", "leave one out")
    run, machine, found = find(others, 1, ())
    if not found.best:
        raise refusal(run, machine, found)
    best = found.best[0]
    memory = best.estimate.peak
    if run.cluster.device == "cpu":
        # what is measured there is all of the process
        memory = of_device(memory, best.workload, machine)
    settings = ["parallel=data", *best.candidate.overrides()]
    _say(
        f"parallel=auto: {found.considered} layouts, {found.seconds:.1f} s; chosen: "
        f"{' '.join(best.candidate.overrides())}"
    )
    _say(f"predicted: {best.estimate.seconds:.3g} s a step, {memory / GIB:.2f} GiB a process")
    if machine.table is not None:
        for other in _other_versions(machine.table.header.software):
            _say(f"{other}: `loopmoe bench ops` measures the table anew")
    # What the user set himself comes last, as it does in the search.
    return [*settings, *others], Choice(
        settings, best.estimate.seconds, memory / GIB, machine.scale
    )


def searched(words: Sequence[str]) -> List[str]:
    """The command line without the ``auto`` that a search answers anyway."""
    return [word for word in words if word != DISPATCHER + "auto"]


def with_dispatcher(words: Sequence[str]) -> List[str]:
    """The command line with ``model.moe.dispatcher=auto`` replaced by the exchange of tokens that
    is predicted fastest in the run's layout.

    Raises:
        Refused: the run cannot be, or the cluster is not described.
    """
    if DISPATCHER + "auto" not in words:
        return list(words)
    from loopmoe_train.config.compose import compose
    from loopmoe_train.config.rules import problems
    from loopmoe_train.sim.machine import machine_of
    from loopmoe_train.sim.step import estimate
    from loopmoe_train.sim.workload import workload_of

    others = searched(words)
    run = compose([*others, DISPATCHER + "alltoall"])
    machine, seconds = machine_of(run.cluster), {}
    for kind in DISPATCHERS:
        run.model.moe.dispatcher = kind
        if not problems(run):
            seconds[kind] = estimate(workload_of(run), machine).seconds
    best = min(seconds, key=lambda kind: seconds[kind])
    found = ", ".join(f"{kind} {time:.4g} s a step" for kind, time in seconds.items())
    _say(f"model.moe.dispatcher=auto: {best} ({found})")
    return [*others, DISPATCHER + best]


def _say(line: str) -> None:
    """To stderr: what a dry run prints is to be piped."""
    print(line, file=sys.stderr, flush=True)


def _other_versions(software: Dict[str, str]) -> List[str]:
    """Of the software that a table was measured with, what is installed in another version."""
    from importlib import metadata

    found = []
    for name, version in software.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # a driver, or what this machine does not need
        if here.partition("+")[0] != version.partition("+")[0]:
            found.append(f"operators were measured with {name} {version}, here is {here}")
    return found


def compare(choice: Choice, folder: Path) -> None:
    """Print predicted against measured step time and memory of a finished run."""
    from loopmoe_train.observe.rundata import load_runs  # needs numpy, which a plan does not

    run = load_runs([folder])[0]
    seconds = run.metrics.train.get("step_s", ())
    settled = [float(one) for one in seconds[_SETTLED:]]
    memory = run.summary.get("peak_memory_gib")
    if not settled:
        return
    measured = statistics.median(settled)
    line = f"predicted {choice.step_s:.3g} s a step, measured {measured:.3g} "
    line += f"({choice.step_s / measured - 1:+.0%})"
    if isinstance(memory, (int, float)):
        line += (
            f"; predicted {choice.peak_gib:.2f} GiB, measured {memory:.2f} "
            f"({choice.peak_gib / memory - 1:+.0%})"
        )
    print(line, flush=True)
    factor = choice.scale * measured / choice.step_s
    print(
        f"to plan with what was measured: cluster.efficiency.scale={factor:.2f} (of models like "
        "this one, on this machine and software)",
        flush=True,
    )
