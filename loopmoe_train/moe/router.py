"""Core's top-k router with load statistics per visit."""

from __future__ import annotations

from typing import Any, Optional

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from loopmoe_train.device.accelerator import accel


class VisitRouter(TopKRouter):
    """A router that counts what each visit does.

    The selection bias and the counts that move it belong to the layer and pool all its
    iterations ; the statistics here belong to one visit, since
    routing differs by iteration. They are counted where gradients are on, as core counts its
    own: so evaluation does not count, and under recomputation each token counts once.

    Attributes:
        load: [num_experts] int64, token-to-expert assignments since :meth:`reset_statistics`.
        last_routing_map: [tokens, num_experts] of the last call, kept only while
            ``keep_routing_map`` is set (a probe sets it).
    """

    def __init__(self, config: Any, pg_collection: Any = None) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.keep_routing_map = False
        self.last_routing_map: Optional[Tensor] = None
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Start counting anew."""
        # A plain attribute, not a buffer: a cast of the model must not touch counts.
        self.__dict__["load"] = torch.zeros(
            self.num_experts, dtype=torch.int64, device=accel.current_device()
        )

    def routing(self, logits: Tensor, padding_mask: Optional[Tensor] = None) -> Any:
        """Core's routing, then the count.

        Args:
            logits: [s, b, num_experts].

        Returns:
            probs and routing map, both [s * b, num_experts].
        """
        probs, routing_map = super().routing(logits, padding_mask=padding_mask)
        if self.keep_routing_map:
            self.last_routing_map = routing_map.detach()
        if torch.is_grad_enabled():
            self.load.add_(routing_map.sum(0))
        return probs, routing_map
