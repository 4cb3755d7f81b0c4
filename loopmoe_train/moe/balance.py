"""Auxiliary losses that keep all experts busy, beyond the two that core has.

    L = coeff * E * sum_i f_i P_i        (Switch Transformer, arXiv 2101.03961)

over the E experts i: f_i is the share of the assignments that went to i (no gradient), P_i the mean
score of i, normalised per token, over the micro-batch. ``model.moe.aux_loss`` says whose
assignments f counts:

    micro_batch, sequence   this micro-batch's, each sequence's: core's own losses
    expert_parallel         those of this pass on all ranks of the expert-parallel group: one
                            micro-batch may be uneven, so experts can specialise (Pangu Ultra MoE,
                            arXiv 2505.04519)
    global_batch            those of the whole global batch before this one (the level of arXiv
                            2501.11873, taken a step late: then it does not depend on how the
                            batch is cut into ranks and micro-batches). 0 in the first step.

In ours f counts the experts that were chosen (bias and groups included, capacity not yet), in
core's the best by score alone.

``device_loss_coeff`` adds a loss over the G ranks g that hold the experts (as in Step-3.5-Flash):
L = coeff * G * sum_g f_g P_g, f_g the share of the tokens that go to any expert of g, P_g the
mean of the summed scores of g's experts.
"""

from __future__ import annotations

from typing import Any, List

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads as _core_finalize
from torch import Tensor, nn


def normalised_scores(logits_TE: Tensor, score_function: str) -> Tensor:
    """Scores [T, E] in fp32 that sum to 1 over the experts."""
    if score_function == "softmax":
        return torch.softmax(logits_TE.float(), dim=-1)
    scores = torch.sigmoid(logits_TE.float())
    return scores / (scores.sum(-1, keepdim=True) + 1e-20)


def expert_loss(load_E: Tensor, scores_TE: Tensor) -> Tensor:
    """``E * sum_i f_i P_i`` [], f from the assignments in ``load_E`` [E]; 0 if there are none."""
    share = load_E.float() / load_E.sum().clamp_min(1)
    return scores_TE.shape[1] * torch.dot(share, scores_TE.mean(0))


def device_loss(routing_map_TE: Tensor, scores_TE: Tensor, devices: int) -> Tensor:
    """``G * sum_g f_g P_g`` [] over ``devices`` ranks with equally many experts each."""
    tokens = routing_map_TE.shape[0]
    hit_TG = routing_map_TE.view(tokens, devices, -1).any(-1)
    scores_TG = scores_TE.view(tokens, devices, -1).sum(-1)
    return devices * torch.dot(hit_TG.float().mean(0), scores_TG.mean(0))


class VisitBalance(nn.Module):
    """What balances one router, or one visit of it, and is moved once per global batch.

    Attributes:
        expert_bias: [E] fp32, added to the scores for the selection; moved by core, which finds
            it and its counts by these names. Absent without ``expert_bias_update_rate``.
        local_tokens_per_expert: [E] fp32, this rank's assignments since core moved the bias.
        batch_load: [E] int64, the same since :meth:`end_batch`. Absent but for ``global_batch``.
        last_load: [E] int64, of all ranks, of the global batch before. Kept in checkpoints.
    """

    def __init__(self, num_experts: int, bias: bool, loads: bool, device: Any) -> None:
        super().__init__()
        if bias:
            zeros = torch.zeros(num_experts, dtype=torch.float32, device=device)
            self.register_buffer("local_tokens_per_expert", zeros, persistent=False)
            self.register_buffer("expert_bias", zeros.clone())
        if loads:
            counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
            self.register_buffer("batch_load", counts, persistent=False)
            self.register_buffer("last_load", counts.clone())

    def _apply(self, fn: Any, recurse: bool = True) -> VisitBalance:
        """Stay in fp32 when the model is cast: a bias moves by thousandths."""
        super()._apply(fn, recurse)
        for name in ("expert_bias", "local_tokens_per_expert"):
            if name in self._buffers:
                self._buffers[name].data = self._buffers[name].data.float()
        return self

    def end_batch(self, group: Any) -> None:
        """Sum the loads over ``group`` and begin a new batch."""
        if "batch_load" in self._buffers:
            dist.all_reduce(self.batch_load, group=group)
            self.last_load.copy_(self.batch_load)
            self.batch_load.zero_()


def finalize_model_grads(model: List[Any], *args: Any, **kwargs: Any) -> None:
    """Core's end of a global batch, then ours: loads are exchanged and begin anew."""
    _core_finalize(model, *args, **kwargs)
    group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    for chunk in model:
        for module in chunk.modules():
            if isinstance(module, VisitBalance):
                module.end_batch(group)
