"""The blocked attention against its definition in float64, and where the model uses it."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from loopmoe_kernels.causal_attention import MAX_LENGTH, causal_attention
from loopmoe_kernels.causal_attention.cases import CASES
from loopmoe_kernels.causal_attention.reference import causal_attention as definition
from loopmoe_train.model import attend, attention
from tests.kernels.compare import assert_equal


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients(case: str) -> None:
    n, s, d_qk, d_v, *last = CASES[case]
    generator = torch.Generator().manual_seed(0)
    sizes = ((last[0] if last else s, d_qk), (s, d_qk), (s, d_v))
    inputs = [torch.randn(n, *size, generator=generator) for size in sizes]
    assert_equal(causal_attention, definition, inputs, 0.3, tolerance=1e-5)


@pytest.mark.parametrize(
    "length, dtype, masked, blocked",
    [
        (33, torch.float32, False, True),
        (33, torch.float32, True, False),
        (33, torch.bfloat16, False, False),
        (MAX_LENGTH + 1, torch.float32, False, False),
    ],
)
def test_the_model_uses_it_where_it_fits(
    length: int, dtype: torch.dtype, masked: bool, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(context_parallel_size=1, attention_dropout=0.0)
    core = attention.ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self")
    calls = []

    def counted(*args: object) -> torch.Tensor:
        calls.append(args)
        return causal_attention(*args)

    monkeypatch.setattr(attend, "causal_attention", counted)
    q, k, v = (torch.randn(length, 1, 2, 4).to(dtype) for _ in range(3))
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None] if masked else None
    out = core(q, k, v, mask)
    wanted = definition(*(x[:, 0].transpose(0, 1).double() for x in (q, k, v)), 0.5)
    torch.testing.assert_close(
        out[:, 0].unflatten(1, (2, 4)).transpose(0, 1).double(),
        wanted,
        atol=1e-5 if dtype == torch.float32 else 3e-2,
        rtol=0,
    )
    assert len(calls) == blocked
