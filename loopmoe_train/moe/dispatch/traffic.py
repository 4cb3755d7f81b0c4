"""Bytes of hidden states that leave this rank's node in the exchanges of experts.

Counted where they are sent, in forward and in backward, with what is sent twice under
recomputation. Probabilities and counts, which travel beside them, are not.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, Tuple

import torch
from torch import Tensor

_bytes = 0
_counting = True


def take() -> int:
    """Bytes since the last call."""
    global _bytes
    found, _bytes = _bytes, 0
    return found


@contextmanager
def uncounted() -> Iterator[None]:
    """Nothing inside is counted (an evaluation between two steps)."""
    global _counting
    before, _counting = _counting, False
    try:
        yield
    finally:
        _counting = before


def crossing(x: Tensor, ahead: int, back: int) -> Tensor:
    """``x`` itself; its forward adds ``ahead`` rows to the count, its backward ``back`` rows.

    Args:
        x: [..., H], whose last axis and dtype make a row.
    """
    size = x.shape[-1] * x.element_size()
    if not (ahead or back):
        return x
    return _Crossing.apply(x, ahead * size, back * size)


def _count(size: int) -> None:
    global _bytes
    if _counting:
        _bytes += size


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: int, back: int) -> Tensor:
        ctx.back = back
        _count(ahead)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None, None]:  # type: ignore[override]
        _count(ctx.back)
        return gradient, None, None
