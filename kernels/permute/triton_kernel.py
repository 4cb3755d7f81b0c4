"""Token-major: a row is read once and written to its K places."""

from typing import Any, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import check, pieces, programs


@triton.jit(do_not_specialize=["items"])
def permute_rows(
    x_ptr, slots_ptr, out_ptr, items,
    H: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        token = item // PIECES
        columns = (item % PIECES) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < H
        # Rows times width passes 2^31.
        row = tl.load(x_ptr + tl.cast(token, tl.int64) * H + columns, mask=inside)
        for k in tl.static_range(K):
            slot = tl.load(slots_ptr + token * K + k)
            if slot >= 0:
                tl.store(out_ptr + tl.cast(slot, tl.int64) * H + columns, row, mask=inside)


def launch_permute(x: Tensor, slots: Tensor, rows: int, dropless: bool) -> Tensor:
    """[T, H] -> [rows, H], without a graph."""
    (tokens, width), top_k = x.shape, slots.shape[1]
    # Clearing costs as much as the copies: not where every row is written anyway.
    out = x.new_empty(rows, width) if dropless else x.new_zeros(rows, width)
    if tokens and rows:
        block, warps = pieces(width)
        parts = triton.cdiv(width, block)
        permute_rows[programs(tokens * parts)](
            x, slots, out, tokens * parts, width, top_k, block, parts, num_warps=warps
        )
    return out


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, rows: int, dropless: bool) -> Tensor:
        check("permute", x)
        slots = slots.contiguous()
        ctx.save_for_backward(slots)
        return launch_permute(x.contiguous(), slots, rows, dropless)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, None, None, None]:  # type: ignore[override]
        from loopmoe_kernels.combine.triton_kernel import launch_combine

        (slots,) = ctx.saved_tensors
        return launch_combine(grad.contiguous(), slots, None), None, None, None


def permute(x: Tensor, slots: Tensor, rows: int, dropless: bool = False) -> Tensor:
    """See ``loopmoe_kernels.permute``."""
    return _Permute.apply(x, slots, rows, dropless)
