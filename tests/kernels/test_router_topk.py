"""The router's choice against its definition: experts, weights, gradient, ties."""

from __future__ import annotations

import pytest
import torch

from loopmoe_kernels.router_topk import router_topk
from loopmoe_kernels.router_topk.cases import CASES
from loopmoe_kernels.router_topk.reference import router_topk as definition
from tests.kernels.native import DEVICE, ROWS, Run


def check(case: str, implementation: str, device: str, rows: int) -> None:
    tokens, experts, k, biased, dtype_name = CASES[case]
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(min(tokens, rows), experts, generator=generator).to(device, dtype)
    logits.requires_grad_()
    bias = 0.3 * torch.randn(experts, generator=generator).to(device) if biased else None
    exact = logits.detach().double().requires_grad_()
    weights, chosen = router_topk(logits, bias, k, 2.5, implementation=implementation)
    wanted, wanted_chosen = definition(exact, bias, k, 2.5)
    upstream = torch.randn(weights.shape, generator=generator).to(device)
    weights.backward(upstream)
    wanted.backward(upstream.double())
    assert weights.dtype == torch.float32 and chosen.dtype == torch.int32
    assert torch.equal(chosen, wanted_chosen)
    torch.testing.assert_close(weights.double(), wanted, rtol=1e-5, atol=1e-6)
    tolerance = 2e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(
        logits.grad.double(), exact.grad, rtol=tolerance, atol=0.02 * tolerance
    )


def check_ties(device: str, implementation: str) -> None:
    logits = torch.zeros(3, 9, device=device)
    logits[1, 4:] = 1.0
    logits[2, 7] = -1.0
    bias = torch.zeros(9, device=device)
    bias[8] = 1.0
    weights, chosen = router_topk(logits, None, 3, implementation=implementation)
    assert chosen.tolist() == [[0, 1, 2], [4, 5, 6], [0, 1, 2]]
    torch.testing.assert_close(weights, torch.full((3, 3), 1 / 3, device=device))
    chosen = router_topk(logits, bias, 2, implementation=implementation)[1]
    assert chosen.tolist() == [[8, 0], [8, 4], [8, 0]]


@pytest.mark.parametrize("case", CASES)
def test_in_torch(case: str, device: str) -> None:
    check(case, "eager", device, 1 << 30)


@pytest.mark.parametrize("case", CASES)
def test_in_triton(case: str, run_triton: Run) -> None:
    run_triton(check, case, "triton", DEVICE, ROWS)


def test_of_equal_ones_the_lower_index(device: str, run_triton: Run) -> None:
    check_ties(device, "eager")
    run_triton(check_ties, DEVICE, "triton")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="k=3"):
        router_topk(torch.zeros(4, 2), None, 3)
    with pytest.raises(ValueError, match="bias"):
        router_topk(torch.zeros(4, 2), torch.zeros(3), 1)
