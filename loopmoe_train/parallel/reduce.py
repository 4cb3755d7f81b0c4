"""Small sums and maxima over ranks, for reports: not for gradients."""

from __future__ import annotations

from typing import Any, List

import torch.distributed as dist
from torch import Tensor

from loopmoe_train.device.accelerator import accel


def sum_over_ranks(values: Tensor, group: Any = None) -> List[float]:
    """``values`` [n], of any device and dtype, summed over the ranks of ``group`` (None: all).

    A collective call; waits for the device.
    """
    return _reduced(values, dist.ReduceOp.SUM, group)


def max_over_ranks(values: Tensor, group: Any = None) -> List[float]:
    """As :func:`sum_over_ranks`, the largest of each."""
    return _reduced(values, dist.ReduceOp.MAX, group)


def _reduced(values: Tensor, operation: Any, group: Any) -> List[float]:
    mine = values.detach().to(device=accel.current_device(), dtype=accel.sum_dtype)
    dist.all_reduce(mine, op=operation, group=group)
    return [float(value) for value in mine.tolist()]
