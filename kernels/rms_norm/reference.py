"""The definition, in plain operations."""

import torch
from torch import Tensor


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * hidden / sqrt(mean(hidden^2) + eps)``; [..., d] and [d]."""
    return weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)
