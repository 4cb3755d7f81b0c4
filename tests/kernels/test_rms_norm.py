"""The processor's RMSNorm against its definition in float64: value and both gradients."""

import pytest
import torch

from loopmoe_kernels.rms_norm import rms_norm
from loopmoe_kernels.rms_norm.cases import CASES
from loopmoe_kernels.rms_norm.reference import rms_norm as definition
from tests.kernels.compare import assert_equal


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case: str, device: str) -> None:
    shape, dtype_name = CASES[case]
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    scale = 1e3 if case == "large values" else 1.0
    weight = 1 + 0.5 * torch.randn(shape[-1], generator=generator)
    inputs = [torch.randn(shape, generator=generator) * scale, weight]
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert_equal(
        rms_norm, definition, [x.to(device, dtype) for x in inputs], 1e-6, tolerance=tolerance
    )


def test_a_zero_token_is_finite() -> None:
    hidden = torch.zeros(2, 5, requires_grad=True)
    rms_norm(hidden, torch.ones(5), 1e-6).sum().backward()
    assert torch.isfinite(hidden.grad).all()
