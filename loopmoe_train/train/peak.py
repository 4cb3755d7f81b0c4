"""The denominator of ``mfu``: what the devices of this run could do at best."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.parallel.reduce import sum_over_ranks


def peak_flops(run: RunConfig) -> float:
    """FLOP/s of all devices together.

    The cluster's data sheet if it names a peak; else the sum over ranks of a measured square
    matrix product, all ranks at once (they share the cores of one machine).
    """
    named = (
        run.cluster.peak_tflops_bf16 if run.precision == "bf16" else run.cluster.peak_tflops_fp32
    )
    if named is not None:
        return named * 1e12 * run.cluster.devices
    size, repeats = 768, 6
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=dtype, device=accel.current_device())
    best = float("inf")
    dist.barrier()
    for _ in range(repeats):
        started = time.perf_counter()
        a @ a
        accel.synchronize()
        best = min(best, time.perf_counter() - started)
    return sum_over_ranks(torch.tensor([2.0 * size**3 / best], dtype=torch.float64))[0]
