"""The definition, in plain operations (arXiv 2606.04438, section 2)."""

import torch
from torch import Tensor


def adaln_norm(hidden: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """``(1 + gamma) * hidden / sqrt(mean(hidden^2) + eps) + beta``; all [..., d]."""
    inverse = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)
    return (1 + gamma) * (hidden * inverse) + beta
