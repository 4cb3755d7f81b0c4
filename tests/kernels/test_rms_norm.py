"""The processor's RMSNorm against its definition in float64: value and both gradients."""

import pytest
import torch

from loopmoe_kernels.rms_norm import rms_norm
from loopmoe_kernels.rms_norm.cases import CASES
from loopmoe_kernels.rms_norm.reference import rms_norm as definition


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case: str) -> None:
    shape, dtype_name = CASES[case]
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(shape, generator=generator) * (1e3 if case == "large values" else 1.0)
    weight = 1 + 0.5 * torch.randn(shape[-1], generator=generator)
    ours = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, wanted = rms_norm(*ours, 1e-6), definition(*exact, 1e-6)
    upstream = torch.randn(shape, generator=generator).to(dtype)
    out.backward(upstream)
    wanted.backward(upstream.double())
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
    for mine, reference in zip(ours, exact):
        assert mine.grad.dtype == dtype
        error = (mine.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < tolerance


def test_a_zero_token_is_finite() -> None:
    hidden = torch.zeros(2, 5, requires_grad=True)
    rms_norm(hidden, torch.ones(5), 1e-6).sum().backward()
    assert torch.isfinite(hidden.grad).all()
