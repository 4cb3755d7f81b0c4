"""How long a collective runs on a network of tiers.

A group of n ranks that stand ``stride`` apart has m_1 <= m_2 <= ... members inside one domain of
each tier. What leaves a domain of tier k - 1 shares the ports of its m_{k-1} members there:
a ring therefore runs at the least of m_{k-1} B_k over the tiers that it crosses (ring and mesh
algorithms of NCCL and HCCL; arXiv 2504.14960 for the groups).

What each stands for in HCCL's terms: inside a full mesh, Mesh (one step over all wires at once);
over any other tier NHR (the bytes of a ring in log2 steps: a plain ring moves as many in more);
over several tiers, pipeline (tiers work side by side, the slowest counts); the all-to-all is
pairwise, a few peers at a time. HCCL_ALGO may choose worse ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Tuple

from loopmoe_train.sim.machine import Link, Machine

_AT_ONCE = 8  # peers that an all-to-all writes to at a time


@dataclass(frozen=True)
class Group:
    """``size`` ranks, each ``stride`` after the one before."""

    size: int
    stride: int = 1

    def members(self, machine: Machine) -> List[Tuple[Link, int]]:
        """Of every tier how many members one of its domains holds."""
        found = []
        for link in machine.links:
            inside = self.size
            if link.devices:
                inside = max(1, min(self.size, link.devices // self.stride))
            found.append((link, inside))
        return found


def gather(machine: Machine, group: Group, size: float) -> float:
    """Seconds of an all-gather or a reduce-scatter; ``size``: bytes of the whole tensor."""
    if group.size < 2:
        return 0.0
    slowest, delay, below = 0.0, 0.0, 1
    for link, inside in group.members(machine):
        if inside > below:
            rate = link.rate_of(inside) if below == 1 else below * link.rate_of(inside)
            slowest = max(slowest, 1 / rate)
            delay += link.latency * (1 if link.mesh else math.ceil(math.log2(inside / below)) + 1)
        below = max(below, inside)
    return delay + (group.size - 1) / group.size * size * slowest


def all_reduce(machine: Machine, group: Group, size: float) -> float:
    """Seconds of an all-reduce: a reduce-scatter and an all-gather."""
    return 2 * gather(machine, group, size)


def all_to_all(machine: Machine, group: Group, sent: float) -> float:
    """Seconds of an all-to-all in which every rank sends ``sent`` bytes, its own part included.

    The tiers work side by side; each carries what goes to members that only it reaches.
    """
    if group.size < 2:
        return 0.0
    slowest, delay, below = 0.0, 0.0, 1
    for link, inside in group.members(machine):
        if inside > below:
            part = sent * (inside - below) / group.size
            slowest = max(slowest, part / link.rate_of(inside))
            delay += link.latency * max(1.0, (inside - below) / _AT_ONCE)
        below = max(below, inside)
    return delay + slowest


def hierarchical(
    machine: Machine, group: Group, tokens: float, token: float, top_k: int, imbalance: float = 1.0
) -> float:
    """Seconds of one way of the expert exchange in two levels.

    Every token crosses to each node that holds one of its experts once: all-gather over the ranks
    of equal place in their nodes, then an all-to-all inside the node (Pangu Ultra MoE).

    Args:
        tokens: of one rank.
        token: bytes of one.
        imbalance: rows of the fullest rank over the mean, inside a node.
    """
    outer, inner = _levels(machine, group)
    across = gather(machine, outer, outer.size * tokens * token)
    return across + all_to_all(machine, inner, tokens * top_k * token * imbalance)


def deduplicated(
    machine: Machine, group: Group, tokens: float, token: float, top_k: int, imbalance: float = 1.0
) -> float:
    """As :func:`hierarchical`, but a token crosses only to nodes that hold an expert of it."""
    levels = _levels(machine, group)
    return sum(_once_a_node(machine, *levels, tokens, token, top_k, imbalance))


def chunked(
    machine: Machine, group: Group, tokens: float, token: float, top_k: int, imbalance: float = 1.0
) -> float:
    """As :func:`deduplicated`, with both levels side by side, chunk by chunk, and with the widest
    tier that the group leaves as its node (DeepEP)."""
    inside = max([n for _, n in group.members(machine) if n < group.size], default=group.size)
    levels = _cut(group, inside)
    return max(_once_a_node(machine, *levels, tokens, token, top_k, imbalance))


def _once_a_node(
    machine: Machine, outer: Group, inner: Group, tokens: float, token: float, top_k: int,
    imbalance: float,
) -> Tuple[float, float]:  # fmt: skip
    """Seconds between nodes, and inside one."""
    across = all_to_all(machine, outer, tokens * token * distinct_nodes(outer.size, top_k))
    return across, all_to_all(machine, inner, tokens * top_k * token * imbalance)


def _levels(machine: Machine, group: Group) -> Tuple[Group, Group]:
    """The ranks of equal place in their nodes, and those of one node; one of 1 if all are there.

    A node is what ``cluster.devices_per_node`` says, as it is for the trainer.
    """
    inside = max(1, min(group.size, machine.node // group.stride))
    # The trainer refuses groups that do not fill their nodes.
    return _cut(group, inside if group.size % inside == 0 else group.size)


def _cut(group: Group, inside: int) -> Tuple[Group, Group]:
    return Group(group.size // inside, group.stride * inside), Group(inside, group.stride)


def distinct_nodes(nodes: int, top_k: int) -> float:
    """Nodes that the experts of a token stand on, if each is drawn alike."""
    return nodes * (1 - (1 - 1 / nodes) ** top_k)


def point_to_point(machine: Machine, reach: int, size: float) -> float:
    """Seconds to a rank at most ``reach`` - 1 further, over the tier that all of these share."""
    for link in machine.links:
        if not link.devices or reach <= link.devices:
            rate = link.rate / max(1, link.devices - 1) if link.mesh else link.rate
            return link.latency + size / rate
    link = machine.links[-1]
    return link.latency + size / link.rate
