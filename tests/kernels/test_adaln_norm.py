"""The fused norm against its definition in float64: value and all three gradients; in torch
operations, and in Triton (interpreted where there is no GPU)."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from loopmoe_kernels.adaln_norm import adaln_norm
from loopmoe_kernels.adaln_norm.cases import CASES
from loopmoe_kernels.adaln_norm.reference import adaln_norm as definition
from tests.kernels.compare import assert_equal
from tests.kernels.native import DEVICE, ROWS, Run


def check(case: str, implementation: str, device: str, rows: int) -> None:
    (steps, *rest, width), dtype_name = CASES[case]
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    scale = 1e3 if case == "large values" else 1.0
    shape = (min(steps, rows), *rest, width)
    inputs = [torch.randn(shape, generator=generator) * s for s in (scale, 0.5, 0.5)]
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    operation = partial(adaln_norm, implementation=implementation)
    placed = [x.to(device, dtype) for x in inputs]
    assert_equal(operation, definition, placed, 1e-6, tolerance=tolerance)


def check_pieces_of_a_tensor(device: str, implementation: str) -> None:
    """As the model calls it: gamma and beta are cut from one tensor of uneven width."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 2, 24, generator=generator).to(device)
    wide = torch.randn(5, 2, 49, generator=generator).to(device).requires_grad_()
    exact = wide.detach().double().requires_grad_()
    gamma, beta, _ = wide.split([24, 24, 1], dim=-1)
    exact_gamma, exact_beta, _ = exact.split([24, 24, 1], dim=-1)
    out = adaln_norm(hidden, gamma, beta, 1e-6, implementation=implementation)
    wanted = definition(hidden.double(), exact_gamma, exact_beta, 1e-6)
    out.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def check_a_zero_token(device: str, implementation: str) -> None:
    hidden, zeros = torch.zeros(2, 5, device=device), torch.zeros(2, 5, device=device)
    hidden.requires_grad_()
    adaln_norm(hidden, zeros, zeros, 1e-6, implementation=implementation).sum().backward()
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("case", CASES)
def test_in_torch(case: str, device: str) -> None:
    check(case, "eager", device, 1 << 30)


@pytest.mark.parametrize("case", CASES)
def test_in_triton(case: str, run_triton: Run) -> None:
    run_triton(check, case, "triton", DEVICE, ROWS // 4)


@pytest.mark.parametrize("checked", [check_a_zero_token, check_pieces_of_a_tensor])
def test_what_the_model_gives_it(checked: Run, device: str, run_triton: Run) -> None:
    checked(device, "eager")
    run_triton(checked, DEVICE, "triton")


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        adaln_norm(torch.zeros(2, 4), torch.zeros(4), torch.zeros(2, 4), 1e-6)
