"""Expert exchanges in two levels: between nodes a token crosses once, inside a node it is copied.

Both hand the tokens that came to a node to the flat dispatcher of that node's ranks, whose experts
are all that the node has; they differ in how tokens get between nodes.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import Any, Tuple

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    all_to_all,
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.moe_utils import get_capacity
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch import Tensor

from loopmoe_kernels.combine import combine
from loopmoe_kernels.dispatch_index import dispatch_index
from loopmoe_kernels.permute import permute
from loopmoe_train.moe.dispatch import levels
from loopmoe_train.moe.dispatch.flat import AllToAllDispatcher
from loopmoe_train.moe.dispatch.traffic import crossing


class _TwoLevelDispatcher(MoETokenDispatcher, ABC):
    """What both have in common. N nodes of the expert-parallel group, En experts on each."""

    def __init__(
        self, num_local_experts: int, local_expert_indices: Any, config: Any, pg_collection: Any
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.levels = levels.current()
        self.nodes, self.outer = self.levels.nodes, self.levels.outer
        self.node_experts = num_local_experts * self.levels.inside
        first = self.levels.inner.rank() * num_local_experts
        inside = copy.copy(config)
        inside.num_moe_experts = self.node_experts
        if not config.moe_pad_expert_input_to_capacity:
            # A node gets any number of a token's experts: with a factor core asks for their
            # number instead of taking top_k a token. It has no other effect there.
            inside.moe_expert_capacity_factor = 1.0
        groups = SimpleNamespace(
            ep=self.levels.inner, expt_tp=pg_collection.expt_tp, tp_ep=self.levels.inner
        )
        self.inside = AllToAllDispatcher(
            num_local_experts, list(range(first, first + num_local_experts)), inside, groups
        )

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """As core's. Returns what crosses: rows, and beside each [2 En] of its experts there:
        probabilities, and 1 where one is chosen."""
        self.hidden_shape = hidden_states.shape
        if self.shared_experts is not None:
            self.shared_experts.pre_forward_comm(hidden_states)
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        if self.inside.drop_and_pad:  # a node gets what all its counterparts have room for
            self.inside.room = self.nodes * get_capacity(
                x_TH.shape[0] * self.config.moe_router_topk,
                self.config.num_moe_experts,
                self.config.moe_expert_capacity_factor,
            )
        per_node = (-1, self.nodes, self.node_experts)
        map_TNE = routing_map.view(per_node)
        beside_TNE2 = torch.cat([probs.view(per_node), map_TNE.to(probs.dtype)], dim=-1)
        return self._prepared(x_TH, map_TNE, beside_TNE2)

    def token_dispatch(self, rows: Tensor, beside: Tensor) -> Tuple[Tensor, Tensor]:
        """Between nodes, then inside this one."""
        rows, beside = self._across(rows, beside)
        probs, chosen_there = beside.split(self.node_experts, dim=-1)
        return self.inside.token_dispatch(
            *self.inside.dispatch_preprocess(rows, chosen_there > 0.5, probs)
        )

    def dispatch_postprocess(self, rows: Tensor, probs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The received rows in the order of this rank's experts."""
        if self.shared_experts is not None:
            self.shared_experts.linear_fc1_forward_and_act(rows)
        return self.inside.dispatch_postprocess(rows, probs)

    def combine_preprocess(self, rows: Tensor) -> Tensor:
        """The experts' outputs in the order in which rows were received."""
        return self.inside.combine_preprocess(rows)

    def token_combine(self, rows: Tensor, *_: Any, **__: Any) -> Tensor:
        """Back inside the node, where a token's rows are added up, then between nodes."""
        return self._back(self.inside.combine_postprocess(self.inside.token_combine(rows)))

    def combine_postprocess(self, rows: Tensor) -> Tensor:
        """Add up what came from the nodes, and the shared experts' output."""
        if self.shared_experts is not None:
            self.shared_experts.linear_fc2_forward(rows)
            self.shared_experts.post_forward_comm()
        out = self._summed(rows).view(self.hidden_shape)
        if self.shared_experts is not None:
            out = out + self.shared_experts.get_output()
        return out

    # -- what differs ----------------------------------------------------------------------
    @abstractmethod
    def _prepared(
        self, x_TH: Tensor, map_TNE: Tensor, beside_TNE2: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """What is sent between nodes, and what goes beside each row of it."""

    @abstractmethod
    def _across(self, rows: Tensor, beside: Tensor) -> Tuple[Tensor, Tensor]:
        """Send them to the ranks of equal place."""

    @abstractmethod
    def _back(self, rows: Tensor) -> Tensor:
        """Return a node's sums to the ranks of their tokens."""

    def _summed(self, rows: Tensor) -> Tensor:
        return rows


class HierarchicalDispatcher(_TwoLevelDispatcher):
    """All-gather over the ranks of equal place, back by reduce-scatter (Pangu Ultra MoE).

    Every node gets every token of its counterparts: (N - 1) T rows leave a rank each way, however
    tokens are routed. Sizes are known beforehand: nothing is waited for between nodes.
    """

    def _prepared(
        self, x_TH: Tensor, map_TNE: Tensor, beside_TNE2: Tensor
    ) -> Tuple[Tensor, Tensor]:
        return x_TH, beside_TNE2.transpose(0, 1).flatten(0, 1)

    def _across(self, rows: Tensor, beside: Tensor) -> Tuple[Tensor, Tensor]:
        self.leaving = (self.nodes - 1) * rows.shape[0]
        rows = crossing(rows, self.leaving, self.leaving)
        gathered = gather_from_sequence_parallel_region(rows, group=self.outer)
        return gathered, all_to_all(self.outer, beside)

    def _back(self, rows: Tensor) -> Tensor:
        rows = crossing(rows, self.leaving, self.leaving)
        return reduce_scatter_to_sequence_parallel_region(rows, group=self.outer)


class DeduplicatedDispatcher(_TwoLevelDispatcher):
    """A token crosses to the nodes that hold an expert of it, once to each.

    With K experts drawn alike (N - 1) (1 - (1 - 1/N)^K) rows leave for every token. How many is
    known on the host only once counts were exchanged: one wait more than in the flat exchange.
    """

    def _prepared(
        self, x_TH: Tensor, map_TNE: Tensor, beside_TNE2: Tensor
    ) -> Tuple[Tensor, Tensor]:
        reached_TN = map_TNE.any(-1)
        index_TN = torch.arange(self.nodes, device=x_TH.device).expand_as(reached_TN)
        slots_TN, counts_N = dispatch_index(index_TN.masked_fill(~reached_TN, -1), self.nodes)
        arriving_N = torch.empty_like(counts_N)
        dist.all_to_all_single(arriving_N, counts_N, group=self.outer)
        self.sent, self.got = torch.stack([counts_N, arriving_N]).tolist()
        self.slots_TN, rows = slots_TN, sum(self.sent)
        beside = permute(beside_TNE2.flatten(0, 1), slots_TN.view(-1, 1), rows)
        return permute(x_TH, slots_TN, rows), beside

    def _across(self, rows: Tensor, beside: Tensor) -> Tuple[Tensor, Tensor]:
        rows = crossing(rows, self._elsewhere(self.sent), self._elsewhere(self.got))
        return (
            all_to_all(self.outer, rows, self.got, self.sent),
            all_to_all(self.outer, beside, self.got, self.sent),
        )

    def _back(self, rows: Tensor) -> Tensor:
        rows = crossing(rows, self._elsewhere(self.got), self._elsewhere(self.sent))
        return all_to_all(self.outer, rows, self.sent, self.got)

    def _summed(self, rows: Tensor) -> Tensor:
        return combine(rows, self.slots_TN)

    def _elsewhere(self, rows_N: Any) -> int:
        return sum(rows_N) - rows_N[self.outer.rank()]
