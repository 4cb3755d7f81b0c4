"""In torch operations, one k at a time: no [T, K, H] is kept or made."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, slots: Tensor, probs: Optional[Tensor], dropless: bool
    ) -> Tensor:
        ctx.save_for_backward(y, slots, probs)
        ctx.dropless = dropless
        return gather_sum(y, slots, probs, dropless)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> Tuple[Tensor, None, Optional[Tensor], None]:
        y, slots, probs = ctx.saved_tensors
        rows, dropless = y.shape[0], ctx.dropless
        g = grad.float()
        # Dropped ones fall into a row behind the last.
        grad_y = y.new_empty(rows, y.shape[1]) if dropless else y.new_zeros(rows + 1, y.shape[1])
        grad_probs = None if probs is None else torch.zeros_like(probs)
        # Written again for every k: new memory costs more than the arithmetic.
        weighted, picked = torch.empty_like(g), y.new_empty(g.shape)
        for k in range(slots.shape[1]) if rows else ():
            slot = slots[:, k].long()
            weighted = g if probs is None else torch.mul(g, probs[:, k : k + 1], out=weighted)
            target = slot if dropless else torch.where(slot < 0, rows, slot)
            grad_y.index_copy_(0, target, weighted.to(y.dtype))
            if probs is not None:
                torch.index_select(y, 0, slot.clamp_min(0), out=picked)
                dots = torch.mul(picked, g, out=weighted).sum(-1)
                grad_probs[:, k] = dots if dropless else dots.masked_fill_(slot < 0, 0)
        return grad_y[:rows], None, grad_probs, None


def combine(
    y: Tensor, slots: Tensor, probs: Optional[Tensor] = None, dropless: bool = False
) -> Tensor:
    """See ``loopmoe_kernels.combine``."""
    return _Combine.apply(y, slots, probs, dropless)


def gather_sum(y: Tensor, slots: Tensor, probs: Optional[Tensor], dropless: bool) -> Tensor:
    """``sum over k of probs[t, k] * y[slots[t, k]]``, without a graph."""
    tokens, top_k = slots.shape
    if not y.shape[0] or not tokens:
        return y.new_zeros(tokens, y.shape[1])
    if dropless and y.dtype == torch.float32:  # one pass; in bf16 it rounds the probabilities
        if top_k == 1 and probs is None:
            return y.index_select(0, slots.flatten())
        return F.embedding_bag(slots, y, mode="sum", per_sample_weights=probs)
    total = torch.zeros(tokens, y.shape[1], dtype=torch.float32, device=y.device)
    for k in range(top_k):
        slot = slots[:, k].long()
        picked = y.index_select(0, slot if dropless else slot.clamp_min(0))
        if not dropless:
            picked.masked_fill_((slot < 0).unsqueeze(1), 0)
        if probs is None:
            total.add_(picked)
        else:
            total.addcmul_(picked.float(), probs[:, k : k + 1])
    return total.to(y.dtype)
