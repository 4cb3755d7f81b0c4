"""Grouped experts against one expert after another in float64, on skewed routings."""

from __future__ import annotations

from typing import List

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe.experts import GroupedExperts
from tests.parity.worker import golden

COUNTS = {
    "even": [3] * 8,
    "uneven": [1, 0, 7, 2, 0, 0, 13, 1],
    "all to one": [0, 0, 0, 0, 29, 0, 0, 0],
    "empty ends": [0, 5, 5, 5, 5, 5, 5, 0],
    "one token": [0, 0, 1, 0, 0, 0, 0, 0],
    "none": [0] * 8,
}


def _experts() -> GroupedExperts:
    run = golden(["cluster.devices=1", "parallel=data"])
    experts = GroupedExperts(8, transformer_config(run), get_default_pg_collection())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return experts


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_equals_one_expert_after_another(one_rank: None, counts: List[int]) -> None:
    experts = _experts()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(sum(counts), 40, generator=generator).requires_grad_()
    probs = torch.rand(sum(counts), generator=generator).requires_grad_()
    out, bias = experts(hidden, torch.tensor(counts), probs)
    assert bias is None

    exact = [x.detach().double().requires_grad_() for x in (hidden, probs, *experts.parameters())]
    x, p, w1, w2 = exact
    parts, start = [], 0
    for e, count in enumerate(counts):
        rows = slice(start, start + count)
        activated = F.silu(x[rows] @ w1[e, :, 0]) * (x[rows] @ w1[e, :, 1])
        parts.append((activated @ w2[e]) * p[rows, None])
        start += count
    wanted = torch.cat(parts)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(out.shape, generator=generator)
    out.backward(upstream)
    wanted.backward(upstream.double())
    for mine, reference in zip((hidden, probs, *experts.parameters()), exact):
        assert mine.grad is not None  # an idle rank must still take part in the reduction
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)


def test_an_expanded_gradient_is_taken(one_rank: None) -> None:
    """A sum's gradient has stride 0, which grouped products refuse in backward."""
    experts = _experts()
    out, _ = experts(torch.randn(8, 40), torch.tensor([1] * 8), torch.ones(8))
    out.sum().backward()
    assert experts.w2_EFD.grad.any()
