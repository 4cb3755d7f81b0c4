"""In torch operations: one gather forward, K gathers added in fp32 backward."""

from typing import Any, Tuple

import torch
from torch import Tensor

from loopmoe_kernels.combine.fused import gather_sum


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int, dropless: bool) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.dropless = dropless
        return scatter_rows(x, slots, rows, dropless)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None, None, None]:  # type: ignore[override]
        (slots,) = ctx.saved_tensors
        return gather_sum(grad, slots, None, ctx.dropless), None, None, None


def permute(x: Tensor, slots: Tensor, rows: int, dropless: bool = False) -> Tensor:
    """See ``loopmoe_kernels.permute``."""
    return _Permute.apply(x, slots, rows, dropless)


def scatter_rows(x: Tensor, slots: Tensor, rows: int, dropless: bool) -> Tensor:
    """``out[slots[t, k]] = x[t]``, without a graph."""
    tokens, top_k = slots.shape
    if tokens == 0 or rows == 0:
        return x.new_zeros(rows, x.shape[1])
    target = slots.flatten().long()
    token = torch.arange(tokens, device=x.device).repeat_interleave(top_k)
    if dropless:
        return x.index_select(0, torch.empty_like(target).scatter_(0, target, token))
    # Dropped ones fall into a row behind the last; rows that nobody names are cleared after.
    source = torch.full((rows + 1,), -1, device=x.device)
    source.scatter_(0, torch.where(target < 0, rows, target), token)
    source = source[:rows]
    return x.index_select(0, source.clamp_min(0)).masked_fill_((source < 0).unsqueeze(1), 0)
