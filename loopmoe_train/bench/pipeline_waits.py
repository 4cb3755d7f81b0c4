"""Step times of core's pipeline schedules on ranks that wait instead of computing.

Rank part; the verb (cli/bench.py) starts it through the launcher. A pass is a pause of known
length, so that four ranks on few cores disturb each other little and what is measured is the
schedule: which rank has to wait for which. The prediction replays the same schedule with the
pauses as they really were.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Dict, List, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from loopmoe_train.bench.core_schedule import run_step, use_stages
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import select
from loopmoe_train.parallel import groups
from loopmoe_train.spec.replay import replay
from loopmoe_train.spec.schedule import table
from loopmoe_train.train.__main__ import leave, main

PASS_S = 0.03  # a forward pass, long against a message between ranks; backward takes twice that
ITERATIONS = 4
CASES = ((2, 4), (4, 8))  # stages, micro-batches


class _Pauses:
    """Acts by waiting, and adds up how long that took."""

    def __init__(self, passes: int) -> None:
        self.wish = {"F": passes * PASS_S, "B": 2 * passes * PASS_S}
        self.took: Dict[str, List[float]] = {"F": [], "B": []}

    def __call__(self, kind: str, _micro_batch: int, _chunk: int) -> None:
        began = time.perf_counter()
        time.sleep(self.wish[kind])
        self.took[kind].append(time.perf_counter() - began)


def measure(run: RunConfig) -> None:
    """Time every case, and let rank 0 write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    rows = []
    for stages, micro_batches in CASES:
        use_stages(stages)
        # Alternating, so that a change of the machine's speed meets both alike.
        steps: Dict[str, List[Tuple[float, float, float, float]]] = {"loop": [], "untied": []}
        for number in range(run.steps + 1):
            for side in steps:
                taken = _step(side == "loop", micro_batches)
                if number:  # the first opens connections
                    steps[side].append(taken)
        rows += [_row(stages, micro_batches, side, taken) for side, taken in steps.items()]
        if dist.get_rank() == 0:
            print(f"{stages} stages, {micro_batches} micro-batches: done", flush=True)
    if dist.get_rank() == 0:
        (run_dir(run) / "bench.json").write_text(json.dumps(rows, indent=1))
    groups.leave()


def _step(loop: bool, micro_batches: int) -> Tuple[float, float, float, float]:
    """Seconds of a step of this pipeline, pauses per stage in it, and of a mean F and B."""
    chunks, passes = (ITERATIONS, 1) if loop else (1, ITERATIONS)
    pauses = _Pauses(passes)
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.barrier()
    began = time.perf_counter()
    run_step(micro_batches, chunks, pauses, overlap=True)
    mine = time.perf_counter() - began
    longest = torch.tensor([mine], dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=group)
    forward, backward = (statistics.fmean(pauses.took[kind]) for kind in ("F", "B"))
    means = torch.tensor([sum(map(sum, pauses.took.values())), forward, backward])
    dist.all_reduce(means, group=group)
    busy, forward, backward = (means / group.size()).tolist()
    return float(longest), busy, forward, backward


def _row(stages: int, micro_batches: int, side: str, steps: List[Any]) -> Dict[str, Any]:
    schedule = table(stages, micro_batches, ITERATIONS if side == "loop" else 1)
    predicted = [
        replay(schedule, lambda _s, _c, kind, f=f, b=b: f if kind == "F" else b)
        for _, _, f, b in steps
    ]
    step_s, _, forward, backward = (statistics.median(column) for column in zip(*steps))
    over = [step[0] / run.makespan for step, run in zip(steps, predicted)]
    return dict(
        stages=stages,
        iterations=ITERATIONS,
        micro_batches=micro_batches,
        side=side,
        steps=len(steps),
        forward_s=forward,
        backward_s=backward,
        step_s=step_s,
        predicted_step_s=statistics.median(run.makespan for run in predicted),
        over_predicted=statistics.median(over),
        over_predicted_low=min(over),
        over_predicted_high=max(over),
        bubble_share=statistics.median(1 - step[1] / step[0] for step in steps),
        predicted_bubble_share=statistics.median(run.bubble_share for run in predicted),
    )


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
