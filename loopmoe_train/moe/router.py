"""Core's top-k router with load statistics per visit, balance losses and balanced groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Optional, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from loopmoe_train.device.accelerator import accel
from loopmoe_train.moe.balance import VisitBalance, device_loss, expert_loss, normalised_scores


class VisitRouter(TopKRouter):
    """A router that counts what each visit does.

    The selection bias and the loads that a balance loss looks at belong to the layer and pool
    all its iterations, or to one visit (``model.moe.balance_over``). The statistics here always
    belong to one visit, since routing differs by iteration. All are counted where gradients are
    on, as core counts its own: so evaluation does not count, and under recomputation each token
    counts once.

    Attributes:
        load: [num_experts] int64, token-to-expert assignments since :meth:`reset_statistics`.
        dropped: [num_experts] int64, those of them that exceeded the capacity.
        last_routing_map: [tokens, num_experts] of the last call, kept only while
            ``keep_routing_map`` is set (a probe sets it).
        balance: the loads of this layer (all visits, or the first).
        later_visits: balance of the later visits, if each has its own.
    """

    def __init__(self, config: Any, pg_collection: Any = None) -> None:
        # Core's routing is to choose only: what exceeds the capacity is dropped here, after the
        # choice was counted and balanced.
        chooses = replace(
            config, moe_expert_capacity_factor=None, moe_pad_expert_input_to_capacity=False
        )
        super().__init__(config=chooses, pg_collection=pg_collection)
        moe = config.loopmoe.moe
        self.balance = self._new_balance(bias=False)  # core's class has the bias
        self.later_visits = nn.ModuleList()
        if moe.group_routing == "balanced":
            self.router_replay = _BalancedGroups(moe.num_groups)
        self.keep_routing_map = False
        self.last_routing_map: Optional[Tensor] = None
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Start counting anew."""
        # A plain attribute, not a buffer: a cast of the model must not touch counts.
        zeros = torch.zeros(self.num_experts, dtype=torch.int64, device=accel.current_device())
        self.__dict__["load"], self.__dict__["dropped"] = zeros, zeros.clone()

    def balance_of_later_visit(self) -> VisitBalance:
        """A bias and loads for the next visit alone; owned and registered here."""
        balance = self._new_balance(bias=self.enable_expert_bias)
        self.later_visits.append(balance)
        return balance

    def _new_balance(self, bias: bool) -> VisitBalance:
        loads = self.config.loopmoe.moe.aux_loss == "global_batch"
        return VisitBalance(self.num_experts, bias, loads, accel.current_device())

    def routing(self, logits: Tensor, padding_mask: Optional[Tensor] = None) -> Any:
        """Core's routing, then the count and our balance losses.

        Args:
            logits: [s, b, num_experts].

        Returns:
            probs and routing map, both [s * b, num_experts]; with a capacity, of what is sent.
        """
        probs, chosen = super().routing(logits, padding_mask=padding_mask)
        if self.keep_routing_map:
            self.last_routing_map = chosen.detach()
        if torch.is_grad_enabled():
            self.load.add_(chosen.sum(0))
            if self.training:
                probs = self._balanced(probs, chosen, logits.flatten(0, 1))
        moe = self.config.loopmoe.moe
        if moe.capacity_factor is None:
            return probs, chosen
        # Never padded here: core fills an expert's room with tokens that did not choose it. The
        # dispatcher leaves such rows empty.
        probs, sent = apply_router_token_dropping(
            probs, chosen, self.topk, moe.capacity_factor, moe.drop_policy
        )
        if torch.is_grad_enabled():
            self.dropped.add_((chosen & ~sent).sum(0))
        return probs, sent

    def _balanced(self, probs: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        """``probs`` with the gradients of the balance losses attached."""
        moe = self.config.loopmoe.moe
        load = chosen.sum(0)
        if moe.aux_loss == "global_batch":
            self.balance.batch_load.add_(load)
            load = self.balance.last_load
        elif moe.aux_loss == "expert_parallel":
            dist.all_reduce(load, group=_expert_group())
        scores = None
        if moe.aux_loss in ("global_batch", "expert_parallel") and moe.aux_loss_coeff:
            scores = normalised_scores(logits, moe.score_function)
            loss = expert_loss(load, scores)
            probs = self._attach(probs, loss, moe.aux_loss_coeff, f"{moe.aux_loss}_load_balancing")
        if moe.device_loss_coeff:
            scores = normalised_scores(logits, moe.score_function) if scores is None else scores
            loss = device_loss(
                chosen, scores, parallel_state.get_expert_model_parallel_world_size()
            )
            probs = self._attach(probs, loss, moe.device_loss_coeff, "device_load_balancing")
        return probs

    def _attach(self, probs: Tensor, loss: Tensor, coeff: float, name: str) -> Tensor:
        return self.attach_and_log_load_balancing_loss(
            probs, coeff, coeff * loss, name, self.tp_cp_group
        )


def _expert_group() -> Any:
    return parallel_state.get_expert_tensor_and_model_parallel_group()


class _BalancedGroups:
    """Top-k / groups experts in each group of experts (MoGE: Pangu Pro MoE, arXiv 2505.21411).

    Sits in core's slot for replaying a routing, where the choice is made from given scores.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: Any,
        group_topk: Any,
        default: Callable[..., Any],
    ) -> Tuple[Tensor, Tensor]:
        """Values and indices [T, topk] of the chosen among scores [T, E]."""
        tokens, experts = scores.shape
        size = experts // self.num_groups
        values, places = scores.view(tokens, self.num_groups, size).topk(topk // self.num_groups)
        first = torch.arange(0, experts, size, device=scores.device)[:, None]
        return values.flatten(1), (places + first).flatten(1)
