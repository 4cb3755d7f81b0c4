"""What installed packages have of the same ops. They are asked only where they are installed, and
timed only where their result is ours (bench/kernels.py compares it first)."""

from __future__ import annotations

import importlib.util
from typing import Any, Callable, Dict

import torch
from torch import Tensor

Peers = Dict[str, Callable[..., Any]]


def permutes(chosen: Tensor, experts: int) -> Peers:
    """Of tokens by expert [T, K]."""
    found: Peers = {}
    if _installed("transformer_engine"):
        from transformer_engine.pytorch import moe_permute

        # Its index form sorts in every call.
        found["TransformerEngine, with its sort"] = lambda x: moe_permute(
            x, chosen, chosen.numel(), map_type="index"
        )[0]
    if _installed("megablocks"):
        from megablocks import ops

        bins = _bins(chosen, experts)
        found["megablocks"] = lambda x: ops.gather(x, *bins, chosen.shape[1])
    return found


def combines(chosen: Tensor, experts: int) -> Peers:
    """Of rows sorted by expert, weighted by [T, K]."""
    found: Peers = {}
    if _installed("transformer_engine"):
        from transformer_engine.pytorch import moe_permute, moe_unpermute

        some = torch.zeros(len(chosen), 16, dtype=torch.bfloat16, device=chosen.device)
        row_ids = moe_permute(some, chosen, chosen.numel(), map_type="index")[1]
        found["TransformerEngine"] = lambda y, p: moe_unpermute(
            y, row_ids, merging_probs=p, map_type="index"
        )
    if _installed("megablocks"):
        from megablocks import ops

        order, bin_ids, bins = _bins(chosen, experts)
        top_k = chosen.shape[1]
        found["megablocks"] = lambda y, p: ops.scatter(y, order, bin_ids, p.flatten(), bins, top_k)
    return found


def _bins(chosen: Tensor, experts: int) -> Any:
    """megablocks' description of a routing: order of the pairs, their experts, ends of experts."""
    bin_ids, order = torch.sort(chosen.flatten(), stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return order.int(), bin_ids.int(), counts.cumsum(0).int()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
