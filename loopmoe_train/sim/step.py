"""Time and memory of one training step: the schedule replayed with the times of its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from loopmoe_train.sim import collectives, memory
from loopmoe_train.sim.coverage import Coverage
from loopmoe_train.sim.machine import GIB, Machine
from loopmoe_train.sim.stage import Pass, Passes, Stages
from loopmoe_train.sim.workload import Workload
from loopmoe_train.spec.replay import Timeline, replay
from loopmoe_train.spec.schedule import table

_STEADY = 3  # rounds of micro-batches per stage after which a schedule repeats itself
_OPTIMIZER_BYTES = 38.0  # read and written for one parameter: gradient (twice), states, weight
_STEP_S = 0.010  # of a step that nothing else counts: data, norms, the host between steps


@dataclass(frozen=True)
class Estimate:
    """What a step costs.

    Attributes:
        seconds: of the step.
        parts: where they go, as the slowest stage spends them; their sum is ``seconds``.
        bubble: share of all stages' time in the pipeline that is idle.
        memory: of one rank of every stage.
        coverage: what measured rates tell of the arithmetic; None without a table of them.
    """

    seconds: float
    parts: Dict[str, float]
    bubble: float
    memory: List[memory.Held]
    coverage: Optional[Coverage] = None

    @property
    def peak(self) -> float:
        """Bytes on the fullest rank."""
        return max(one.total for one in self.memory)

    @property
    def peak_gib(self) -> float:
        return self.peak / GIB


def estimate(workload: Workload, machine: Machine) -> Estimate:
    """Simulate one step of ``workload`` on ``machine``."""
    stages = Stages(workload, machine)
    return estimate_of(stages, stages.passes())


def estimate_of(stages: Stages, passes: Passes) -> Estimate:
    """As :func:`estimate`, of passes that are known already."""
    workload = stages.workload
    if workload.sharding == "full":
        passes = {place: _behind_gathers(stages, place, two) for place, two in passes.items()}
    transfer = stages.network.to_next_stage()
    pipeline, bubble, slowest = _pipeline(workload, passes, transfer)
    data = max(_data_parallel(stages, stage, passes) for stage in range(workload.stages))
    optimizer = max(_optimizer(stages, stage) for stage in range(workload.stages))
    seconds = pipeline + data + optimizer + _STEP_S
    parts = _parts(workload, passes, slowest)
    parts["bubble"] = pipeline - sum(parts.values())
    parts |= {"data parallel": data, "optimizer": optimizer, "other": _STEP_S}
    coverage = stages.coverage() if stages.machine.table is not None else None
    scale = stages.machine.scale
    seconds, parts = seconds * scale, {part: time * scale for part, time in parts.items()}
    return Estimate(seconds, parts, bubble, memory.held(stages), coverage)


def timeline(workload: Workload, machine: Machine, micro_batches: int = 0) -> Timeline:
    """The pipeline's forwards and backwards in seconds, for pictures."""
    stages = Stages(workload, machine)
    return _replay(
        workload,
        stages.passes(),
        stages.network.to_next_stage(),
        micro_batches or workload.micro_batches,
        machine.scale,
    )


def lower_bound(stages: Stages, passes: Passes) -> float:
    """Seconds that a step takes at least: the busiest stage without waiting."""
    workload = stages.workload
    # A stage begins when the first micro-batch has come through those before it, and what it
    # ends with still goes back through them.
    longest = before = 0.0
    for stage in range(workload.stages):
        busy = sum(one.total for chunk in range(workload.chunks) for one in passes[stage, chunk])
        longest = max(longest, before + workload.micro_batches * busy)
        before += sum(one.total for one in passes[stage, 0])
    optimizer = max(_optimizer(stages, stage) for stage in {0, workload.stages - 1})
    return (longest + optimizer + _STEP_S) * stages.machine.scale


def _replay(
    workload: Workload, passes: Passes, transfer: float, micro: int, scale: float = 1.0
) -> Timeline:
    transfer *= scale
    seconds = {place: (scale * f.total, scale * b.total) for place, (f, b) in passes.items()}
    # Without overlap the sender waits as well.
    own = 0.0 if workload.overlap.pipeline else transfer
    schedule = table(workload.stages, micro, workload.chunks)
    return replay(
        schedule,
        lambda stage, chunk, kind: seconds[stage, chunk][kind == "B"] + own,
        transfer,
    )


def _pipeline(workload: Workload, passes: Passes, transfer: float) -> Tuple[float, float, int]:
    """Seconds from the first forward to the last backward, idle share, busiest stage.

    A schedule repeats itself after a few rounds, so that of a long one only the beginning is
    replayed and the rest is added.
    """
    micro, p = workload.micro_batches, workload.stages
    if workload.chunks > 1:
        micro = max(p, micro // p * p)
    busy = [
        micro * sum(t.total for c in range(workload.chunks) for t in passes[stage, c])
        for stage in range(p)
    ]
    slowest = max(range(p), key=lambda stage: busy[stage])
    if p == 1:
        return busy[0], 0.0, 0
    short = (_STEADY + 1) * p
    if micro <= short:
        span = _replay(workload, passes, transfer, micro).makespan
    else:
        one = _replay(workload, passes, transfer, short - p).makespan
        two = _replay(workload, passes, transfer, short).makespan
        span = two + (two - one) * (micro - short) / p
    return span, 1 - sum(busy) / (p * span), slowest


def _parts(workload: Workload, passes: Passes, stage: int) -> Dict[str, float]:
    micro = workload.micro_batches
    whole = Pass(0.0)
    for chunk in range(workload.chunks):
        one, two = passes[stage, chunk]
        whole = whole + one + two
    return {
        "arithmetic": micro * (whole.arithmetic - whole.recompute),
        "recompute": micro * whole.recompute,
        "tensor parallel": micro * whole.tensor,
        "context parallel": micro * whole.context,
        "expert exchange": micro * whole.experts,
    }


def _behind_gathers(
    stages: Stages, place: Tuple[int, int], passes: Tuple[Pass, Pass]
) -> Tuple[Pass, Pass]:
    """FSDP: weights are gathered in both passes, gradients scattered in backward, beside them."""
    workload, machine = stages.workload, stages.machine
    groups, own = stages.network.groups, stages.weights(place[0])
    gathering = scattering = 0.0
    for share, group in ((own.dense, groups.data), (own.experts, groups.expert_data)):
        gathering += collectives.gather(machine, group, 2 * share / workload.chunks)
        scattering += collectives.gather(machine, group, 4 * share / workload.chunks)
    forward, backward = passes

    def behind(one: Pass, time: float) -> Pass:
        return one + Pass(max(0.0, time - one.total))

    return behind(forward, gathering), behind(backward, gathering + scattering)


def _data_parallel(stages: Stages, stage: int, passes: Passes) -> float:
    """Reducing gradients and gathering weights, as far as nothing hides it."""
    workload, machine, groups = stages.workload, stages.machine, stages.network.groups
    if workload.sharding == "full":
        return 0.0
    own = stages.weights(stage)
    reduce = gathering = 0.0
    for size, group in ((own.dense, groups.data), (own.experts, groups.expert_data)):
        if workload.sharding == "none":
            reduce += collectives.all_reduce(machine, group, workload.gradient * size)
        else:
            reduce += collectives.gather(machine, group, workload.gradient * size)
            gathering += collectives.gather(machine, group, 2 * size)
    last = sum(passes[stage, chunk][1].total for chunk in range(workload.chunks))
    first = sum(passes[stage, chunk][0].total for chunk in range(workload.chunks))
    chunks = max(workload.chunks, 1)
    if workload.overlap.gradients:
        reduce = max(reduce / max(8, chunks), reduce - last)
    if workload.overlap.weights:
        gathering = max(gathering / max(8, chunks), gathering - first)
    return reduce + gathering


def _optimizer(stages: Stages, stage: int) -> float:
    workload, machine = stages.workload, stages.machine
    updated = stages.updated(stages.weights(stage))
    time = _OPTIMIZER_BYTES * updated / machine.bandwidth
    if "optimizer" in workload.memory.swap:
        time = max(time, 24 * updated / machine.host)
    return time
