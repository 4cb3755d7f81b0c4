"""The MoE layer: core's, with our router and experts."""

from __future__ import annotations

from typing import Any, Optional

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from loopmoe_train.moe.dispatch import dispatcher_of
from loopmoe_train.moe.experts import GroupedExperts
from loopmoe_train.moe.router import VisitRouter


class LoopMoELayer(MoELayer):
    """Routed experts (grouped) and shared experts.

    Given to core as a class, not as a spec: core recognises MoE specs by identity and would
    hand a subclass no process groups.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: Optional[int] = None,
        pg_collection: Any = None,
    ) -> None:
        linear = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        submodules = MoESubmodules(
            router=VisitRouter,
            experts=GroupedExperts,
            shared_experts=ModuleSpec(module=SharedExpertMLP, submodules=linear),
        )
        super().__init__(config, submodules, layer_number, pg_collection)
        self.token_dispatcher = dispatcher_of(
            config, self.num_local_experts, self.local_expert_indices, pg_collection
        )
        if self.use_shared_expert and self.shared_expert_overlap:
            self.token_dispatcher.set_shared_experts(self.shared_experts)
