"""Repairs of core's mixture of experts: routers, their losses, gradients of experts."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from loopmoe_train.device.fixes.fix import CORE, SUPPORTED, Fix, undo, wrap


def _name_missing_te_gemm(module: ModuleType) -> None:
    if not hasattr(module, "te_general_gemm"):
        module.te_general_gemm = None  # type: ignore[attr-defined]
        undo["router-gemm-without-te"] = lambda: delattr(module, "te_general_gemm")


def mark_expert_parameters(model: torch.nn.Module) -> None:
    """Mark the expert weights of every MoE layer so that they reduce over expert data parallel.

    Idempotent; DistributedDataParallel of megatron.core calls it on what it wraps (see the fix
    `expert-gradients-without-ep`), so models need not. It finds the experts as the attribute
    `experts` of any module, and every parallel linear layer built with `is_expert`.
    """
    for module in model.modules():
        experts = getattr(module, "experts", None)
        if isinstance(experts, torch.nn.Module):
            for parameter in experts.parameters():
                parameter.allreduce = False  # type: ignore[attr-defined]
        if getattr(module, "is_expert", False) is True:
            for parameter in module.parameters(recurse=False):
                parameter.allreduce = False  # type: ignore[attr-defined]


def _expert_gradients_without_ep(module: ModuleType) -> None:
    @wrap("expert-gradients-without-ep", module.DistributedDataParallel, "__init__")
    def init(
        original: Any, self: Any, config: Any, ddp_config: Any, module: Any, *args: Any, **kw: Any
    ) -> None:
        mark_expert_parameters(module)
        original(self, config, ddp_config, module, *args, **kw)


_COUNTERS = ("local_tokens_per_expert", "global_tokens_per_expert", "ga_steps", "expert_bias")


def _router_counters_in_fp32(module: ModuleType) -> None:
    @wrap("router-counters-in-fp32", module.TopKRouter, "_apply")
    def apply(original: Any, self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: self._buffers.get(name) for name in _COUNTERS}
        result = original(self, fn, *args, **kwargs)
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is not None and new is not None and new.dtype != old.dtype:
                # the same tensor where it can stay: other modules may share it
                self._buffers[name] = old if old.device == new.device else old.to(new.device)
        return result


def _sequence_loss_of_all_tokens(module: ModuleType) -> None:
    @wrap("sequence-loss-of-all-tokens", module.TopKRouter, "_apply_seq_aux_loss")
    def apply(original: Any, self: Any, probs: Any, scores: Any, routing_map: Any,
              seq_length: int, bsz: int, **kwargs: Any) -> Any:  # fmt: skip
        attach = self.attach_and_log_load_balancing_loss

        def attach_for_all(*args: Any, valid_token_count: Any, **named: Any) -> Any:
            return attach(*args, valid_token_count=valid_token_count * bsz, **named)

        self.__dict__["attach_and_log_load_balancing_loss"] = attach_for_all
        try:
            return original(self, probs, scores, routing_map, seq_length, bsz, **kwargs)
        finally:
            del self.__dict__["attach_and_log_load_balancing_loss"]


def _balance_losses_of_all_ranks(module: ModuleType) -> None:
    name = "balance-losses-of-all-ranks"

    @wrap(name, module.TopKRouter, "attach_and_log_load_balancing_loss")
    def attach(original: Any, self: Any, probs: Any, coeff: Any, loss: Any, kind: Any, group: Any,
               *args: Any, valid_token_count: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        # core's own losses name their tokens; each rank holds its part of the loss of all of them
        if valid_token_count is not None:
            valid_token_count = valid_token_count * group.size()
        kwargs["valid_token_count"] = valid_token_count
        return original(self, probs, coeff, loss, kind, group, *args, **kwargs)

    @wrap(name, module.TopKRouter, "apply_z_loss")
    def z_loss(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        given, ranks = self.config.moe_z_loss_coeff, self.tp_cp_group.size()
        if given is None or not self.calculate_per_token_loss or ranks == 1:
            return original(self, *args, **kwargs)
        # core divides by the ranks for a mean over them, and then weighs with one rank's tokens
        self.config.moe_z_loss_coeff = given * ranks
        try:
            return original(self, *args, **kwargs)
        finally:
            self.config.moe_z_loss_coeff = given


FIXES: tuple[Fix, ...] = (
    Fix(
        "router-gemm-without-te",
        CORE + "transformer.moe.moe_utils",
        SUPPORTED,
        "Without Transformer Engine te_general_gemm is never bound: NameError in every router.",
        _name_missing_te_gemm,
    ),
    Fix(
        "expert-gradients-without-ep",
        CORE + "distributed.distributed_data_parallel",
        SUPPORTED,
        "SILENT: with EP=1 experts count as dense parameters; under TP with ETP=1 and sequence "
        "parallelism their gradients are never summed over the ranks that saw other tokens. "
        "Checkpoints of EP=1 and EP>1 also disagree on the number of optimizers.",
        _expert_gradients_without_ep,
    ),
    Fix(
        "router-counters-in-fp32",
        CORE + "transformer.moe.router",
        SUPPORTED,
        "SILENT: Float16Module casts the routers' token counters to bf16 or fp16, which stop "
        "counting exactly at 256 (2048), so the expert bias is steered by rounded loads.",
        _router_counters_in_fp32,
    ),
    Fix(
        "sequence-loss-of-all-tokens",
        CORE + "transformer.moe.router",
        SUPPORTED,
        "SILENT: with calculate_per_token_loss the auxiliary loss per sequence is weighted by the "
        "tokens of one sequence, not of the micro-batch: micro_batch_size times too weak.",
        _sequence_loss_of_all_tokens,
    ),
    Fix(
        "balance-losses-of-all-ranks",
        CORE + "transformer.moe.router",
        SUPPORTED,
        "SILENT: with calculate_per_token_loss under tensor or context parallelism the auxiliary "
        "losses and the z-loss are weighted by the tokens of one rank, not of the group: "
        "tensor x context size times too weak.",
        _balance_losses_of_all_ranks,
    ),
)
