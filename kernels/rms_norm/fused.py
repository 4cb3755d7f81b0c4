"""One autograd node with a hand-written backward, for processors.

torch composes its rms_norm of half a dozen operations there, forward and backward each;
accelerators have it as one kernel, which is used.
"""

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = hidden.float()
        inverse = torch.linalg.vecdot(x, x).unsqueeze(-1)
        inverse.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        return (x * inverse).mul_(weight).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:  # type: ignore[override]
        hidden, weight, inverse = ctx.saved_tensors
        normed = hidden.float() * inverse
        by_channel = grad * normed
        grad_weight = by_channel.flatten(0, -2).sum(0)
        # d/dh of h * inverse(h): project out the component along h.
        along = torch.linalg.vecdot(by_channel, weight.float()).unsqueeze(-1)
        along.div_(-normed.shape[-1])
        grad_hidden = (grad * weight.float()).addcmul_(normed, along).mul_(inverse)
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * hidden / sqrt(mean(hidden^2) + eps)``, statistics in fp32.

    Args:
        hidden: [..., d].
        weight: [d].
        eps: added to the mean square.

    Returns:
        [..., d] in the dtype of ``hidden``.
    """
    if not hidden.is_cpu:
        return F.rms_norm(hidden, weight.shape, weight, eps)
    return _RMSNorm.apply(hidden, weight, eps)
