"""The layouts of a run on a cluster, and which of them is fastest and fits.

What does not divide is never made. Memory is looked at first, since it drops most; what is left
is taken in the order of a lower bound of its time (arithmetic and communication of the busiest
stage without any bubble), and replayed until no bound can beat the best that were found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.sim import step
from loopmoe_train.sim.machine import GIB, Machine
from loopmoe_train.sim.space import Candidate, Space, configured, count
from loopmoe_train.sim.stage import Passes, Stages
from loopmoe_train.sim.step import Estimate
from loopmoe_train.sim.workload import Workload


@dataclass(frozen=True)
class Scored:
    """A layout that was simulated."""

    candidate: Candidate
    workload: Workload
    estimate: Estimate

    def tokens_per_s(self) -> float:
        """Of all devices."""
        return self.workload.tokens / self.estimate.seconds


@dataclass
class Found:
    """What a search came to.

    Attributes:
        best: the fastest that fit, in order.
        pareto: of those simulated the ones that no other beats in both time and memory, by
            memory.
        dropped: reason -> number of layouts.
    """

    best: List[Scored] = field(default_factory=list)
    pareto: List[Scored] = field(default_factory=list)
    dropped: Dict[str, int] = field(default_factory=dict)
    considered: int = 0
    simulated: int = 0
    seconds: float = 0.0


def search(
    run: RunConfig,
    machine: Machine,
    top: int = 10,
    techniques: Sequence[str] = (),
    fixed: Optional[Dict[str, Any]] = None,
) -> Found:
    """Look through the layouts of ``run`` on ``cluster.devices`` devices.

    Args:
        top: how many to return.
        techniques: names of ``TECHNIQUES`` that may be used beyond what the trainer has.
        fixed: settings (as :meth:`Candidate.settings`) that every layout must have.

    Raises:
        Refused: an unknown technique, or no layout divides.
    """
    started = time.perf_counter()
    space = Space(run, machine, tuple(techniques), fixed or {})
    found = Found()
    waiting: List[Tuple[float, int, Candidate, Stages, Passes]] = []
    for candidate, stages in space.fitting(found.dropped):
        found.considered += 1
        passes = stages.passes()
        bound = step.lower_bound(stages, passes)
        waiting.append((bound, len(waiting), candidate, stages, passes))
    waiting.sort(key=lambda item: item[:2])
    scored: List[Scored] = []
    for bound, _, candidate, stages, passes in waiting:
        if len(scored) >= top and bound > scored[top - 1].estimate.seconds:
            count(found.dropped, "slower at best than the last one shown")
            continue
        wrong = problems(configured(run, candidate))
        if wrong:
            count(found.dropped, wrong[0])
            continue
        found.simulated += 1
        one = Scored(candidate, stages.workload, step.estimate_of(stages, passes))
        scored.append(one)
        scored.sort(key=lambda each: each.estimate.seconds)
    found.best = scored[:top]
    found.pareto = _pareto(scored)
    found.seconds = time.perf_counter() - started
    if not found.considered and not found.dropped:
        told = "".join(f", {name}={value}" for name, value in (fixed or {}).items())
        raise Refused(
            f"no layout divides {run.cluster.devices} devices and global_batch_size="
            f"{run.global_batch_size}{told}",
            "choose others" if told else "choose another global batch or number of devices",
        )
    return found


def _pareto(scored: Sequence[Scored]) -> List[Scored]:
    front: List[Scored] = []
    for one in sorted(scored, key=lambda each: (each.estimate.peak, each.estimate.seconds)):
        if not front or one.estimate.seconds < front[-1].estimate.seconds:
            front.append(one)
    return front


def refusal(run: RunConfig, machine: Machine, found: Found) -> Refused:
    """Why there is no layout: the reason that dropped most, and what would help."""
    where = f"{run.model.name} on {run.cluster.devices} x {machine.name}"
    fit = [reason for reason in found.dropped if "fit" in reason]
    others = [reason for reason in found.dropped if "fit" not in reason]
    if others:
        reason = max(others, key=lambda name: found.dropped[name])
        return Refused(f"{where}: no layout is left; most were dropped because {reason}")
    return Refused(
        f"{where}: it fits in no layout (of {machine.memory / GIB:.1f} GiB; {', '.join(fit)})",
        "more devices, or a smaller model; --with swap-optimizer,fine-recompute shows what they do",
    )
