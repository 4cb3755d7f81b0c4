"""Visit shells: weights once, state apart, nothing stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loopmoe_train.model.build import bare, build_gpt, build_model
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.spec.arithmetic import parameters
from loopmoe_train.spec.visits import visits
from tests.parity.worker import VOCAB, golden, samples

ONE = ["cluster.devices=1", "parallel=data"]


def _build(*overrides: str) -> Any:
    run = golden([*ONE, *overrides])
    return run, build_gpt(run, VOCAB, transformer_config(run))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.loop.gate=scalar", "model.loop.bottleneck=9"],
        ["model.loop.share_iteration_mlp=true"],
        ["model.loop.conditioning=none"],
        ["model.loop.iterations=1"],
        ["model.attention.q_lora_rank=null"],
        ["model.attention.kind=gqa", "model.attention.num_query_groups=1",
         "model.attention.head_dim=14"],
        ["model.attention.kind=gqa", "model.attention.num_query_groups=1",
         "model.attention.qk_norm=true", "model.moe.num_shared_experts=0"],
        ["model.tie_embeddings=true"],
        ["model.sandwich_norm=false"],
        ["model=vanilla_tiny"],
    ],
    ids=lambda o: ",".join(o) or "golden",
)  # fmt: skip
def test_parameters_equal_the_arithmetic(one_rank: None, overrides: list) -> None:
    run, model = _build(*overrides)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == parameters(run.model, VOCAB)["total"]


def test_later_visits_register_nothing(one_rank: None) -> None:
    run, model = _build()
    for layer, visit in zip(model.decoder.layers, visits(run.model)):
        owned = list(layer.parameters())
        assert bool(owned) == visit.owns_weights
        assert layer.layer_number == visit.index + 1
    # Core walks modules for the expert bias: it must see each layer's once.
    assert sum("expert_bias" in n for n, _ in model.named_buffers()) == 3


def test_shells_follow_a_replaced_weight(one_rank: None) -> None:
    """A cast or a load may replace tensors; the shell must use the new ones."""
    run, model = _build()
    first, later = model.decoder.layers[1], model.decoder.layers[3]
    assert later.visit.layer == first.visit.layer and later.visit.iteration == 2
    model.to(torch.bfloat16)
    assert later.mlp.router.weight is first.mlp.router.weight
    assert later.self_attention.linear_proj.weight.dtype == torch.bfloat16
    first.mlp.router.expert_bias = torch.ones_like(first.mlp.router.expert_bias)
    assert later.mlp.router.expert_bias is first.mlp.router.expert_bias


def test_train_and_eval_reach_every_visit(one_rank: None) -> None:
    run, model = _build()
    model.eval()
    assert not any(module.training for module in model.modules())
    later = model.decoder.layers[3]
    assert not later.mlp.experts.training and not later.mlp.router.training


def test_iterations_differ_and_none_do_not(one_rank: None) -> None:
    hidden = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(2))
    run, model = _build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    norms = [model.decoder.layers[i].input_layernorm(hidden) for i in (1, 3, 5)]
    assert not torch.allclose(norms[0], norms[1]) and not torch.allclose(norms[1], norms[2])
    run, model = _build("model.loop.conditioning=none")
    layers = model.decoder.layers
    torch.testing.assert_close(layers[1].input_layernorm(hidden), layers[5].input_layernorm(hidden))


@pytest.mark.parametrize("memory", ["keep", "full", "selective"])
def test_loads_are_counted_once(one_rank: None, memory: str) -> None:
    """Also under recomputation, per visit; the bias counts of a layer pool its visits."""
    run = golden([*ONE, f"memory={memory}"])
    model = build_model(run, VOCAB)[0]
    batch = samples(run, 0, 2)
    model(batch.tokens, batch.position_ids, None, labels=batch.labels).sum().backward()
    layers = [layer for layer in bare(model).decoder.layers if layer.is_moe_layer]
    assigned = batch.tokens.numel() * run.model.moe.top_k
    for layer in layers:
        assert int(layer.mlp.router.load.sum()) == assigned
    pooled = layers[0].mlp.router.local_tokens_per_expert
    of_layer = sum(x.mlp.router.load for x in layers if x.visit.layer == layers[0].visit.layer)
    torch.testing.assert_close(pooled, of_layer.float())
    with torch.no_grad():  # evaluation does not count
        model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    assert int(layers[0].mlp.router.load.sum()) == assigned


@pytest.mark.parametrize("stale", ["other tensor", "no gradient"])
def test_gate_is_never_stale(one_rank: None, stale: str) -> None:
    """The gate handed over from the norm is used for its own input only, and with its graph."""
    run, model = _build()
    norm = model.decoder.layers[1].input_layernorm
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(0.1)
    hidden = torch.randn(3, 1, 40)
    if stale == "other tensor":
        norm(torch.randn(3, 1, 40))
    else:  # as when the norm alone is recomputed in backward
        with torch.no_grad():
            norm(hidden)
    alpha = norm.gate(hidden)
    torch.testing.assert_close(alpha, norm.modulate(hidden).alpha)
    assert alpha.requires_grad


def test_evaluation_keeps_no_graph(one_rank: None) -> None:
    run, model = _build()
    batch = samples(run, 0, 2)
    with torch.no_grad():
        out = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    assert not out.requires_grad
