"""The whole model against a float64 reference: losses and every named gradient."""

from __future__ import annotations

from typing import Dict, List

import pytest
import torch

from loopmoe_train.evaluation.probe import training_mtp_losses
from loopmoe_train.model.build import build_gpt, layer_names, unique_name
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.train.step import forward_step
from tests.model import float64_reference as reference
from tests.parity.worker import VOCAB, golden, samples

SOFTMAX = ["model.moe.score_function=softmax", "model.moe.expert_bias_update_rate=0"]
GQA = ["model.attention.kind=gqa", "model.attention.num_heads=4", "model.attention.head_dim=10",
       "model.attention.num_query_groups=2"]  # fmt: skip

# Auxiliary losses are core's; without them the whole gradient is the cross entropy's.
PLAIN = ["cluster.devices=1", "parallel=data", "global_batch_size=2", "model.moe.aux_loss=none",
         "model.moe.z_loss_coeff=0", "sequence_length=11"]  # fmt: skip


def _model_and_weights(overrides: List[str]):
    run = golden(PLAIN + overrides)
    model = build_gpt(run, VOCAB, transformer_config(run))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the special point of step 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("expert_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    prefixes = layer_names(run)
    weights: Dict[str, torch.Tensor] = {
        unique_name(name, prefixes): tensor.detach().double().requires_grad_(
            isinstance(tensor, torch.nn.Parameter))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }  # fmt: skip
    return run, model, weights


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.loop.gate=scalar"],
        ["model.loop.bottleneck=13"],
        ["model.loop.conditioning=none"],
        ["model.sandwich_norm=false"],
        ["model.loop.iterations=1"],
        ["model.loop.iterations=5", "model.body_layers=1", "model.suffix_layers=0"],
        [*SOFTMAX, "model.moe.topk_scaling_factor=1.5"],
        [*SOFTMAX, "model.moe.norm_topk_prob=false", "model.moe.num_shared_experts=0"],
        [*GQA],
        [*GQA, "model.attention.qk_norm=true"],
        ["model.moe.topk_scaling_factor=2.5", "model.depth_scaled_gains=[0.283,0.432]"],
        [
            "model.moe.group_routing=limited",
            "model.moe.num_groups=4",
            "model.moe.topk_groups=2",
            "model.moe.top_k=2",
        ],
        ["model.moe.group_routing=balanced", "model.moe.num_groups=2", "model.moe.top_k=4"],
        ["model.moe.capacity_factor=0.75"],
        ["model.moe.balance_over=visit"],
    ],
    ids=lambda o: ",".join(o) or "golden",
)
def test_losses_and_gradients(one_rank: None, overrides: List[str]) -> None:
    run, model, weights = _model_and_weights(overrides)
    batch = samples(run, 0, 2)
    ours = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    expected = reference.losses(batch.tokens, batch.labels, weights, run.model)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)

    upstream = torch.rand(expected.shape, generator=torch.Generator().manual_seed(5))
    ours.backward(upstream)
    expected.backward(upstream.double())
    prefixes = layer_names(run)
    for name, parameter in model.named_parameters():
        wanted = weights[unique_name(name, prefixes)].grad
        error = (parameter.grad.double() - wanted).norm() / wanted.norm()
        assert error < 1e-4, f"{name}: relative gradient error {error:.1e}"


@pytest.mark.parametrize("heads", [1, 2])
def test_multi_token_prediction(one_rank: None, heads: int) -> None:
    run, model, weights = _model_and_weights(
        [f"model.mtp_layers={heads}", "model.mtp_loss_coeff=0.3"]
    )
    batch = samples(run, 3, 2)  # some tokens do not count
    assert not batch.loss_mask.all()
    ours, _ = forward_step(iter([batch]), model)
    (ours * batch.loss_mask).sum().backward()
    main = reference.losses(batch.tokens, batch.labels, weights, run.model)
    mask = batch.loss_mask.double()
    extra = reference.mtp_loss(batch.tokens, batch.labels, mask, weights, run.model)
    ((main * mask).sum() + extra).backward()
    for name, parameter in model.named_parameters():
        wanted = weights[unique_name(name, layer_names(run))].grad
        error = (parameter.grad.double() - wanted).norm() / wanted.norm()
        assert error < 1e-4, f"{name}: relative gradient error {error:.1e}"
    if heads == 1:  # what is reported: the mean of two equal micro-batches, and nothing left
        forward_step(iter([batch]), model)
        mean = float(extra.detach()) / 0.3 / float(mask[:, 1:].sum())
        assert training_mtp_losses(2) == pytest.approx([mean], rel=1e-5)
        assert training_mtp_losses(1) == [0.0]
    # Evaluation does without the heads, and without labels.
    model.eval()
    with torch.no_grad():
        again = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
        logits = model(batch.tokens, batch.position_ids, None)
    torch.testing.assert_close(again.double(), main.detach(), rtol=2e-5, atol=2e-5)
    assert logits.shape == (2, 11, VOCAB)


def test_one_iteration_mlp_for_all_layers(one_rank: None) -> None:
    run, model, weights = _model_and_weights(["model.loop.share_iteration_mlp=true"])
    owners = [name for name in weights if "iteration_mlp" in name]
    assert {name.split(".")[2] for name in owners} == {"1"}, owners
    for name in owners:  # the reference reads one per layer: point them at the shared one
        weights[name.replace("layers.1.", "layers.2.")] = weights[name]
    batch = samples(run, 0, 2)
    model(batch.tokens, batch.position_ids, None, labels=batch.labels).sum().backward()
    reference.losses(batch.tokens, batch.labels, weights, run.model).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = weights[unique_name(name, layer_names(run))].grad
        assert (parameter.grad.double() - wanted).norm() / wanted.norm() < 5e-5, name
