"""The fused activation against its definition in float64: value and both gradients; in torch
operations, and in Triton (interpreted where there is no GPU)."""

from __future__ import annotations

import pytest
import torch

from loopmoe_kernels.weighted_swiglu import weighted_swiglu
from loopmoe_kernels.weighted_swiglu.cases import CASES
from loopmoe_kernels.weighted_swiglu.reference import weighted_swiglu as definition
from tests.kernels.native import DEVICE, ROWS, Run


def check(case: str, implementation: str, device: str, most: int) -> None:
    rows, width, dtype_name = CASES[case]
    rows, dtype = min(rows, most), getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(rows, 2 * width, generator=generator).to(device, dtype).requires_grad_()
    probs = torch.rand(rows, generator=generator).to(device).requires_grad_()  # fp32 beside bf16
    exact = [x.detach().double().requires_grad_() for x in (gate_up, probs)]
    out = weighted_swiglu(gate_up, probs, implementation=implementation)
    wanted = definition(*exact)
    upstream = torch.randn(rows, width, generator=generator).to(device, dtype)
    out.backward(upstream)
    wanted.backward(upstream.double())
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    assert out.dtype == dtype and probs.grad.dtype == torch.float32
    for mine, reference in (
        (out, wanted),
        (gate_up.grad, exact[0].grad),
        (probs.grad, exact[1].grad),
    ):
        error = (mine.double() - reference).norm()
        assert error <= tolerance * reference.norm()


@pytest.mark.parametrize("case", CASES)
def test_in_torch(case: str, device: str) -> None:
    check(case, "eager", device, 1 << 30)


@pytest.mark.parametrize("case", CASES)
def test_in_triton(case: str, run_triton: Run) -> None:
    run_triton(check, case, "triton", DEVICE, ROWS)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="probs"):
        weighted_swiglu(torch.zeros(3, 4), torch.zeros(2))
