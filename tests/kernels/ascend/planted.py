"""Kernels with a fault each, all of which triton-ascend lowers without a word: the lint must find
them, and call each what it is."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import triton
import triton.language as tl

from tests.kernels.launches import Launch


@triton.jit
def large_tile(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.load(x_ptr + columns) * 2)


@triton.jit
def wide_atomic(x_ptr, out_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(out_ptr + tl.program_id(0), tl.load(x_ptr + tl.program_id(0)))


@triton.jit
def double_precision(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    squared = tl.load(x_ptr + columns).to(tl.float64) * tl.load(x_ptr + columns).to(tl.float64)
    tl.store(out_ptr + columns, squared.to(tl.float32))


@triton.jit
def gather(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.load(x_ptr + tl.load(out_ptr + columns)))


@triton.jit
def scattered_store(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + columns)
    tl.store(out_ptr + columns, x, mask=x > 0.0)


@triton.jit
def integer_compare(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.where(tl.load(x_ptr + columns) == 3, 1, 0))


@triton.jit
def sorts(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.sort(tl.load(x_ptr + columns)))


# kernel, types of its two pointers, block, grid -> a part of what must be said
_PLANTED: Dict[str, Tuple[Any, str, str, int, Tuple[int, ...]]] = {
    "on-chip memory": (large_tile, "*fp32", "*fp32", 2**20, (4,)),
    "an atomic operation on 64 bits": (wide_atomic, "*i64", "*i64", 16, (4,)),
    "float64": (double_precision, "*fp32", "*fp32", 256, (4,)),
    "a vector of indices": (gather, "*i32", "*i32", 256, (4,)),
    "scattered elements": (scattered_store, "*fp32", "*fp32", 256, (4,)),
    "integer vectors": (integer_compare, "*i32", "*i32", 256, (4,)),
    "a sort": (sorts, "*i32", "*i32", 256, (4,)),
    "grid": (large_tile, "*fp32", "*fp32", 256, (70000,)),
}


def planted() -> Dict[str, Launch]:
    """What must be said -> the launch of which."""
    return {
        what: Launch(
            kernel, grid, 1, {"x_ptr": x, "out_ptr": out, "BLOCK": "constexpr"}, {"BLOCK": block}
        )
        for what, (kernel, x, out, block, grid) in _PLANTED.items()
    }
