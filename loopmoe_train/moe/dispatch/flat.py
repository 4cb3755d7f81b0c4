"""Core's all-to-all dispatcher with the operations of ``loopmoe_kernels``.

What core does is kept: its counts and splits, the one wait for the host's copy of them, tensor
parallelism of experts, shared experts beside the exchange. The rows are moved by `permute` and
`combine`, whose backward uses the same slots: the layout is computed once. Sums are taken in fp32
in the order of a token's experts, without atomic additions, so runs repeat to the bit.
"""

from __future__ import annotations

import copy
from typing import Any, Optional, Tuple

import torch
from megatron.core.tensor_parallel import (
    all_to_all,
    gather_from_sequence_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor

from loopmoe_kernels.combine import combine
from loopmoe_kernels.dispatch_index import dispatch_index
from loopmoe_kernels.expert_major_index import expert_major_index
from loopmoe_kernels.permute import permute
from loopmoe_train.moe.dispatch import levels
from loopmoe_train.moe.dispatch.traffic import crossing


class AllToAllDispatcher(MoEAlltoAllTokenDispatcher):
    """Every pair of a token and an expert is a row that is sent to the expert's rank."""

    def __init__(
        self, num_local_experts: int, local_expert_indices: Any, config: Any, pg_collection: Any
    ) -> None:
        # As with its fused permutation, core leaves the counts on the device then, and does not
        # wait for them before the second permutation.
        config = copy.copy(config)
        config.moe_permute_fusion = True
        super().__init__(num_local_experts, local_expert_indices, config, pg_collection)
        # What one rank sent is in the order of experts as it comes.
        self.reorders = num_local_experts > 1 and self.tp_size * self.ep_size > 1
        # Padded rows of an expert, where they do not follow from the tokens that come in here.
        self.room: Optional[int] = None

    # -- to the experts --------------------------------------------------------------------
    def preprocess(self, routing_map: Tensor) -> Tensor:
        """Counts and splits of an exchange, as core's."""
        counts = super().preprocess(routing_map)
        if self.ep_size == self.tp_size == 1 and isinstance(self.num_out_tokens, int):
            self.cuda_sync_point = "no_sync"  # nothing is needed on the host
        if self.drop_and_pad and self.room is not None:
            self.capacity, self.num_out_tokens = self.room, self.room * self.num_experts
            counts = torch.full_like(counts, self.room * self.tp_size * self.ep_size)
        return counts

    def dispatch_preprocess(
        self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Rows of this rank in the order of their experts, and their probabilities.

        Args:
            hidden_states: [..., H] of T tokens.
            routing_map: [T, E] bool, at most ``moe_router_topk`` a token; probs: [T, E].
        """
        self.hidden_shape = hidden_states.shape
        self.probs, self.routing_map = probs, routing_map
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        self.tokens_per_expert = self.preprocess(routing_map)
        if self.shared_experts is not None:
            self.shared_experts.pre_forward_comm(hidden_states)
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
            "before_permutation_1", self.tokens_per_expert
        )
        experts_TK, probs_TK = chosen(routing_map, probs, self.config.moe_router_topk)
        slots_TK, counts = dispatch_index(experts_TK, self.num_experts)
        if self.drop_and_pad:
            slots_TK = _padded(slots_TK, experts_TK, counts, self.capacity)
        self.slots_TK, rows = slots_TK, int(self.num_out_tokens)
        self.dropless = not self.drop_and_pad and rows == slots_TK.numel()
        return (
            permute(x_TH, slots_TK, rows, dropless=self.dropless),
            permute(
                probs_TK.view(-1, 1), slots_TK.view(-1, 1), rows, dropless=self.dropless
            ).squeeze(1),
        )

    def token_dispatch(self, rows: Tensor, probs: Tensor) -> Tuple[Tensor, Tensor]:
        """Send every row to the rank of its expert."""
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
            "before_ep_alltoall", self.tokens_per_expert
        )
        ahead, back = self._crossing(rows)
        rows = crossing(rows, ahead, back)
        return (
            all_to_all(self.ep_group, rows, self.output_splits, self.input_splits),
            all_to_all(self.ep_group, probs, self.output_splits, self.input_splits),
        )

    def dispatch_postprocess(self, rows: Tensor, probs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The received rows in the order of this rank's experts."""
        if self.shared_experts is not None:
            self.shared_experts.linear_fc1_forward_and_act(rows)
        splits = None if self.output_splits_tp is None else self.output_splits_tp.tolist()
        if self.tp_size > 1:
            rows, probs = (
                gather_from_sequence_parallel_region(
                    one, group=self.tp_group, output_split_sizes=splits
                )
                for one in (rows, probs)
            )
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
            "before_permutation_2", self.tokens_per_expert
        )
        if self.reorders:
            self.places_R1 = self._expert_major(rows)
            count = rows.shape[0]
            rows = permute(rows, self.places_R1, count, dropless=True)
            probs = permute(probs.view(-1, 1), self.places_R1, count, dropless=True).squeeze(1)
        counts = self._maybe_dtoh_and_synchronize("before_finish", self.tokens_per_expert)
        self.tokens_per_expert = None
        return rows, counts, probs

    def _expert_major(self, rows: Tensor) -> Tensor:
        """[R, 1], the place of every received row."""
        if self.drop_and_pad:
            each = torch.full((self.tp_size * self.ep_size, self.num_local_experts), self.capacity)
            counts = each.to(rows.device)
        else:
            counts = self.num_global_tokens_per_local_expert.to(rows.device)
        return expert_major_index(counts, rows.shape[0])[:, None]

    # -- and back --------------------------------------------------------------------------
    def combine_preprocess(self, rows: Tensor) -> Tensor:
        """The experts' outputs in the order in which rows were received."""
        if self.reorders:
            rows = combine(rows, self.places_R1, dropless=True)
        if self.tp_size > 1:
            splits = None if self.output_splits_tp is None else self.output_splits_tp.tolist()
            rows = reduce_scatter_to_sequence_parallel_region(
                rows.to(self.probs.dtype), group=self.tp_group, input_split_sizes=splits
            ).to(rows.dtype)
        return rows

    def token_combine(self, rows: Tensor, *_: Any, **__: Any) -> Tensor:
        """Send every row back to the rank of its token."""
        ahead, back = self._crossing(rows)
        rows = crossing(rows, back, ahead)
        return all_to_all(self.ep_group, rows, self.input_splits, self.output_splits)

    def combine_postprocess(self, rows: Tensor) -> Tensor:
        """Add up a token's rows, and the shared experts' output."""
        if self.shared_experts is not None:
            self.shared_experts.linear_fc2_forward(rows)
            self.shared_experts.post_forward_comm()
        out = combine(rows, self.slots_TK, dropless=self.dropless).view(self.hidden_shape)
        if self.shared_experts is not None:
            out = out + self.shared_experts.get_output()
        return out

    def _maybe_dtoh_and_synchronize(self, point: str, counts: Any = None) -> Any:
        # Our experts read the counts on the device.
        super()._maybe_dtoh_and_synchronize(point, None)
        return counts

    def _crossing(self, rows: Tensor) -> Tuple[int, int]:
        """Rows that leave this node on their way to the experts, and that come from others."""
        others = levels.current().others if self.ep_size > 1 else []
        if not any(others) or len(others) != self.ep_size:
            return 0, 0  # inside a node
        if self.input_splits is None:  # padded: all get as many
            each = rows.shape[0] // self.ep_size
            return each * sum(others), each * sum(others)
        return (
            sum(int(n) for n, other in zip(self.input_splits, others) if other),
            sum(int(n) for n, other in zip(self.output_splits, others) if other),
        )


def chosen(routing_map: Tensor, probs: Tensor, top_k: int) -> Tuple[Tensor, Tensor]:
    """A routing map as indices.

    Args:
        routing_map, probs: [T, E]; at most ``top_k`` entries of a row are set.

    Returns:
        experts: [T, k] int32 in ascending order, -1 where a token has fewer; k = min(top_k, E).
        probs: [T, k], differentiable; of -1 whatever is there.
    """
    experts = routing_map.shape[1]
    order = torch.arange(experts, 0, -1, device=routing_map.device, dtype=torch.float32)
    rank, index = (routing_map * order).topk(min(top_k, experts), dim=1)
    return index.to(torch.int32).masked_fill(rank == 0, -1), probs.gather(1, index)


def _padded(slots: Tensor, experts: Tensor, counts: Tensor, capacity: int) -> Tensor:
    """Slots where every expert has ``capacity`` rows."""
    first = (counts.cumsum(0) - counts).to(torch.int32)
    expert = experts.clamp_min(0).long()
    inside = slots - first[expert]
    return torch.where(slots < 0, slots, expert.to(torch.int32) * capacity + inside)
