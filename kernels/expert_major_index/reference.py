"""The definition, in plain operations."""

import torch
from torch import Tensor


def expert_major_index(counts: Tensor, rows: int) -> Tensor:
    """counts: [ranks, local experts], rows by rank, then expert -> [rows], by expert, then rank."""
    ends = counts.flatten().cumsum(0)
    by_expert = counts.t().flatten().cumsum(0).view(counts.t().shape).t()
    # From the end of a segment here to its end there.
    shift = by_expert.flatten() - ends
    place = torch.arange(rows, device=counts.device)
    segment = torch.searchsorted(ends, place, right=True).clamp_max(len(ends) - 1)
    beyond = place >= ends[-1]
    return (place + shift[segment]).masked_fill_(beyond, -1).to(torch.int32)
