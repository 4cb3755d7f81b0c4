"""One program per segment (rank, expert): two prefix sums, then a run of consecutive numbers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import programs

_RUN = 1024


@triton.jit(do_not_specialize=["rows"])
def number_segments(
    counts_ptr, slots_ptr, rows,
    RANKS: tl.constexpr, EXPERTS: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    ranks = tl.arange(0, R)[:, None]
    experts = tl.arange(0, E)[None, :]
    counts = tl.load(
        counts_ptr + ranks * EXPERTS + experts,
        mask=(ranks < RANKS) & (experts < EXPERTS), other=0,
    ).to(tl.int32)  # fmt: skip
    # Compared as fp32: an NPU compares vectors of integers one by one.
    rank_of, expert_of = ranks.to(tl.float32), experts.to(tl.float32)
    numbers = tl.arange(0, RUN)
    # The program behind the last segment marks the rows that no segment has.
    for item in range(tl.program_id(0), RANKS * EXPERTS + 1, tl.num_programs(0)):
        rank = tl.cast(item // EXPERTS, tl.float32)
        expert = tl.cast(item % EXPERTS, tl.float32)
        earlier = (rank_of < rank) | ((rank_of == rank) & (expert_of < expert))
        start = tl.sum(tl.sum(tl.where(earlier, counts, 0), 1), 0)
        if item == RANKS * EXPERTS:
            for first in range(start, rows, RUN):
                here = first + numbers
                tl.store(slots_ptr + here, tl.full([RUN], -1, tl.int32), mask=here < rows)
        else:
            sooner = (expert_of < expert) | ((expert_of == expert) & (rank_of < rank))
            to = tl.sum(tl.sum(tl.where(sooner, counts, 0), 1), 0)
            length = tl.load(counts_ptr + item).to(tl.int32)
            for first in range(0, length, RUN):
                here = first + numbers
                # A count beyond the buffer must not write behind it.
                inside = (here < length) & (start + here < rows)
                tl.store(slots_ptr + start + here, to + here, mask=inside)


def expert_major_index(counts: Tensor, rows: int) -> Tensor:
    """See ``loopmoe_kernels.expert_major_index``."""
    slots = torch.empty(rows, dtype=torch.int32, device=counts.device)
    if rows:
        ranks, experts = counts.shape
        number_segments[programs(ranks * experts + 1)](
            counts.contiguous(), slots, rows, ranks, experts,
            triton.next_power_of_2(ranks), triton.next_power_of_2(experts), _RUN,
        )  # fmt: skip
    return slots
