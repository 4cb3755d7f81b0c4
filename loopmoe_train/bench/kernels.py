"""How near the ops of loopmoe_kernels come to copying, and what else computes the same.

Rank part; the verb (cli/bench.py) starts it through the launcher. In every round each side of an
op runs once, and a large copy beside them, so that a slow phase of the machine meets all alike:
a share is taken against the copies of the same rounds. Before each call a buffer larger than the
caches is read, which leaves nothing of the operands there, and gives the host time to prepare the
call that is timed.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch._functorch.config as functorch

from loopmoe_kernels.permute.cases import ACCELERATOR, PROCESSOR, QUICK
from loopmoe_train.bench.kernels_calls import OURS, Problem, Size, problems, same
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.files import write_text
from loopmoe_train.train.__main__ import leave, main

OPTIONS = "options.json"  # beside run.yaml, from the verb
COPY = "copy"
# Compiling takes longer than everything else: the ends of the sizes' range at one count of tokens.
_COMPILED = ((8192, 2048, 8), (8192, 7168, 8), PROCESSOR[0])

Call = Callable[[], Any]


def measure(run: RunConfig) -> None:
    """Time the ops and write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    accel.set_device(0)
    quick = json.loads((run_dir(run) / OPTIONS).read_text())["quick"]
    accelerated = accel.device_type != "cpu"
    sizes = QUICK if quick else ACCELERATOR if accelerated else PROCESSOR
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    clock = Clock(2**30 if accelerated else 2**20 if quick else 2**26)
    rows: List[Dict[str, Any]] = []
    began = time.perf_counter()
    for number, size in enumerate(sizes):
        print(f"\n{number + 1}/{len(sizes)}: {size[0]} tokens x {size[1]}, top {size[2]}, "
              f"{time.perf_counter() - began:.0f} s so far", flush=True)  # fmt: skip
        for problem in problems(size, dtype):
            for row in _measure(problem, size, clock, run.steps, not quick and size in _COMPILED):
                rows.append(row)
                _tell(row)
        torch._dynamo.reset()
    table = {
        "hardware": accel.hardware,
        "software": accel.software(),
        "precision": run.precision,
        "rounds": run.steps,
        "copy": {"name": clock.name, "bytes": clock.bytes},
        "rows": rows,
    }
    write_text(run_dir(run) / "bench.json", json.dumps(table, indent=1))


class Clock:
    """Times calls, each with cold caches.

    Args:
        size: bytes of the buffer that is read in between and copied.
    """

    def __init__(self, size: int) -> None:
        self._source = torch.ones(size // 8, device=accel.current_device())
        self._target = torch.empty_like(self._source)
        self.bytes = 2 * self._source.nbytes
        copies: Dict[str, Call] = {
            "copy_": lambda: self._target.copy_(self._source),
            "mul": lambda: torch.mul(self._source, 1.0, out=self._target),
        }
        # The faster of the two ways that torch copies.
        times = self.rounds(copies, 5)
        self.name = min(times, key=lambda name: statistics.median(times[name]))
        self.copy = copies[self.name]

    def rounds(self, calls: Dict[str, Call], rounds: int) -> Dict[str, List[float]]:
        """Seconds of every call in every round."""
        seconds: Dict[str, List[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            marks: Dict[str, Tuple[Any, Any]] = {}
            for name, call in calls.items():
                self._target.sum()
                self._source.sum()
                before, after = (accel.Event(enable_timing=True) for _ in range(2))
                before.record()
                call()
                after.record()
                marks[name] = before, after
            accel.synchronize()
            for name, (before, after) in marks.items():
                seconds[name].append(before.elapsed_time(after) / 1e3)
        return seconds


def _measure(
    problem: Problem, size: Size, clock: Clock, rounds: int, compiled: bool
) -> List[Dict[str, Any]]:
    """Rows of the table for forward and backward."""
    forward: Dict[str, Call] = {}
    backward: Dict[str, Call] = {}
    left_out: Dict[str, str] = {}
    wanted: Any = None
    upstream: Optional[torch.Tensor] = None  # the same of all
    # retain_graph, which a repeated backward needs, is refused where buffers are given away.
    with functorch.patch(donated_buffer=False):
        for name, side in problem.sides(compiled).items():
            try:
                out = side(*problem.inputs)
                found, again = [out], None
                if problem.inputs:
                    # Not constant: that of weights which sum to one has no gradient but rounding.
                    upstream = torch.rand_like(out) if upstream is None else upstream
                    again = _gradient(out, problem.inputs, upstream)
                    found += again()
                    found = [one.detach() for one in found]
                else:
                    found = list(out)
                if name == OURS:
                    wanted = found
                elif not same(wanted, found):
                    raise RuntimeError("its result differs from ours")
            except Exception as error:  # a peer that fails is no reason to measure nothing
                if name == OURS:
                    raise
                left_out[name] = (str(error).splitlines() or [type(error).__name__])[0][:200]
                continue
            forward[name] = _forward(side, problem.inputs)
            if again is not None:
                backward[name] = again
        wanted = found = None
        rows = []
        for suffix, moved, calls in (
            ("", problem.forward, forward),
            ("_backward", problem.backward, backward),
        ):
            if calls:
                seconds = clock.rounds({COPY: clock.copy, **calls}, rounds + 1)
                rows.append(_row(problem.op + suffix, size, moved, clock.bytes, seconds, left_out))
    return rows


def _forward(side: Call, inputs: List[Any]) -> Call:
    return lambda: side(*inputs)


def _gradient(out: Any, inputs: List[Any], upstream: Any) -> Call:
    return lambda: list(torch.autograd.grad(out, inputs, upstream, retain_graph=True))


def _row(
    op: str, size: Size, moved: int, copied: int, seconds: Dict[str, List[float]],
    left_out: Dict[str, str],
) -> Dict[str, Any]:  # fmt: skip
    """Medians and quartiles, without the first round."""
    quartiles = {name: _quartiles(times[1:]) for name, times in seconds.items()}
    copy_rate = copied / quartiles.pop(COPY)[1]
    return {
        "op": op,
        "tokens": size[0],
        "hidden": size[1],
        "top_k": size[2],
        "bytes": moved,
        "copy_gbytes_per_s": copy_rate / 1e9,
        "sides": {
            name: {
                "ms": 1e3 * middle,
                "low_ms": 1e3 * low,
                "high_ms": 1e3 * high,
                "gbytes_per_s": moved / middle / 1e9,
                "copy_share": moved / middle / copy_rate,
            }
            for name, (low, middle, high) in quartiles.items()
        },
        "left_out": left_out,
    }


def _quartiles(values: List[float]) -> List[float]:
    return statistics.quantiles(values, method="inclusive") if values[1:] else 3 * values


def _tell(row: Dict[str, Any]) -> None:
    sides = "  ".join(f"{name} {side['ms']:.3f} ms" for name, side in row["sides"].items())
    print(f"  {row['op']:20} {row['sides'][OURS]['copy_share']:5.0%} of copying  {sides}",
          flush=True)  # fmt: skip
    if not row["op"].endswith("_backward"):
        for name, why in row["left_out"].items():
            print(f"  {name} is left out: {why}", flush=True)


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
