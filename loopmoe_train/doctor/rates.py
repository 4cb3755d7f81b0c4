"""How fast a device multiplies and copies, in seconds of its own."""

from __future__ import annotations

import statistics
import time
from typing import Callable

import torch

from loopmoe_train.device.accelerator import accel

# (edge of the matrices, elements of the copy): large enough to reach a device's best, small
# enough for a processor.
_SIZES = {"cpu": (768, 8 * 2**20)}
_OTHERS = (8192, 512 * 2**20)
_BLOCKS = 7
_BLOCK_S = 0.04


def matmul(precision: str) -> float:
    """FLOP/s of a square matrix product in ``precision``: the median of a few blocks."""
    edge = _SIZES.get(accel.device_type, _OTHERS)[0]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(edge, edge, dtype=dtype, device=accel.current_device())
    return 2.0 * edge**3 / _median_s(lambda: a @ a)


def bandwidth() -> float:
    """Bytes/s that a copy reads and writes."""
    count = _SIZES.get(accel.device_type, _OTHERS)[1]
    a = torch.zeros(count, dtype=torch.float32, device=accel.current_device())
    b = torch.empty_like(a)
    return 2.0 * 4 * count / _median_s(lambda: b.copy_(a))


def _median_s(call: Callable[[], object]) -> float:
    """Seconds of a call by the clock on the wall: what else runs there counts, as in training."""
    call()
    once = max(_block(call, 1), 1e-6)
    calls = max(1, round(_BLOCK_S / once))
    return statistics.median(_block(call, calls) for _ in range(_BLOCKS))


def _block(call: Callable[[], object], calls: int) -> float:
    accel.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    accel.synchronize()
    return (time.perf_counter() - started) / calls
