"""The two levels of an expert-parallel group that spans nodes.

Its ranks are cut into nodes. The *inner* group of a rank are those of its node; the *outer* group
are the ranks of equal place in all nodes, between which a token crosses once (Pangu Ultra MoE,
arXiv 2505.04519, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional

import torch.distributed as dist
from megatron.core import parallel_state


@dataclass(frozen=True)
class Levels:
    """Of this rank.

    Attributes:
        inner, outer: process groups; None where experts do not span nodes.
        inside: ranks of the inner group.
        nodes: that experts span.
        node: of this rank among them.
        others: of every rank of the expert-parallel group whether it stands on another node.
    """

    inner: Any
    outer: Any
    inside: int
    nodes: int
    node: int
    others: List[bool]


_current: Optional[Levels] = None


def make(devices_per_node: int, two_levels: bool) -> None:
    """Find the levels of this rank's expert-parallel group; every rank of the job calls it.

    Args:
        two_levels: make the groups of both levels too (a group costs memory and start-up time).

    Raises:
        ValueError: the group's nodes do not hold equally many of its ranks.
    """
    global _current
    group = parallel_state.get_expert_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    nodes = [rank // devices_per_node for rank in ranks]
    mine = nodes[group.rank()]
    inside, spanned = nodes.count(mine), len(set(nodes))
    inner = outer = None
    if two_levels and spanned > 1:
        # A group is made by all ranks of the job, in the same order.
        everyone: List[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, ranks)
        for members in sorted({tuple(one) for one in everyone}):
            by_node = _by_node(members, devices_per_node)
            for same in (*by_node, *map(list, zip(*by_node))):
                made = dist.new_group(same)
                if dist.get_rank() in same:
                    inner, outer = (made, outer) if same in by_node else (inner, made)
    _current = Levels(inner, outer, inside, spanned, sorted(set(nodes)).index(mine),
                      [node != mine for node in nodes])  # fmt: skip


def _by_node(members: Any, devices_per_node: int) -> List[List[int]]:
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
