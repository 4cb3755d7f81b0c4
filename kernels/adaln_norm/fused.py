"""One autograd node with a hand-written backward: keeps h, gamma and one number per token."""

from typing import Any, Tuple

import torch
from torch import Tensor


class _AdaLNNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        x = hidden.float()
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse.div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(hidden, gamma, inverse)
        out = torch.addcmul(normed, normed, gamma.float()).add_(beta)
        return out.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        hidden, gamma, inverse = ctx.saved_tensors
        g = grad.float()
        normed = hidden.float() * inverse
        grad_gamma = g * normed
        grad_normed = torch.addcmul(g, g, gamma.float())
        # d/dh of h * inverse(h): project out the component along h.
        along = torch.linalg.vecdot(grad_normed, normed).unsqueeze(-1).div_(normed.shape[-1])
        grad_hidden = torch.addcmul(grad_normed, normed, along, value=-1).mul_(inverse)
        return grad_hidden.to(hidden.dtype), grad_gamma.to(gamma.dtype), grad, None


def adaln_norm(hidden: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """See ``loopmoe_kernels.adaln_norm``."""
    return _AdaLNNorm.apply(hidden, gamma, beta, eps)
