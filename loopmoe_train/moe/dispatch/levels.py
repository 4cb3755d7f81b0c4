"""The two levels of an expert-parallel group that spans nodes.

Its ranks are cut into nodes. The *inner* group of a rank are those of its node; the *outer* group
are the ranks of equal place in all nodes, between which a token crosses once (Pangu Ultra MoE,
arXiv 2505.04519, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import torch.distributed as dist
from megatron.core import parallel_state


@dataclass(frozen=True)
class Levels:
    """Of this rank.

    Attributes:
        inner, outer: process groups; None where there is one level.
        inside: ranks of the inner group.
        nodes: that experts span.
        others: of every rank of the expert-parallel group whether it stands on another node.
        spanning: whether the experts of any rank of the job span nodes; the same on all ranks.
    """

    inner: Any
    outer: Any
    inside: int
    nodes: int
    others: List[bool]
    spanning: bool


_current: Optional[Levels] = None


def make(devices_per_node: int, two_levels: bool) -> None:
    """Find the levels of this rank's expert-parallel group; every rank of the job calls it.

    Args:
        two_levels: make the groups of both levels too (a group costs memory and start-up time).

    Raises:
        ValueError: the ranks of a group do not fill its nodes evenly.
    """
    global _current
    group = parallel_state.get_expert_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    groups = _all_groups()
    if ranks not in groups:
        raise RuntimeError(f"expert-parallel ranks {ranks} stand otherwise than was assumed")
    nodes = [rank // devices_per_node for rank in ranks]
    mine = nodes[group.rank()]
    # What follows is decided alike on all ranks: a group is made by all of them, in one order.
    spanning = any(len({rank // devices_per_node for rank in one}) > 1 for one in groups)
    inner = outer = None
    if two_levels and spanning:
        for members in groups:
            by_node = _by_node(members, devices_per_node)
            for same in (*by_node, *map(list, zip(*by_node))):
                made = dist.new_group(same)
                if dist.get_rank() in same:
                    inner, outer = (made, outer) if same in by_node else (inner, made)
    others = [node != mine for node in nodes]
    _current = Levels(inner, outer, nodes.count(mine), len(set(nodes)), others, spanning)


def _all_groups() -> List[List[int]]:
    """The ranks of every expert-parallel group of the job: expert-tensor ranks are neighbours, then
    expert-parallel ones (core's order tp-cp-ep-dp-pp)."""
    tensor = parallel_state.get_expert_tensor_parallel_world_size()
    block = tensor * parallel_state.get_expert_model_parallel_world_size()
    return [
        list(range(first + place, first + block, tensor))
        for first in range(0, dist.get_world_size(), block)
        for place in range(tensor)
    ]


def _by_node(members: Sequence[int], devices_per_node: int) -> List[List[int]]:
    nodes = sorted({rank // devices_per_node for rank in members})
    found = [[rank for rank in members if rank // devices_per_node == node] for node in nodes]
    if len({len(one) for one in found}) > 1:
        raise ValueError(
            f"the experts' ranks {list(members)} do not fill nodes of {devices_per_node} evenly: "
            "choose another parallel.expert_parallel_size"
        )
    return found


def current() -> Levels:
    """The levels that :func:`make` found.

    Raises:
        RuntimeError: it was not called.
    """
    if _current is None:
        raise RuntimeError("the levels of expert parallelism are not known: call levels.make first")
    return _current
