"""How the rows of a tensor are cut into Triton programs: simple rules, no search at run time."""

from typing import Tuple

import torch
import triton

# The two tritons cannot be installed side by side: this one is either theirs or ours.
ASCEND = "ascend" in triton.backends.backends

_VECTOR_CORES = 48  # of an Ascend 910B; more programs than cores only queue
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(op: str, *tensors: torch.Tensor) -> None:
    """Refuse dtypes that the kernels would silently compute in fp32.

    Raises:
        TypeError: one is neither fp32, bf16 nor fp16.
    """
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{op}: {tensor.dtype} is none of fp32, bf16, fp16")


def pieces(width: int) -> Tuple[int, int]:
    """Columns of a piece of a row, and warps, for kernels that look at each element alone.

    16 bytes of bf16 a thread: enough loads are in flight because many programs are, and a row of
    7168 falls into pieces of 1024 without a remainder.
    """
    if ASCEND:
        return min(2048, triton.next_power_of_2(width)), 1
    block = width & -width  # the largest power of two in it
    if block < 256:
        block = triton.next_power_of_2(width)
    block = max(16, min(block, 1024))
    return block, max(1, block // 256)


def whole_row(width: int, tensors: int = 2) -> Tuple[int, int]:
    """Columns at once, and warps, for kernels that sum over a row: all, where registers allow.

    Args:
        tensors: rows held at once.
    """
    block = max(16, triton.next_power_of_2(width))
    if ASCEND:
        return min(2048, block), 1
    block = min(block, 8192)
    return block, max(1, min(8 if tensors < 3 else 16, block // 512))


def rows_together(top_k: int, block: int) -> int:
    """How many of a token's K rows one program takes, one after another; divides K.

    All, so that the token's own row is read once; fewer where a row is so long that few programs
    fit on a multiprocessor, and waiting for one row after another would leave the memory idle.
    """
    if ASCEND or block <= 4096:
        return top_k
    return 2 if top_k % 2 == 0 else 1


def programs(items: int) -> Tuple[int]:
    """The grid for so many items: one each on a GPU, one per core on an Ascend NPU."""
    return (min(items, _VECTOR_CORES) if ASCEND else items,)
