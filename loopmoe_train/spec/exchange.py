"""The exchanges of tokens among expert-parallel ranks, by name, and where they can be.

Rules, the simulator's search and the trainer's groups ask here.
"""

from __future__ import annotations

TWO_LEVEL = ("hierarchical", "deduplicated")
DISPATCHERS = ("alltoall", "allgather", *TWO_LEVEL)


def fills_nodes(expert: int, devices_per_node: int) -> bool:
    """Whether ``expert`` ranks are two whole nodes or more, as two levels need it."""
    return expert > devices_per_node and expert % devices_per_node == 0
