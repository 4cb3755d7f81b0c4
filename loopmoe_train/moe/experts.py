"""Routed experts as two grouped matrix products, without TransformerEngine."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
import torch.nn.functional as F
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from loopmoe_kernels.weighted_swiglu import weighted_swiglu
from loopmoe_train.device.accelerator import accel


class GroupedExperts(MegatronModule):
    """All SwiGLU experts of this rank, applied to tokens sorted by expert.

    Weights (E: experts on this rank, d: hidden, f: expert hidden over expert-tensor ranks):
        w1_EDGF: [E, d, 2, f], gate and up apart, so that a shard of f holds both halves.
        w2_EFD: [E, f, d].

    Raises:
        ValueError: the configuration asks for biases or another activation.
    """

    def __init__(
        self, num_local_experts: int, config: TransformerConfig, pg_collection: Any = None
    ) -> None:
        super().__init__(config=config)
        if config.add_bias_linear or not config.gated_linear_unit:
            raise ValueError("grouped experts are SwiGLU without biases")
        self.num_local_experts = num_local_experts
        self.pg_collection = pg_collection
        shards = pg_collection.expt_tp.size()
        if config.moe_ffn_hidden_size % shards:
            raise ValueError(f"expert hidden {config.moe_ffn_hidden_size} is not a multiple of "
                             f"{shards} expert-tensor ranks")  # fmt: skip
        d, f = config.hidden_size, config.moe_ffn_hidden_size // shards
        device, dtype = accel.current_device(), config.params_dtype
        self.w1_EDGF = nn.Parameter(
            torch.empty(num_local_experts, d, 2, f, device=device, dtype=dtype)
        )
        self.w2_EFD = nn.Parameter(torch.empty(num_local_experts, f, d, device=device, dtype=dtype))
        for weight in (self.w1_EDGF, self.w2_EFD):
            # Reduced over the expert-data-parallel group, never over all ranks (fix A).
            weight.allreduce = False  # type: ignore[attr-defined]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Tuple = (), metadata: Any = None
    ) -> Dict[str, Any]:
        """Core's description for checkpoints: E over expert-parallel, f over expert-tensor ranks.

        One copy is written: that of the first expert-data-parallel rank.
        """
        groups = self.pg_collection
        ep, tp = groups.ep, groups.expt_tp
        replica = (0, 0, groups.expt_dp.rank())
        return {
            f"{prefix}{name}": ShardedTensor.from_rank_offsets(
                f"{prefix}{name}",
                weight,
                *sharded_offsets,
                (len(sharded_offsets), ep.rank(), ep.size()),
                (len(sharded_offsets) + f_axis, tp.rank(), tp.size()),
                replica_id=replica,
                prepend_axis_num=len(sharded_offsets),
            )
            for name, weight, f_axis in (("w1_EDGF", self.w1_EDGF, 3), ("w2_EFD", self.w2_EFD, 1))
        }

    def forward(
        self, hidden_TD: Tensor, tokens_per_expert: Tensor, probs_T: Tensor
    ) -> Tuple[Tensor, None]:
        """Apply expert e to its ``tokens_per_expert[e]`` rows.

        Args:
            hidden_TD: [T, d], rows sorted by expert.
            tokens_per_expert: [E] int64; zeros allowed; sums to T.
            probs_T: [T], the router's weight of each row.

        Returns:
            [T, d] weighted outputs, and no bias.
        """
        if hidden_TD.shape[0] == 0:
            # No token came: touch the weights, so that they get zero gradients on this rank too.
            nothing = self.w1_EDGF.sum() * 0 + self.w2_EFD.sum() * 0
            return hidden_TD + nothing + probs_T.sum() * 0, None
        ends_E = tokens_per_expert.to(hidden_TD.device).cumsum(0).to(torch.int32)
        gate_up = grouped_mm(hidden_TD, self.w1_EDGF.flatten(2), ends_E)
        return grouped_mm(weighted_swiglu(gate_up, probs_T), self.w2_EFD, ends_E), None


def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of ``x`` [T, k] in groups that end at ``ends`` [E] times ``weight`` [E, k, n]."""
    out = F.grouped_mm(x, weight, offs=ends)
    if out.requires_grad:
        # Its backward refuses expanded gradients (stride 0), such as a sum's.
        out.register_hook(Tensor.contiguous)
    return out
