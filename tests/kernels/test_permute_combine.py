"""permute and combine against their definitions in float64, values and gradients: in torch
operations, and in Triton (interpreted where there is no GPU)."""

from __future__ import annotations

from typing import Optional

import pytest
import torch
from torch import Tensor

from loopmoe_kernels.combine import combine
from loopmoe_kernels.combine.reference import combine as combine_definition
from loopmoe_kernels.permute import permute
from loopmoe_kernels.permute.cases import CASES, slots_of
from loopmoe_kernels.permute.reference import permute as permute_definition
from tests.kernels.native import DEVICE, Run

FLAGS = [False, True]


def check_permute(case: str, implementation: str, device: str, promise: bool) -> None:
    slots, rows, dropless = slots_of(case)
    _, width, dtype_name, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(slots.shape[0], width, generator=generator)
    x = x.to(device, getattr(torch, dtype_name)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    dropless = dropless and promise
    out = permute(x, slots.to(device), rows, dropless=dropless, implementation=implementation)
    wanted = permute_definition(exact, slots.to(device), rows)
    upstream = torch.randn(wanted.shape, generator=generator).to(out)
    out.backward(upstream)
    wanted.backward(upstream.double())
    assert out.dtype == x.dtype and torch.equal(out.double(), wanted)
    _close(x.grad, exact.grad, x.dtype)


def check_combine(
    case: str, implementation: str, device: str, promise: bool, weighted: bool
) -> None:
    slots, rows, dropless = slots_of(case)
    _, width, dtype_name, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(rows, width, generator=generator).to(device, getattr(torch, dtype_name))
    probs = torch.rand(slots.shape, generator=generator).to(device) if weighted else None
    upstream = torch.randn(len(slots), width, generator=generator).to(y)
    dropless, slots = dropless and promise, slots.to(device)
    ours = _combined(y, slots, probs, upstream, dropless, implementation)
    exact = [None if x is None else x.detach().double().requires_grad_() for x in (y, probs)]
    wanted = combine_definition(exact[0], slots, exact[1])
    if rows:
        wanted.backward(upstream.double())
    for mine, reference in zip(ours, (wanted, *(None if x is None else x.grad for x in exact))):
        if mine is not None:
            reference = torch.zeros_like(mine) if reference is None else reference
            _close(mine, reference, y.dtype)
    again = _combined(y, slots, probs, upstream, dropless, implementation)
    assert all(x is y or torch.equal(x, y) for x, y in zip(ours, again))  # to the bit


def _combined(
    y: Tensor, slots: Tensor, probs: Optional[Tensor], upstream: Tensor, dropless: bool, name: str
) -> list[Optional[Tensor]]:
    y = y.detach().requires_grad_()
    probs = None if probs is None else probs.detach().requires_grad_()
    out = combine(y, slots, probs, dropless=dropless, implementation=name)
    out.backward(upstream)
    assert out.dtype == y.dtype and y.grad.dtype == y.dtype
    return [out, y.grad, None if probs is None else probs.grad]


def _close(mine: Tensor, reference: Tensor, dtype: torch.dtype) -> None:
    """To rounding, element by element: 2 ulp of bf16 (the interpreter truncates) or of a sum."""
    tolerance = 2**-7 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(
        mine.double(), reference.double(), rtol=tolerance, atol=tolerance * 0.2
    )


@pytest.mark.parametrize("promise", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_permute_in_torch(case: str, promise: bool, device: str) -> None:
    check_permute(case, "eager", device, promise)


@pytest.mark.parametrize("promise", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_permute_in_triton(case: str, promise: bool, run_triton: Run) -> None:
    run_triton(check_permute, case, "triton", DEVICE, promise)


@pytest.mark.parametrize("weighted", FLAGS)
@pytest.mark.parametrize("promise", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_combine_in_torch(case: str, promise: bool, weighted: bool, device: str) -> None:
    check_combine(case, "eager", device, promise, weighted)


@pytest.mark.parametrize("weighted", FLAGS)
@pytest.mark.parametrize("promise", FLAGS)
@pytest.mark.parametrize("case", CASES)
def test_combine_in_triton(case: str, promise: bool, weighted: bool, run_triton: Run) -> None:
    run_triton(check_combine, case, "triton", DEVICE, promise, weighted)


def test_what_does_not_fit_is_refused() -> None:
    x, slots = torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="not .3, K. int32"):
        permute(torch.zeros(3, 4), slots, 6)
    with pytest.raises(ValueError, match="int32"):
        permute(x, slots.long(), 6)
    with pytest.raises(ValueError, match="dropless with 6 slots for 5 rows"):
        permute(x, slots, 5, dropless=True)
    with pytest.raises(ValueError, match="probs are"):
        combine(torch.zeros(6, 4), slots, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="fp32"):
        combine(torch.zeros(6, 4), slots, torch.zeros(2, 3).bfloat16())
