"""How tokens get to the ranks of their experts and back: megatron-core token dispatchers."""

from __future__ import annotations

from typing import Any, List

from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoETokenDispatcher,
)

from loopmoe_train.moe.dispatch.flat import AllToAllDispatcher
from loopmoe_train.moe.dispatch.two_level import DeduplicatedDispatcher, HierarchicalDispatcher

_CLASSES = {
    "alltoall": AllToAllDispatcher,
    "allgather": MoEAllGatherTokenDispatcher,
    "hierarchical": HierarchicalDispatcher,
    "deduplicated": DeduplicatedDispatcher,
}


def dispatcher_of(
    config: Any, num_local_experts: int, local_expert_indices: List[int], groups: Any = None
) -> MoETokenDispatcher:
    """The dispatcher that ``model.moe.dispatcher`` names, for one MoE layer and visit.

    Args:
        groups: core's collection of process groups; None: those of the job's layout.
    """
    kind = _CLASSES[config.loopmoe.moe.dispatcher]
    groups = groups or get_default_pg_collection()
    return kind(num_local_experts, local_expert_indices, config=config, pg_collection=groups)
