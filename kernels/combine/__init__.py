"""Add up what the experts made of each token."""

from typing import Optional

import torch
from torch import Tensor

from loopmoe_kernels.permute.slots import check_slots
from loopmoe_kernels.registry import pick

__all__ = ["combine"]


def combine(
    y: Tensor,
    slots: Tensor,
    probs: Optional[Tensor] = None,
    *,
    dropless: bool = False,
    implementation: Optional[str] = None,
) -> Tensor:
    """``out[t] = sum over k of probs[t, k] * y[slots[t, k]]``; dropped ones add nothing.

    Added in fp32 in the order of k: repeatable to the bit. Rows that no slot names get a zero
    gradient.

    Args:
        y: [R, H], fp32, bf16 or fp16.
        slots: [T, K] int32, no row twice; -1: dropped.
        probs: [T, K] fp32; None: ones.
        dropless: the caller promises that none is dropped and every row is named: then no
            gradient is cleared, which halves the writing.
        implementation: None: the device's.

    Returns:
        [T, H] in the dtype of ``y``.

    Raises:
        ValueError: shapes or dtypes do not fit, or R is not T * K beside ``dropless``.
    """
    check_slots("combine", slots.shape[0], slots, y.shape[0], dropless)
    if probs is not None and (probs.shape != slots.shape or probs.dtype != torch.float32):
        raise ValueError(
            f"combine: probs are {list(probs.shape)} {probs.dtype}, not {list(slots.shape)} fp32"
        )
    return pick("combine", y.device, implementation, vendor_fits=dropless)(
        y, slots, probs, dropless
    )
