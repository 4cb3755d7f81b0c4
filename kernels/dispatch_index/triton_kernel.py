"""A counting sort without atomics: a program looks for one expert in one chunk of the pairs.

The first kernel counts, a prefix sum over (expert, chunk) says where each chunk's pairs of an
expert begin, the second kernel numbers them in their order. All reads and writes are contiguous,
so the same source suits an NPU; a chunk is read once per expert, but from the cache.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import ASCEND, programs

_CHUNK = 2048 if ASCEND else 4096


@triton.jit(do_not_specialize=["pairs", "chunks", "items"])
def count_pairs(experts_ptr, counts_ptr, pairs, chunks, items, BLOCK: tl.constexpr):
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        expert = item // chunks
        place = (item % chunks) * BLOCK + tl.arange(0, BLOCK)
        # Compared as fp32 (exact): an NPU compares integers one by one.
        found = tl.load(experts_ptr + place, mask=place < pairs, other=-1).to(tl.float32)
        hit = found == tl.cast(expert, tl.float32)
        tl.store(counts_ptr + item, tl.sum(hit.to(tl.int32)))


@triton.jit(do_not_specialize=["pairs", "chunks", "items", "experts"])
def number_pairs(
    experts_ptr, starts_ptr, slots_ptr, pairs, chunks, items, experts, BLOCK: tl.constexpr
):
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        expert = item // chunks
        place = (item % chunks) * BLOCK + tl.arange(0, BLOCK)
        inside = place < pairs
        found = tl.load(experts_ptr + place, mask=inside, other=-1).to(tl.float32)
        hit = found == tl.cast(expert, tl.float32)
        before = tl.load(starts_ptr + item) - 1
        tl.store(slots_ptr + place, before + tl.cumsum(hit.to(tl.int32), 0), mask=inside & hit)
        if expert == 0:
            dropped = (found < 0.0) | (found >= tl.cast(experts, tl.float32))
            tl.store(slots_ptr + place, tl.full([BLOCK], -1, tl.int32), mask=inside & dropped)


def dispatch_index(experts: Tensor, num_experts: int) -> Tuple[Tensor, Tensor]:
    """See ``loopmoe_kernels.dispatch_index``."""
    slots = torch.empty(experts.shape, dtype=torch.int32, device=experts.device)
    pairs = experts.numel()
    if pairs == 0:
        return slots, torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    experts = experts.contiguous()
    chunks = triton.cdiv(pairs, _CHUNK)
    items = num_experts * chunks
    found = torch.empty(items, dtype=torch.int32, device=experts.device)
    count_pairs[programs(items)](experts, found, pairs, chunks, items, _CHUNK, num_warps=8)
    starts = found.cumsum(0, dtype=torch.int32).sub_(found)
    number_pairs[programs(items)](
        experts, starts, slots, pairs, chunks, items, num_experts, _CHUNK, num_warps=8
    )
    return slots, found.view(num_experts, chunks).sum(1)
