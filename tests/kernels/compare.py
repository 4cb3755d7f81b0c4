"""An operation against its definition in float64: value and every gradient."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor


def assert_equal(
    operation: Any, definition: Any, inputs: Sequence[Tensor], *settings: Any, tolerance: float
) -> None:
    """Call both on ``inputs`` (and ``settings``), forward and backward.

    Args:
        tolerance: of the value, and of each gradient relative to its norm.
    """
    ours = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out, wanted = operation(*ours, *settings), definition(*exact, *settings)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(wanted.shape, generator=generator).to(out)
    out.backward(upstream)
    wanted.backward(upstream.double())
    assert out.dtype == inputs[0].dtype
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
    for mine, reference in zip(ours, exact):
        assert mine.grad is not None and mine.grad.dtype == mine.dtype
        error = (mine.grad.double() - reference.grad).norm()
        assert error <= tolerance * reference.grad.norm() + 1e-12
