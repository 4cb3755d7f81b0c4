"""What the simulator says of a published row, in the row's own unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from loopmoe_train.sim import memory as sim_memory
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.published import rows as published
from loopmoe_train.sim.published.rows import Row, Skipped
from loopmoe_train.sim.stage import Stages
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.workload import Workload

_SECONDS = {"s": 1.0, "ms": 1e-3}
_BYTES = {"MiB": 2.0**20, "GiB": 2.0**30, "GB": 1e9}


@dataclass(frozen=True)
class Case:
    """A row that can be predicted.

    Attributes:
        kind: ``time`` or ``memory``.
        seconds: of the measured step; of a ``memory`` row nothing.
        to_unit: from seconds (or bytes) to the row's unit.
    """

    row: Row
    workload: Workload
    machine: Machine
    kind: str
    to_unit: Callable[[float], float]

    @property
    def measured(self) -> float:
        """Seconds or bytes."""
        value = self.row.value
        # every unit is proportional to seconds or to their inverse
        one = self.to_unit(1.0)
        return one / value if self.inverse else value / one

    @property
    def inverse(self) -> bool:
        """Whether more of the unit is less time."""
        return self.kind == "time" and self.to_unit(2.0) < self.to_unit(1.0)


def case_of(row: Row) -> Case:
    """The row as a case.

    Raises:
        Skipped: why it cannot be predicted.
    """
    unit, metric = row.unit, row.metric
    if not 0 < row.value < float("inf"):
        raise Skipped("its value is no number above 0")
    if metric.startswith("MFU_relative"):
        raise Skipped("relative to another run")
    work = published.workload(row)
    machine = published.machine(row)
    if work.precision not in machine.peak:
        raise Skipped(f"{machine.name} has no {work.precision}")
    if metric.startswith("peak_mem") or metric == "activation_mem":
        size = _BYTES.get(unit)
        if size is None:
            raise Skipped(f"unit {unit!r} of {metric}")
        return Case(row, work, machine, "memory", lambda value: value / size)
    tokens = work.tokens
    devices = work.grid.world
    if metric == "step_time" and unit in _SECONDS:
        scale = _SECONDS[unit]
        return Case(row, work, machine, "time", lambda seconds: seconds / scale)
    if metric == "tokens_per_s_total":
        return Case(row, work, machine, "time", lambda seconds: tokens / seconds)
    if metric == "throughput":
        each = devices / 2 if "A3" in unit and row.machine == "ascend_a3" else devices
        return Case(row, work, machine, "time", lambda seconds: tokens / seconds / each)
    flops = work.shape.train_flops(work.sequence) * tokens / devices
    flops += _noncausal(work) * tokens / devices
    if metric == "MFU":
        peak = machine.peak["bf16"]
        return Case(row, work, machine, "time", lambda s: 100 * flops / peak / s)
    if metric == "model_TFLOPS":
        return Case(row, work, machine, "time", lambda s: flops / 1e12 / s)
    if metric.startswith("TFLOPS_per_GPU_incl"):
        return Case(row, work, machine, "time", lambda s: flops * 4 / 3 / 1e12 / s)
    raise Skipped(f"metric {metric} in {unit} is not simulated")


def _noncausal(work: Workload) -> float:
    """More FLOPs of a token where attention counts all pairs, as published MFU mostly does."""
    shape = work.shape
    return sum(
        6 * work.sequence / 2 * layer.attention.heads
        * (layer.attention.qk_dim + layer.attention.v_dim)
        for layer in (shape.layers[index] for index in shape.order)
    )  # fmt: skip


def raw(case: Case) -> float:
    """Predicted seconds or bytes, without any calibration."""
    metric = case.row.metric
    if case.kind == "time":
        return estimate(case.workload, case.machine).seconds
    stages = Stages(case.workload, case.machine)
    if metric == "peak_mem_saving":
        # of recomputing the activation function
        kept = published.without(case.workload, "act")
        return max(
            one.total - two.total
            for one, two in zip(
                sim_memory.held(Stages(kept, case.machine)), sim_memory.held(stages)
            )
        )
    if metric == "activation_mem":
        return sim_memory.held(stages)[0].activations
    if case.row.family == "ASC-CI":
        # Megatron prints its memory once, when the first step is done
        return max(one.first_step for one in sim_memory.held(stages))
    return max(one.total for one in sim_memory.held(stages))
