"""Where each pair of a token and one of its experts goes in the buffer sorted by expert."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from loopmoe_kernels.registry import pick

__all__ = ["dispatch_index"]

_MOST = 4096  # a chunk's counts of all experts are held at once


def dispatch_index(
    experts: Tensor, num_experts: int, *, implementation: Optional[str] = None
) -> Tuple[Tensor, Tensor]:
    """Stable counting sort: by expert, then token, then k; without waiting for the device.

    Args:
        experts: [T, K] of any integer type; outside of 0 .. num_experts - 1 (as -1): dropped.
        num_experts: E.
        implementation: None: the device's.

    Returns:
        slots: [T, K] int32, the row of each pair, -1 for the dropped; kept pairs fill the rows
            from 0 without a gap.
        counts: [E] int64, pairs of each expert.

    Raises:
        ValueError: ``experts`` is not a matrix of integers, or E is not 1 .. 4096.
    """
    if experts.dim() != 2 or experts.is_floating_point() or experts.dtype == torch.bool:
        raise ValueError(
            f"dispatch_index: experts are {list(experts.shape)} {experts.dtype}, not [T, K] integer"
        )
    if not 1 <= num_experts <= _MOST:
        raise ValueError(f"dispatch_index: {num_experts} experts are not 1 to {_MOST}")
    return pick("dispatch_index", experts.device, implementation)(experts, num_experts)
