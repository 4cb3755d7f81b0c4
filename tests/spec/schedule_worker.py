"""Write down the order in which megatron-core's schedules call forward and backward.

Runs on the ranks of one launch (tests.dist.ranks).
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Dict, List

import torch.distributed as dist

from loopmoe_train.device.accelerator import select


def record(cases: List[Dict[str, Any]]) -> List[Any]:
    """For each case the calls on this rank's stage, or the words with which core refused."""
    select("cpu")
    from loopmoe_train.bench.core_schedule import run_step, use_stages

    dist.init_process_group(
        "gloo",
        init_method=os.environ["LOOPMOE_RENDEZVOUS"],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    results: List[Any] = []
    made = 0
    for case in cases:
        if case["stages"] != made:  # groups take longer than a case: keep them
            made = case["stages"]
            use_stages(made)
        calls: List[Any] = []

        def note(*call: Any, to: List[Any] = calls) -> None:
            to.append(call)

        sizes = {name: case[name] for name in ("micro_batches", "chunks", "group", "overlap")}
        try:
            run_step(act=note, **sizes)
            results.append(calls)
        except (ValueError, RuntimeError) as error:
            results.append(str(error))
    return results
