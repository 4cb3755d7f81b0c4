"""Copy each token's row to its places in the buffer sorted by expert."""

from typing import Optional

from torch import Tensor

from loopmoe_kernels.permute.slots import check_slots
from loopmoe_kernels.registry import pick

__all__ = ["permute"]


def permute(
    x: Tensor,
    slots: Tensor,
    rows: int,
    *,
    dropless: bool = False,
    implementation: Optional[str] = None,
) -> Tensor:
    """``out[slots[t, k]] = x[t]``; rows that no slot names are zero.

    Backward adds a token's K gradients in fp32, in the order of k.

    Args:
        x: [T, H], fp32, bf16 or fp16.
        slots: [T, K] int32, no row twice; -1: dropped.
        rows: of the result.
        dropless: the caller promises that none is dropped and every row is named: then nothing
            is cleared, which halves the writing.
        implementation: None: the device's.

    Returns:
        [rows, H] in the dtype of ``x``.

    Raises:
        ValueError: shapes do not fit, or ``rows`` is not T * K beside ``dropless``.
    """
    check_slots("permute", x.shape[0], slots, rows, dropless)
    return pick("permute", x.device, implementation, vendor_fits=dropless)(x, slots, rows, dropless)
