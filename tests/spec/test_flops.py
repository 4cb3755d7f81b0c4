"""FLOP arithmetic against what torch counts in a real forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopmoe_train.model.build import build_gpt
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.spec.arithmetic import forward_flops_per_token
from tests.parity.worker import VOCAB, golden, samples


@pytest.mark.parametrize("overrides", [[], ["model=vanilla_tiny"], ["model.attention.kind=gqa",
                         "model.attention.num_query_groups=2"]], ids=str)  # fmt: skip
def test_forward(one_rank: None, overrides: list, monkeypatch: pytest.MonkeyPatch) -> None:
    run = golden(["cluster.devices=1", "parallel=data", *overrides])
    model = build_gpt(run, VOCAB, transformer_config(run)).eval()
    batch = samples(run, 0, 2)
    # torch counts neither grouped products, nor fused attention, nor masks: experts are counted
    # one by one, attention unfused and whole.
    from loopmoe_train.moe import experts

    def one_by_one(x, weight, ends):
        starts = [0, *ends.tolist()]
        return torch.cat([x[a:b] @ w for a, b, w in zip(starts, starts[1:], weight)])

    monkeypatch.setattr(experts, "grouped_mm", one_by_one)
    unfused = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), unfused, FlopCounterMode(display=False) as counter:
        model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    counted = counter.get_total_flops() / batch.tokens.numel()
    ours = forward_flops_per_token(run.model, VOCAB, run.sequence_length)
    a = run.model.attention
    width = a.qk_head_dim + a.qk_rope_head_dim + a.v_head_dim if a.kind == "mla" else 2 * a.head_dim
    layers = len(model.decoder.layers)
    masked = layers * a.num_heads * width * (run.sequence_length - 1)
    assert counted == pytest.approx(sum(ours.values()) + masked, rel=0.01)
