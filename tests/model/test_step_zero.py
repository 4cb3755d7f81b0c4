"""What step 0 must be: gamma = beta = alpha = 0 in the body."""

from __future__ import annotations

import re
from typing import Dict

import pytest
import torch

from loopmoe_train.model.build import build_gpt, layer_names, unique_name
from loopmoe_train.model.core_config import transformer_config
from tests.parity.worker import VOCAB, golden, samples

BODY = r"decoder\.layers\.[12]\."
# alpha = 0 stops the gradient into the attention branch; zero output projections stop it into
# the condition.
ZERO = re.compile(
    BODY + r"(self_attention\.|self_attn_bda\.output_norm|"
    r"(input|pre_mlp)_layernorm\.(condition|iteration_mlp))"
)


@pytest.fixture(scope="module")
def gradients(one_rank: None) -> Dict[str, torch.Tensor]:
    run = golden(["cluster.devices=1", "parallel=data", "model.moe.aux_loss=none",
                  "model.moe.z_loss_coeff=0"])  # fmt: skip
    model = build_gpt(run, VOCAB, transformer_config(run))
    batch = samples(run, 0, 2)
    model(batch.tokens, batch.position_ids, None, labels=batch.labels).sum().backward()
    prefixes = layer_names(run)
    return {unique_name(n, prefixes): p.grad for n, p in model.named_parameters()}


def test_exactly_zero_gradients(gradients: Dict[str, torch.Tensor]) -> None:
    zero = {name for name, grad in gradients.items() if not grad.any()}
    assert zero == {name for name in gradients if ZERO.match(name)}


def test_only_alpha_rows_of_the_attention_modulation_move(
    gradients: Dict[str, torch.Tensor],
) -> None:
    for layer in (1, 2):
        bias = gradients[f"decoder.layers.{layer}.input_layernorm.modulation.bias"]
        gamma_beta, alpha = bias.split([80, 40])
        assert not gamma_beta.any() and alpha.all()
        # c is not zero: MLP_iter and the condition give the rows something to work with
        assert gradients[f"decoder.layers.{layer}.pre_mlp_layernorm.modulation.weight"].any()


def test_body_is_an_moe_stack_without_scale(one_rank: None) -> None:
    """gamma = beta = alpha = 0 and K = 1 equals h + norm(MoE(rms(h))) layer by layer."""
    run = golden(["cluster.devices=1", "parallel=data"])
    model = build_gpt(run, VOCAB, transformer_config(run)).eval()
    body = model.decoder.layers[1]
    hidden = torch.randn(5, 2, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out, _ = body(hidden, attention_mask=None)
        normed = hidden / torch.sqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
        expected = hidden + body.mlp_bda.output_norm(body.mlp(normed)[0])
    torch.testing.assert_close(out, expected)
