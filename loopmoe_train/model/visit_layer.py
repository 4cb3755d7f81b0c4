"""One visit (layer, iteration) as a megatron-core transformer layer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, List, Optional

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from loopmoe_train.model.iter_adaln import IterAdaLN
from loopmoe_train.model.norm import RMSNorm
from loopmoe_train.model.residual import ResidualAdd
from loopmoe_train.model.shell import shell_of
from loopmoe_train.moe.dispatch import dispatcher_of
from loopmoe_train.moe.layer import LoopMoELayer
from loopmoe_train.spec.visits import Visit


class VisitLayer(TransformerLayer):
    """The first visit of a layer: it owns and registers the layer's weights.

    Args:
        visit: which visit this is.
        sandwich: a second norm on both sublayer outputs.
        owners: this layer's place for handing itself to later visits; filled here.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        layer_number: int = 1,
        hidden_dropout: Optional[float] = None,
        pg_collection: Any = None,
        vp_stage: Optional[int] = None,
        *,
        visit: Visit,
        sandwich: bool,
        owners: List[VisitLayer],
    ) -> None:
        super().__init__(config, submodules, layer_number, hidden_dropout, pg_collection, vp_stage)
        self.visit = visit
        loop = config.loopmoe.loop
        self.starts_body = visit.looped and visit.layer == config.loopmoe.prefix_layers
        self.injection: Optional[nn.Linear] = None
        if loop.state_injection and self.starts_body:
            d = config.hidden_size
            self.injection = nn.Linear(d, d, bias=False, dtype=config.params_dtype)
            # Token-wise and replicated, as IterAdaLN's.
            self.injection.weight.sequence_parallel = config.sequence_parallel
        # The state that enters the loop, of the forward pass that runs.
        self.__dict__["entered"] = None
        self.cuts_gradient = False  # set for a step by model/iterations.py
        # Core turns gradients on around the residual add, also in evaluation: with weights
        # in that slot every activation of an evaluation would be kept.
        self.bias_dropout_add_exec_handler = nullcontext
        norms = [RMSNorm(config, config.hidden_size, config.layernorm_epsilon) if sandwich else None
                 for _ in range(2)]  # fmt: skip
        gated_by = self.input_layernorm if isinstance(self.input_layernorm, IterAdaLN) else None
        self.self_attn_bda = ResidualAdd(norms[0], gated_by)
        self.mlp_bda = ResidualAdd(norms[1], None)
        owners.append(self)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Core's, with what happens to the state between two iterations before it."""
        if self.starts_body:
            hidden_states = self._begin_iteration(hidden_states)
        return super().forward(hidden_states, *args, **kwargs)

    def _begin_iteration(self, hidden: Tensor) -> Tensor:
        if self.cuts_gradient:
            hidden = hidden.detach()
        if self.injection is None:
            return hidden
        if self.visit.owns_weights:
            self.__dict__["entered"] = hidden
            return hidden
        return hidden + self.injection(self.__dict__["_owner"].entered)


class LaterVisit:
    """Builds the shell of a layer for iterations 2..K; fits where core builds a layer."""

    def __new__(  # type: ignore[misc]
        cls,
        config: TransformerConfig,
        layer_number: int = 1,
        pg_collection: Any = None,
        vp_stage: Optional[int] = None,
        *,
        visit: Visit,
        owners: List[VisitLayer],
    ) -> VisitLayer:
        owner = owners[0]
        layer = shell_of(owner)
        layer.visit = visit
        # Only the first virtual chunk of a stage holds owners; numbers run over all visits.
        layer.layer_number = owner.layer_number + visit.index - owner.visit.index
        if isinstance(owner.input_layernorm, IterAdaLN):
            layer.input_layernorm = _at(owner.input_layernorm, visit.iteration)
            layer.pre_mlp_layernorm = _at(owner.pre_mlp_layernorm, visit.iteration)
            layer.self_attn_bda = shell_of(owner.self_attn_bda)
            layer.self_attn_bda.__dict__["gated_by"] = layer.input_layernorm
        if layer.is_moe_layer:
            layer.mlp = _moe_shell(owner.mlp, layer.layer_number)
        return layer


def _at(norm: IterAdaLN, iteration: int) -> IterAdaLN:
    shell = shell_of(norm)
    shell.set_iteration(iteration)
    return shell


def _moe_shell(owner: LoopMoELayer, layer_number: int) -> LoopMoELayer:
    """The MoE layer for a later iteration: own router statistics, own dispatcher.

    A dispatcher carries the layout of one exchange from dispatch to combine, so visits that
    are in flight at once must not share one.
    """
    layer = shell_of(owner)
    own = owner.config.loopmoe.moe.balance_over == "visit"
    balance = owner.router.balance_of_later_visit() if own else None
    layer.router = shell_of(owner.router, balance)
    if balance is not None:
        layer.router.__dict__["balance"] = balance
    layer.router.last_routing_map = None
    layer.router.reset_statistics()
    layer.token_dispatcher = dispatcher_of(
        owner.config, owner.num_local_experts, owner.local_expert_indices
    )
    if owner.use_shared_expert and owner.shared_expert_overlap:
        layer.token_dispatcher.set_shared_experts(owner.shared_experts)
    layer.set_layer_number(layer_number)
    return layer
