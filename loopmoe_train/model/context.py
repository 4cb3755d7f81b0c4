"""Context parallelism: how ranks exchange the tokens that they hold (spec/context.py).

``zig-zag`` below is the order of the tokens of all ranks, rank after rank. The exchanges are
core's, and with them their gradients: of a gather the sum over ranks, scattered.
"""

from __future__ import annotations

from typing import Any, List, Sequence

import torch
from megatron.core.tensor_parallel.mappings import all_to_all, gather_from_sequence_parallel_region
from torch import Tensor

from loopmoe_train.spec.context import chunks_of


def to_natural(x: Tensor, size: int) -> Tensor:
    """[s, ...] in zig-zag order -> the same in the order of the sequence."""
    held = [chunk for rank in range(size) for chunk in chunks_of(rank, size)]
    parts = x.chunk(2 * size)
    return torch.cat([parts[held.index(chunk)] for chunk in range(2 * size)])


def to_zigzag(x: Tensor, size: int) -> Tensor:
    """[s, ...] in the order of the sequence -> the same in zig-zag order."""
    parts = x.chunk(2 * size)
    return torch.cat([parts[chunk] for rank in range(size) for chunk in chunks_of(rank, size)])


def gather_sequence(x: Tensor, group: Any) -> Tensor:
    """This rank's tokens [s / size, ...] -> those of all ranks [s, ...], in natural order."""
    return to_natural(gather_from_sequence_parallel_region(x, group=group), group.size())


def to_heads(parts: Sequence[Tensor], group: Any) -> List[Tensor]:
    """All heads of this rank's tokens -> all tokens, in natural order, of a share of the heads.

    Ulysses (arXiv 2309.14509), in one all-to-all.

    Args:
        parts: [s / size, b, heads, d] each; heads (a multiple of size) and d may differ.

    Returns:
        [s, b, heads / size, d] each; rank r has the r-th run of heads.
    """
    size = group.size()
    blocks = [part.unflatten(2, (size, -1)).permute(2, 0, 1, 3, 4) for part in parts]
    flat = [block.flatten(3) for block in blocks]
    joined = all_to_all(group, torch.cat(flat, dim=-1).flatten(0, 1))
    split = to_natural(joined, size).split([block.shape[-1] for block in flat], dim=-1)
    return [x.unflatten(-1, block.shape[3:]) for x, block in zip(split, blocks)]


def to_sequence(x: Tensor, group: Any) -> Tensor:
    """The way back, of one: [s, b, d of a share of the heads] -> [s / size, b, d of all heads]."""
    size = group.size()
    received = all_to_all(group, to_zigzag(x, size)).unflatten(0, (size, -1))
    return received.permute(1, 2, 0, 3).flatten(2)
