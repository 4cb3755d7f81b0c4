"""Rates of single operators on this machine, as the table that the simulator reads.

Rank part; the verb (cli/bench.py) starts it through the launcher. What is measured is what
training calls: torch's products, its grouped product, the attention of model/attend.py and the
norm and activation of loopmoe_kernels. Every round measures all operators, so that a slow phase
of the machine meets all alike; a point is the lower quartile of its repetitions, because what
disturbs one only makes it longer.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List

import torch

from loopmoe_train.bench.ops_calls import Pool, call_of
from loopmoe_train.bench.ops_grid import grid_of, size_of
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.errors import RunFailed
from loopmoe_train.files import write_text
from loopmoe_train.sim.table import LAYOUTS, Header, Point, Size, Table
from loopmoe_train.train.__main__ import leave, main

OPTIONS = "options.json"  # beside run.yaml, from the verb
_BLOCKS = 3  # repetitions of an operator in a round
_LONG_S = 0.005  # an operator that is repeated once a round
_ROUND_S = 8.0  # a round that takes longer costs one of the others
_LAUNCHES = 4.0  # that an operator must outlast on a device which works beside the host


@dataclass
class _Operator:
    """One operator, and seconds of a call by repetition."""

    kind: str
    layout: str
    problem: Size
    size: Size
    calls: int = 1  # in a repetition
    seconds: List[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.layout}"

    def repeat(self, call: Callable[[], Any], block_s: float) -> None:
        """Measure it a few times; a repetition takes ``block_s`` at least."""
        if not self.seconds:
            call()
            self.calls = max(1, min(200, math.ceil(block_s / _block(call, 1))))
        elif self.calls > 1:
            call()
        first = _block(call, self.calls)
        self.seconds.append(first)
        if first < _LONG_S:
            self.seconds += [_block(call, self.calls) for _ in range(_BLOCKS - 1)]


def measure(run: RunConfig) -> None:
    """Time the operators and let rank 0 write the table, ``bench.json``, into the run folder."""
    select(run.cluster.device)
    several, rank = run.cluster.devices > 1, 0
    if several:
        from loopmoe_train.parallel import groups  # imports megatron.core, which one has no use for
        from loopmoe_train.parallel.reduce import sum_over_ranks

        groups.join(run)
        rank = torch.distributed.get_rank()
    else:
        accel.set_device(0)
    options = json.loads((run_dir(run) / OPTIONS).read_text())
    grid = grid_of(accel.device_type, options["quick"])
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    operators = [
        _Operator(kind, layout, problem, size_of(kind, layout, problem, dtype.itemsize))
        for kind, problems in grid.problems().items()
        for layout in LAYOUTS[kind]
        for problem in problems
    ]
    pool = Pool([(one.kind, one.layout, one.problem) for one in operators], dtype)
    launch = min(_launch() for _ in range(10))
    began, left_out = time.perf_counter(), {}
    for number in range(run.steps):
        for one in list(operators):
            try:
                one.repeat(call_of(one.kind, one.layout, one.problem, pool), grid.block_s)
            except RuntimeError as error:  # not implemented here, or too large
                operators.remove(one)
                left_out[f"{one.name} {one.size}"] = str(error).splitlines()[0][:200]
        spent = time.perf_counter() - began
        if several:  # all ranks begin a round together, or none does
            spent = sum_over_ranks(torch.tensor([spent]))[0] / run.cluster.devices
        if rank == 0:
            print(f"round {number + 1}/{run.steps}: {len(operators)} operators, "
                  f"{spent:.0f} s so far", flush=True)  # fmt: skip
        if spent > _ROUND_S * run.steps:
            break
    if rank == 0:
        for what, why in left_out.items():
            print(f"{what} is left out: {why}", flush=True)
        write_text(run_dir(run) / "bench.json", _table(run, operators, launch).text())
    if several:
        groups.leave()


def _block(call: Callable[[], Any], calls: int) -> float:
    """Seconds of a call. One thread of a processor is asked for its own time: what else runs there
    may interrupt it."""
    alone = accel.device_type == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if alone else time.perf_counter
    accel.synchronize()
    started = now()
    for _ in range(calls):
        call()
    accel.synchronize()
    return (now() - started) / calls


def _launch() -> float:
    """Seconds of an operator that has next to nothing to do."""
    one = torch.zeros(1, device=accel.current_device())
    return _block(lambda: one.add(1.0), 200)


def _table(run: RunConfig, operators: List[_Operator], launch: float) -> Table:
    """The table of what was measured.

    The launch is the simulator's own term: on a processor it is taken off; another device works
    while the next operator is launched, unless the operator is too short to tell.

    Raises:
        RunFailed: there is nothing in it.
    """
    waits = accel.device_type == "cpu"
    points: Dict[str, Dict[Size, Point]] = {}
    for one in sorted(operators, key=lambda one: one.size):
        low, middle, high = _quartiles(one.seconds)
        if not waits and low < _LAUNCHES * launch:
            continue
        seconds = max(low - launch, low / 2) if waits else low
        points.setdefault(one.name, {})[one.size] = Point(seconds, (high - low) / middle)
    if not points:
        raise RunFailed("no operator could be measured", "see what was left out, and why")
    header = Header(
        hardware=accel.hardware,
        software=accel.software(),
        precision=run.precision,
        date=datetime.date.today().isoformat(),
        processes=run.cluster.devices,
        threads=torch.get_num_threads(),
        launch_us=round(1e6 * launch, 2),
    )
    names = [f"{kind}/{layout}" for kind, layouts in LAYOUTS.items() for layout in layouts]
    return Table(header, {name: points[name] for name in names if name in points})


def _quartiles(values: List[float]) -> List[float]:
    return statistics.quantiles(values, method="inclusive") if values[1:] else 3 * values


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
