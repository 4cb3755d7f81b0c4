"""The definition, in plain operations."""

from typing import Optional

import torch
from torch import Tensor


def combine(
    y: Tensor, slots: Tensor, probs: Optional[Tensor] = None, dropless: bool = False
) -> Tensor:
    """``out[t] = sum over k of probs[t, k] * y[slots[t, k]]`` in fp32; dropped ones add nothing.

    y: [R, H]; slots: [T, K], -1: dropped; probs: [T, K] or None (ones) -> [T, H].
    """
    if y.shape[0] == 0:
        return y.new_zeros(slots.shape[0], y.shape[1])
    kept = slots >= 0
    weights = kept.to(torch.promote_types(y.dtype, torch.float32))
    if probs is not None:
        weights = weights * probs
    picked = y[slots.clamp_min(0).long()]
    return (weights.unsqueeze(-1) * picked).sum(1).to(y.dtype)
