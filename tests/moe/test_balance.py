"""Balance losses against their formulas in float64, gradients included; what is counted when."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch import Tensor

from loopmoe_train.model.build import build_gpt
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe import router as router_module
from loopmoe_train.moe.balance import VisitBalance
from loopmoe_train.moe.router import VisitRouter
from loopmoe_train.parallel import groups
from tests.parity.worker import VOCAB, golden, samples

E, K, T = 8, 3, 15
PLAIN = ["cluster.devices=1", "parallel=data", "model.moe.z_loss_coeff=0",
         "model.moe.aux_loss=none"]  # fmt: skip


def _router(*overrides: str) -> VisitRouter:
    run = golden([*PLAIN, *overrides])
    router = VisitRouter(transformer_config(run), get_default_pg_collection())
    router.set_layer_number(1)
    return router.train()


def _logits(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, E, generator=generator)
    logits[..., 0] += 2  # skewed: expert 0 is popular
    return logits.requires_grad_()


def _gradient(router: VisitRouter, logits: Tensor) -> Tensor:
    """Of the attached losses alone: the probabilities themselves get a gradient of zero."""
    probs, _ = router.routing(logits)
    (gradient,) = torch.autograd.grad(probs.sum() * 0, logits)
    return gradient.double()


def _scores(logits: Tensor, score_function: str = "sigmoid") -> Tensor:
    flat = logits.detach().double().flatten(0, 1).requires_grad_()
    scores = flat.softmax(-1) if score_function == "softmax" else flat.sigmoid()
    return scores if score_function == "softmax" else scores / scores.sum(-1, keepdim=True), flat


def _wanted(loss: Tensor, flat: Tensor, shape: Any) -> Tensor:
    # A loss per token: T times the mean.
    (gradient,) = torch.autograd.grad(T * loss, flat)
    return gradient.view(shape)


@pytest.mark.parametrize("score_function", ["sigmoid", "softmax"])
def test_expert_loss(one_rank: None, score_function: str) -> None:
    """With one rank in its group the loss of the group is that of the micro-batch."""
    overrides = ["model.moe.aux_loss=expert_parallel", "model.moe.aux_loss_coeff=0.3",
                 f"model.moe.score_function={score_function}",
                 "model.moe.expert_bias_update_rate=0"]  # fmt: skip
    logits = _logits()
    scores, flat = _scores(logits, score_function)
    chosen = torch.zeros(T, E, dtype=torch.double).scatter(1, scores.topk(K).indices, 1)
    loss = 0.3 * E * sum(
        chosen[:, i].sum() / (K * T) * scores[:, i].sum() / T for i in range(E)
    )  # fmt: skip
    torch.testing.assert_close(
        _gradient(_router(*overrides), logits), _wanted(loss, flat, logits.shape),
        rtol=1e-4, atol=1e-7,
    )  # fmt: skip


def test_device_loss(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of four experts: f the share of tokens that go there, P the summed scores."""
    router = _router("model.moe.device_loss_coeff=0.2", "cluster.devices=2",
                     "parallel.expert_parallel_size=2")  # fmt: skip
    monkeypatch.setattr(
        router_module.parallel_state, "get_expert_model_parallel_world_size", lambda: 2
    )
    logits = _logits(1)
    scores, flat = _scores(logits)
    chosen = torch.zeros(T, E).scatter(1, scores.topk(K).indices, 1).bool()
    halves = [slice(0, 4), slice(4, 8)]
    loss = 0.2 * 2 * sum(
        chosen[:, g].any(1).double().mean() * scores[:, g].sum(1).mean() for g in halves
    )  # fmt: skip
    torch.testing.assert_close(
        _gradient(router, logits), _wanted(loss, flat, logits.shape), rtol=1e-4, atol=1e-7
    )


def test_global_batch_loss_looks_at_the_batch_before(one_rank: None) -> None:
    router = _router("model.moe.aux_loss=global_batch", "model.moe.aux_loss_coeff=0.3")
    first, second, third = _logits(0), _logits(1), _logits(2)
    assert not _gradient(router, first).any() and not _gradient(router, second).any()
    router.balance.end_batch(groups.parallel_state.get_data_parallel_group())
    load = torch.zeros(E, dtype=torch.double)
    for logits in (first, second):
        scores, _ = _scores(logits)
        load += torch.zeros(T, E, dtype=torch.double).scatter(1, scores.topk(K).indices, 1).sum(0)
    assert torch.equal(router.balance.last_load.double(), load)
    scores, flat = _scores(third)
    loss = 0.3 * E * (load / load.sum() * scores.mean(0)).sum()
    torch.testing.assert_close(
        _gradient(router, third), _wanted(loss, flat, third.shape), rtol=1e-4, atol=1e-7
    )
    # The batch that runs is not seen before its end, nor the one before twice.
    assert router.balance.batch_load.sum() == T * K


def test_z_loss(one_rank: None) -> None:
    logits = _logits()
    flat = logits.detach().double().flatten(0, 1).requires_grad_()
    loss = 0.7 * flat.logsumexp(-1).square().mean()
    torch.testing.assert_close(
        _gradient(_router("model.moe.z_loss_coeff=0.7"), logits),
        _wanted(loss, flat, logits.shape), rtol=1e-4, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("switch", ["evaluation", "no gradient"])
def test_neither_counts_nor_attaches(one_rank: None, switch: str) -> None:
    router = _router("model.moe.aux_loss=global_batch")
    if switch == "evaluation":
        router.eval()
        with torch.no_grad():
            router.routing(_logits())
    else:  # the first pass of a recomputed layer
        with torch.no_grad():
            router.routing(_logits())
    assert not router.load.any() and not router.balance.batch_load.any()


@pytest.mark.parametrize("pads", ["true", "false"])
@pytest.mark.parametrize("scope", ["micro_batch", "expert_parallel"])
def test_balance_does_not_depend_on_the_capacity(one_rank: None, scope: str, pads: str) -> None:
    """Least of all when every expert is full: losses, loads and bias see what was chosen."""
    half = ["model.moe.capacity_factor=0.5", f"model.moe.pad_to_capacity={pads}"]
    free, limited = (_router(f"model.moe.aux_loss={scope}", *more) for more in ([], half))
    wanted = _gradient(free, _logits())
    assert wanted.any()
    torch.testing.assert_close(_gradient(limited, _logits()), wanted)
    assert torch.equal(limited.load, free.load)
    assert torch.equal(limited.local_tokens_per_expert, free.local_tokens_per_expert)
    assert not free.dropped.any() and limited.dropped.sum() > T * K // 4


def test_padding_is_left_to_the_dispatcher(one_rank: None) -> None:
    """A token is never said to have an expert that it did not choose."""
    router = _router("model.moe.capacity_factor=1.0", "model.moe.pad_to_capacity=true")
    _, routing_map = router.routing(_logits())
    capacity = -(-T * K // E)
    assert (routing_map.sum(0) <= capacity).all() and (routing_map.sum(1) <= K).all()
    assert torch.equal(routing_map.sum(0), router.load.clamp_max(capacity))
    assert router.load.sum() == T * K
    assert router.dropped.sum() == (router.load - capacity).clamp_min(0).sum() > 0


@pytest.mark.parametrize("over", ["layer", "visit"])
def test_whose_loads_are_counted(one_rank: None, over: str) -> None:
    """Each visit's own, or those of all visits of the layer together."""
    run = golden([*PLAIN, "model.moe.aux_loss=global_batch", f"model.moe.balance_over={over}"])
    model = build_gpt(run, VOCAB, transformer_config(run))
    batch = samples(run, 0, 2)
    model(batch.tokens, batch.position_ids, None, labels=batch.labels)
    each = batch.tokens.numel() * run.model.moe.top_k
    routers = [layer.mlp.router for layer in model.decoder.layers if layer.visit.layer == 1]
    loads = [router.balance.batch_load for router in routers]
    counts = [router.local_tokens_per_expert for router in routers]
    if over == "visit":
        assert len({id(load) for load in loads}) == len({id(c) for c in counts}) == 3
        assert [int(load.sum()) for load in loads] == [int(c.sum()) for c in counts] == [each] * 3
        for router in routers:
            assert torch.equal(router.balance.batch_load, router.load)
    else:
        assert len({id(load) for load in loads}) == 1
        assert int(loads[0].sum()) == int(counts[0].sum()) == 3 * each


def test_a_cast_leaves_bias_and_loads_exact() -> None:
    balance = VisitBalance(4, bias=True, loads=True, device="cpu")
    balance.bfloat16()
    assert balance.expert_bias.dtype == torch.float32
    assert balance.last_load.dtype == torch.int64
    balance.load_state_dict(
        {"expert_bias": torch.full((4,), 0.123456), "last_load": torch.full((4,), 2**40 + 1)}
    )
    assert balance.expert_bias[0] == torch.tensor(0.123456) and balance.last_load[0] == 2**40 + 1


def test_balanced_groups_choose_the_best_of_each(one_rank: None) -> None:
    router = _router("model.moe.group_routing=balanced", "model.moe.num_groups=4",
                     "model.moe.top_k=4")  # fmt: skip
    logits = _logits()
    _, routing_map = router.routing(logits)
    chosen: List[List[int]] = routing_map.view(T, 4, 2).sum(-1).tolist()
    assert chosen == [[1, 1, 1, 1]] * T
    best = logits.view(T, 4, 2).argmax(-1)
    assert torch.equal(routing_map.view(T, 4, 2).int().argmax(-1), best)
