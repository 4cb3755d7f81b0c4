"""A counting sort without atomics: a program owns a chunk of the pairs.

The first kernel counts the experts of each chunk, a prefix sum over (expert, chunk) says where
each chunk's pairs of an expert begin, the second kernel numbers them in their order. Each program
writes all of its own chunk: a store of scattered elements becomes, on an NPU, one of the whole
block with what was read there before, which two programs must not do to each other. For its sake
numbers are compared as fp32, which holds them exactly: it compares integers one by one.
"""

from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import ASCEND, programs

_CHUNK = 64 if ASCEND else 128  # a square of it is held


@triton.jit(do_not_specialize=["pairs", "chunks", "experts"])
def count_pairs(
    experts_ptr, counts_ptr, pairs, chunks, experts, BLOCK: tl.constexpr, BINS: tl.constexpr
):
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        place = chunk * BLOCK + tl.arange(0, BLOCK)
        found = tl.load(experts_ptr + place, mask=place < pairs, other=-1).to(tl.int32)
        as_float = found.to(tl.float32)
        kept = (as_float >= 0.0) & (as_float < tl.cast(experts, tl.float32))
        # The last bin is no expert's: there are more bins than experts.
        counts = tl.histogram(tl.where(kept, found, BINS - 1), BINS)
        bins = tl.arange(0, BINS)
        tl.store(counts_ptr + bins * chunks + chunk, counts, mask=bins < experts)


@triton.jit(do_not_specialize=["pairs", "chunks", "experts"])
def number_pairs(experts_ptr, starts_ptr, slots_ptr, pairs, chunks, experts, BLOCK: tl.constexpr):
    order = tl.arange(0, BLOCK).to(tl.float32)
    for chunk in range(tl.program_id(0), chunks, tl.num_programs(0)):
        place = chunk * BLOCK + tl.arange(0, BLOCK)
        inside = place < pairs
        found = tl.load(experts_ptr + place, mask=inside, other=-1).to(tl.float32)
        earlier = (found[:, None] == found[None, :]) & (order[None, :] < order[:, None])
        slots = tl.sum(earlier.to(tl.int32), 1)
        for expert in range(experts):
            start = tl.load(starts_ptr + expert * chunks + chunk)
            slots += tl.where(found == tl.cast(expert, tl.float32), start, 0)
        kept = (found >= 0.0) & (found < tl.cast(experts, tl.float32))
        tl.store(slots_ptr + place, tl.where(kept, slots, -1), mask=inside)


def dispatch_index(experts: Tensor, num_experts: int) -> Tuple[Tensor, Tensor]:
    """See ``loopmoe_kernels.dispatch_index``."""
    slots = torch.empty(experts.shape, dtype=torch.int32, device=experts.device)
    pairs = experts.numel()
    if pairs == 0:
        return slots, torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    experts = experts.contiguous()
    chunks = triton.cdiv(pairs, _CHUNK)
    found = torch.empty(num_experts, chunks, dtype=torch.int32, device=experts.device)
    bins = max(128, triton.next_power_of_2(num_experts + 1))  # a thread's each, at least
    count_pairs[programs(chunks)](experts, found, pairs, chunks, num_experts, _CHUNK, bins)
    flat = found.view(-1)
    starts = flat.cumsum(0, dtype=torch.int32).sub_(flat)
    number_pairs[programs(chunks)](experts, starts, slots, pairs, chunks, num_experts, _CHUNK)
    return slots, found.sum(1)
