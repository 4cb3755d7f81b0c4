"""What a simulator must beat: three ways to guess a step's time without one."""

from __future__ import annotations

from typing import Callable, Dict

from loopmoe_train.sim import collectives
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.stage import Stages
from loopmoe_train.sim.workload import Workload


def constant_mfu(work: Workload, machine: Machine) -> float:
    """The FLOPs of the step at a fixed share of the peak."""
    flops = work.shape.train_flops(work.sequence) * work.tokens / work.grid.world
    return flops / (0.4 * machine.peak["bf16" if work.precision == "bf16" else work.precision])


def with_bubble(work: Workload, machine: Machine) -> float:
    """As :func:`constant_mfu`, longer by the bubble of a uniform pipeline."""
    bubble = (work.stages - 1) / (work.micro_batches * work.chunks)
    return constant_mfu(work, machine) * (1 + bubble)


def closed_form(work: Workload, machine: Machine) -> float:
    """As MindSpeed's auto_settings: (operators + communication) / (1 - bubble) + data parallel,
    every layer alike and nothing hidden."""
    stages = Stages(work, machine)
    per_visit = 0.0
    for kind in (kind for slot in stages.placed.slots for kind in slot):
        layer, operators = stages.placed.kinds[kind], stages.operators(kind)
        per_visit += sum(o.forward + o.dgrad + o.wgrad for o in operators)
        per_visit += stages.network.forward(layer, 0.0).total
        per_visit += stages.network.backward(layer, 0.0).total
    per_visit += sum(o.forward + o.dgrad + o.wgrad for o in stages.head())
    one = per_visit * work.micro_batches / work.stages
    chunks = work.micro_batches * work.chunks
    bubble = (work.stages - 1) / (chunks + work.stages - 1)
    own = stages.weights(0)
    data = 2 * collectives.gather(
        machine, stages.network.groups.data, 4 * own.dense
    ) + 2 * collectives.gather(machine, stages.network.groups.expert_data, 4 * own.experts)
    return one / (1 - bubble) + data


BASELINES: Dict[str, Callable[[Workload, Machine], float]] = {
    "constant MFU": constant_mfu,
    "constant MFU x bubble": with_bubble,
    "closed form": closed_form,
}
