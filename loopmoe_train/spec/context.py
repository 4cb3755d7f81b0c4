"""Which tokens a context-parallel rank holds: the chunks r and 2 * size - 1 - r of 2 * size.

In this zig-zag order, core's ``get_batch_on_this_cp_rank``, all ranks have as much to attend under
a causal mask.
"""

from __future__ import annotations

from typing import List, Optional


def chunks_of(rank: int, size: int) -> List[int]:
    """The two of ``2 * size`` chunks that ``rank`` holds, in the order of its tokens."""
    return [rank, 2 * size - 1 - rank]


def place_of(position: int, length: int, rank: int, size: int) -> Optional[int]:
    """Index of the token at ``position`` of ``length`` among a rank's; None: another has it."""
    if size == 1:
        return position
    chunk, within = divmod(position, length // (2 * size))
    held = chunks_of(rank, size)
    return held.index(chunk) * (length // (2 * size)) + within if chunk in held else None
