"""Exchanges of experts on gloo ranks against their definition in one process, in float64."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Dict, List, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch import Tensor

from loopmoe_train.config.compose import compose
from loopmoe_train.device.accelerator import select
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe.dispatch import dispatcher_of, levels, traffic
from loopmoe_train.parallel import groups

T, H, E, K = 13, 5, 8, 3  # tokens of a rank, hidden, experts, of a token


def routings(seed: int, ranks: int) -> Dict[str, Tensor]:
    """Name -> [ranks, T, E] bool; at most K of a token."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(weights: Tensor) -> Tensor:
        picks = torch.multinomial(weights.expand(ranks * T, E), K, generator=generator)
        return torch.zeros(ranks * T, E, dtype=torch.bool).scatter_(1, picks, True)

    even = torch.ones(E)
    found = {
        "random": drawn(even),
        "three experts take all": torch.arange(E).expand(ranks * T, E) < K,
        "the last three": torch.arange(E).expand(ranks * T, E) >= E - K,
        "skewed": drawn(2.0 ** -torch.arange(E)),
        "empty experts": drawn(torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])),
    }
    dropped = drawn(even)
    dropped[torch.rand(dropped.shape, generator=generator) < 0.4] = False
    dropped[::5] = False  # tokens that lost all
    found["dropped"] = dropped
    return {name: one.view(ranks, T, E) for name, one in found.items()}


def capped(routing: Tensor, capacity: int) -> Tensor:
    """[T, E] with at most ``capacity`` tokens of an expert: the first ones."""
    return routing & (routing.cumsum(0) <= capacity)


def inputs(seed: int, ranks: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [ranks, T, H], probs [ranks, T, E], expert matrices [E, H, H], upstream [ranks, T, H]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((ranks, T, H), (ranks, T, E), (E, H, H), (ranks, T, H))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)  # type: ignore[return-value]


def definition(
    x: Tensor, routing: Tensor, probs: Tensor, weights: Tensor, upstream: Tensor
) -> List[Tensor]:
    """Output and gradients of x, probs and weights; every expert on every token."""
    x, probs, weights = (one.double().requires_grad_() for one in (x, probs, weights))
    each = torch.einsum("rth,ehd->rted", x, weights).tanh()
    out = torch.einsum("rted,rte->rtd", each, probs * routing)
    out.backward(upstream.double())
    return [out.detach(), x.grad, probs.grad, weights.grad]


def exchange(
    kinds: List[str], settings: List[str], cases: List[Tuple[str, Any]], dtype: str
) -> Dict[str, Any]:
    """On every rank: (dispatcher, case) -> output, gradients of x, probs and all weights; bytes
    that crossed on the way to the experts, and afterwards; rows that the experts got.

    Args:
        settings: of a run, over those of four data ranks with four expert-parallel ones.
        cases: name, [ranks, T, E] routing.
    """
    select("cpu")
    words = ["model=loopmoe_tiny", "cluster.devices=4", "parallel=data",
             "parallel.expert_parallel_size=4", f"model.moe.num_experts={E}",
             f"model.moe.top_k={K}", "micro_batch_size=1", "global_batch_size=4"]  # fmt: skip
    run = compose([*words, *settings, f"model.moe.dispatcher={kinds[-1]}"])
    groups.join(run)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = copy.copy(transformer_config(run))
    collection = get_default_pg_collection()
    own = E // parallel_state.get_expert_model_parallel_world_size()
    first = parallel_state.get_expert_model_parallel_rank() * own
    found = {}
    for kind, (number, (name, routing)) in itertools.product(kinds, enumerate(cases)):
        config.loopmoe.moe.dispatcher = kind
        x, probs, weights, upstream = inputs(number, ranks)
        x_TH, probs_TE = (one[rank].to(getattr(torch, dtype)) for one in (x, probs))
        x_TH.requires_grad_(), (probs_TE := probs_TE.float()).requires_grad_()
        local = weights[first : first + own].clone().requires_grad_()
        dispatcher = dispatcher_of(config, own, list(range(first, first + own)), collection)
        traffic.take()
        sent = dispatcher.dispatch_preprocess(x_TH.view(T, 1, H), routing[rank], probs_TE)
        arrived = dispatcher.token_dispatch(*sent)
        there = traffic.take()
        rows, counts, weight_R = dispatcher.dispatch_postprocess(*arrived)
        assert int(counts.sum()) == rows.shape[0] == weight_R.shape[0]
        experts = torch.arange(own).repeat_interleave(counts.cpu())
        made = torch.einsum("rh,rhd->rd", rows.float(), local[experts]).tanh()
        made = (made * weight_R[:, None]).to(rows.dtype)
        out = dispatcher.combine_postprocess(
            dispatcher.token_combine(dispatcher.combine_preprocess(made))
        ).view(T, H)
        out.backward(upstream[rank].to(out.dtype))
        everyone = torch.zeros(weights.shape)
        everyone[first : first + own] = local.grad
        dist.all_reduce(everyone)
        found[kind, name] = (
            [out.detach(), x_TH.grad, probs_TE.grad, everyone],
            there,
            traffic.take(),
            len(rows),
        )
    groups.leave()
    return found


def uneven() -> Tuple[int, bool]:
    """Two groups of two experts' ranks on nodes of three: nodes of this rank's, and of any."""
    select("cpu")
    run = compose(["model=loopmoe_tiny", "cluster.devices=4", "parallel=data",
                   "cluster.devices_per_node=3", "parallel.expert_parallel_size=2",
                   "micro_batch_size=1", "global_batch_size=4"])  # fmt: skip
    groups.join(run)
    found = levels.current()
    groups.leave()
    return found.nodes, found.spanning
