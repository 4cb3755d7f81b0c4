"""torch_npu's op, which is trainable: it gathers by the row of each pair, which slots are when
none is dropped. Written to its documentation; never run on an NPU."""

from typing import Optional

import torch
from torch import Tensor

from loopmoe_kernels.registry import vendor_op


def combine(
    y: Tensor, slots: Tensor, probs: Optional[Tensor] = None, dropless: bool = False
) -> Tensor:
    """See ``loopmoe_kernels.combine``; only ``dropless``."""
    if not dropless:
        raise ValueError("combine: torch_npu's op knows no dropped slots; use the triton one")
    if probs is None:  # without probabilities the op takes K for 1
        probs = torch.ones(slots.shape, dtype=torch.float32, device=y.device)
    return vendor_op("npu_moe_token_unpermute")(y, slots.flatten(), probs)
