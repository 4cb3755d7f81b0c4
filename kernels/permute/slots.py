"""What permute and combine ask of their slots, as far as the host can see it."""

import torch
from torch import Tensor


def check_slots(op: str, tokens: int, slots: Tensor, rows: int, dropless: bool) -> None:
    """Raises:
    ValueError: ``slots`` is not [tokens, K] int32, or has not one row each beside ``dropless``.
    """
    if slots.dim() != 2 or slots.shape[0] != tokens or slots.dtype != torch.int32:
        raise ValueError(
            f"{op}: slots are {list(slots.shape)} {slots.dtype}, not [{tokens}, K] int32"
        )
    if dropless and rows != slots.numel():
        raise ValueError(
            f"{op}: dropless with {slots.numel()} slots for {rows} rows: some are dropped or empty"
        )
