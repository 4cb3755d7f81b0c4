"""Token-major, so that nothing is added by atomics: a token gathers its K rows in the order of k.

Backward reads y once for both gradients: a row's is the token's times the probability, the
probability's is the dot product of the two rows.
"""

from typing import Any, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import check, pieces, programs, rows_together, whole_row


@triton.jit(do_not_specialize=["items"])
def combine_rows(
    y_ptr, slots_ptr, probs_ptr, out_ptr, items,
    H: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        token = item // PIECES
        columns = (item % PIECES) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < H
        total = tl.full([BLOCK], 0.0, tl.float32)
        for k in tl.static_range(K):  # unrolled: all K loads are in flight together
            slot = tl.load(slots_ptr + token * K + k)
            # The address is a real row's also where the mask lets nothing through.
            start = tl.cast(tl.maximum(slot, 0), tl.int64) * H
            row = tl.load(
                y_ptr + start + columns, mask=inside & (slot >= 0), other=0.0,
                eviction_policy="evict_first",
            ).to(tl.float32)  # fmt: skip
            if WEIGHTED:
                total += row * tl.where(slot >= 0, tl.load(probs_ptr + token * K + k), 0.0)
            else:
                total += row
        out = out_ptr + tl.cast(token, tl.int64) * H + columns
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["items"])
def combine_rows_backward(
    grad_ptr, y_ptr, slots_ptr, probs_ptr, grad_y_ptr, grad_probs_ptr, items,
    H: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One item: GROUP of a token's K rows.
    columns = tl.arange(0, BLOCK)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        origin = tl.cast(item // (K // GROUP), tl.int64) * H
        # A row that fits is kept for the group; a longer one is read again (from the cache).
        grad = tl.load(grad_ptr + origin + columns, mask=columns < H, other=0.0).to(tl.float32)
        for k in tl.static_range(GROUP):
            slot = tl.load(slots_ptr + item * GROUP + k)
            prob = tl.load(probs_ptr + item * GROUP + k)
            start = tl.cast(tl.maximum(slot, 0), tl.int64) * H
            products = tl.full([BLOCK], 0.0, tl.float32)
            for first in range(0, H, BLOCK):
                inside = first + columns < H
                if BLOCK < H:
                    grad = tl.load(
                        grad_ptr + origin + first + columns, mask=inside, other=0.0
                    ).to(tl.float32)  # fmt: skip
                row = tl.load(
                    y_ptr + start + first + columns, mask=inside & (slot >= 0), other=0.0,
                    eviction_policy="evict_first",
                ).to(tl.float32)  # fmt: skip
                products += grad * row
                if slot >= 0:
                    weighted = (grad * prob).to(grad_y_ptr.dtype.element_ty)
                    tl.store(grad_y_ptr + start + first + columns, weighted, mask=inside)
            tl.store(grad_probs_ptr + item * GROUP + k, tl.sum(products))


def launch_combine(y: Tensor, slots: Tensor, probs: Optional[Tensor]) -> Tensor:
    """[R, H], [T, K] -> [T, H], without a graph."""
    (rows, width), (tokens, top_k) = y.shape, slots.shape
    if not rows or not tokens:
        return y.new_zeros(tokens, width)
    out = y.new_empty(tokens, width)
    block, warps = pieces(width)
    parts = triton.cdiv(width, block)
    weights = slots if probs is None else probs  # the kernel looks at none without weights
    combine_rows[programs(tokens * parts)](
        y, slots, weights, out, tokens * parts, width, top_k, block, parts, probs is not None,
        num_warps=warps,
    )  # fmt: skip
    return out


def launch_combine_backward(
    grad: Tensor, y: Tensor, slots: Tensor, probs: Tensor, dropless: bool
) -> Tuple[Tensor, Tensor]:
    """Gradients of y [R, H] and of probs [T, K]."""
    (rows, width), (tokens, top_k) = y.shape, slots.shape
    if not rows or not tokens:
        return torch.zeros_like(y), torch.zeros_like(probs)
    grad_y = torch.empty_like(y) if dropless else torch.zeros_like(y)
    grad_probs = torch.empty_like(probs)
    block, warps = whole_row(width)
    group = rows_together(top_k, block)
    items = tokens * top_k // group
    combine_rows_backward[programs(items)](
        grad, y, slots, probs, grad_y, grad_probs, items, width, top_k, group, block,
        num_warps=warps,
    )  # fmt: skip
    return grad_y, grad_probs


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, slots: Tensor, probs: Optional[Tensor], dropless: bool
    ) -> Tensor:
        check("combine", y)
        y, slots = y.contiguous(), slots.contiguous()
        probs = None if probs is None else probs.contiguous()
        ctx.dropless, ctx.rows = dropless, y.shape[0]
        # y is kept for the probabilities' gradient only.
        ctx.save_for_backward(slots, *(() if probs is None else (probs, y)))
        return launch_combine(y, slots, probs)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> Tuple[Tensor, None, Optional[Tensor], None]:
        from loopmoe_kernels.permute.triton_kernel import launch_permute

        slots, *weighted = ctx.saved_tensors
        grad = grad.contiguous()
        if not weighted:
            return launch_permute(grad, slots, ctx.rows, ctx.dropless), None, None, None
        probs, y = weighted
        grad_y, grad_probs = launch_combine_backward(grad, y, slots, probs, ctx.dropless)
        return grad_y, None, grad_probs, None


def combine(
    y: Tensor, slots: Tensor, probs: Optional[Tensor] = None, dropless: bool = False
) -> Tensor:
    """See ``loopmoe_kernels.combine``."""
    return _Combine.apply(y, slots, probs, dropless)
