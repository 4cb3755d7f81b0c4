"""From the order in which an exchange delivers rows to the order in which experts take them."""

from typing import Optional

from torch import Tensor

from loopmoe_kernels.registry import pick

__all__ = ["expert_major_index"]


def expert_major_index(
    counts: Tensor, rows: Optional[int] = None, *, implementation: Optional[str] = None
) -> Tensor:
    """The row that each received row has once they are sorted by expert, then rank of origin.

    ``permute(x, slots[:, None], rows)`` sorts, ``combine(y, slots[:, None])`` sorts back: one
    source of kernels for both orders.

    Args:
        counts: [ranks, local experts] of any integer type, rows from each rank for each expert.
        rows: of the buffer; None: the sum of ``counts``, for which the device is waited for.
        implementation: None: the device's.

    Returns:
        [rows] int32; -1 behind the last counted row.

    Raises:
        ValueError: ``counts`` is not a matrix of integers with at least one entry.
    """
    if counts.dim() != 2 or not counts.numel() or counts.is_floating_point():
        raise ValueError(
            f"expert_major_index: counts are {list(counts.shape)} {counts.dtype}, not "
            "[ranks, local experts] integer"
        )
    if rows is None:
        rows = int(counts.sum())
    return pick("expert_major_index", counts.device, implementation)(counts, rows)
