"""Repairs of core's layers: attention, norms, exchanges between tensor-parallel ranks."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch

from loopmoe_train.device.fixes.fix import CORE, SUPPORTED, Fix, undo, wrap


def _norm_under_sequence_parallel(module: ModuleType) -> None:
    @wrap("norm-under-sequence-parallel", module.WrappedTorchNorm, "__new__")
    def new(original: Any, cls: type, config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        allowed = copy.copy(config)
        allowed.sequence_parallel = False
        norm = original(cls, allowed, *args, **kwargs)
        for parameter in norm.parameters():
            # finalize_model_grads sums marked gradients over TP, whose ranks hold other tokens
            parameter.sequence_parallel = config.sequence_parallel
        return norm


def _all_reduce_of_strided(module: ModuleType) -> None:
    @wrap("all-reduce-of-strided-tensor", module, "_reduce")
    def reduce(original: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        return original(tensor.contiguous(), group)


def _uneven_gather_on_gloo(module: ModuleType) -> None:
    name = "uneven-gather-on-gloo"

    @wrap(name, module, "_gather_along_first_dim")
    def gather(original: Any, part: torch.Tensor, group: Any, sizes: Any = None, *args: Any) -> Any:
        if sizes is None or group.size() == 1 or torch.distributed.get_backend(group) != "gloo":
            return original(part, group, sizes, *args)
        whole = part.new_empty(sum(sizes), *part.shape[1:])
        copies = torch.cat([part] * group.size())
        torch.distributed.all_to_all_single(
            whole, copies, sizes, [len(part)] * group.size(), group=group
        )
        return whole

    @wrap(name, module, "_reduce_scatter_along_first_dim")
    def scatter(original: Any, whole: torch.Tensor, group: Any, sizes: Any = None,
                *args: Any) -> Any:  # fmt: skip
        if sizes is None or group.size() == 1 or torch.distributed.get_backend(group) != "gloo":
            return original(whole, group, sizes, *args)
        mine = sizes[group.rank()]
        parts = whole.new_empty(group.size() * mine, *whole.shape[1:])
        torch.distributed.all_to_all_single(
            parts, whole.contiguous(), [mine] * group.size(), sizes, group=group
        )
        return parts.view(group.size(), mine, *whole.shape[1:]).sum(0)


def _mla_without_te(module: ModuleType) -> None:
    if not isinstance(module.TELinear, type):
        module.HAVE_TE = False  # type: ignore[attr-defined]
        undo["mla-without-te"] = lambda: setattr(module, "HAVE_TE", True)


def _mla_shared_rope_key(module: ModuleType) -> None:
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

    def remember(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        output[0].kv_lora_rank = layer.config.kv_lora_rank

    @wrap("mla-shared-rope-key", module.MLASelfAttention, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.linear_kv_down_proj.register_forward_hook(remember)

    @wrap("mla-shared-rope-key", module, "gather_from_tensor_model_parallel_region")
    def gather(original: Any, part: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        full = original(part, *args, **kwargs)
        rank = getattr(part, "kv_lora_rank", None)
        if rank is None:
            return full
        # the latent's gradient is complete (the up projection sums it), the rope key's is not
        latent, key = full[..., :rank], full[..., rank:]
        return torch.cat((latent, copy_to_tensor_model_parallel_region(key)), dim=-1)


def _mla_query_norm_counted_once(module: ModuleType) -> None:
    @wrap("mla-query-norm-counted-once", module.MLASelfAttention, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        norm = getattr(self, "q_layernorm", None)
        if norm is not None and not self.config.sequence_parallel:
            for parameter in norm.parameters():
                # every rank holds the whole gradient: their mean is the gradient, their sum not
                parameter.average_gradients_across_tp_domain = True


def _checkpoint_without_fp8(module: ModuleType) -> None:
    @wrap("checkpoint-without-fp8", module.CheckpointWithoutOutput, "__init__")
    def init(original: Any, self: Any, fp8: Any = False) -> None:
        original(self, fp8=fp8 or None)


FIXES: tuple[Fix, ...] = (
    Fix(
        "norm-under-sequence-parallel",
        CORE + "transformer.torch_norm",
        SUPPORTED,
        "The torch norm refuses sequence parallelism, although marking its gradients suffices.",
        _norm_under_sequence_parallel,
    ),
    Fix(
        "all-reduce-of-strided-tensor",
        CORE + "tensor_parallel.mappings",
        SUPPORTED,
        "SILENT: _reduce sums a contiguous copy and returns its argument, so a strided gradient "
        "passes the tensor parallel all-reduce without being summed.",
        _all_reduce_of_strided,
    ),
    Fix(
        "uneven-gather-on-gloo",
        CORE + "tensor_parallel.mappings",
        SUPPORTED,
        "Expert tensor parallelism gathers tokens of uneven counts, and scatters their gradients; "
        "gloo knows equal counts only. An all-to-all does both, exactly in volume.",
        _uneven_gather_on_gloo,
    ),
    Fix(
        "mla-without-te",
        CORE + "transformer.multi_latent_attention",
        SUPPORTED,
        "The TE extension imports without TE, so HAVE_TE is True and isinstance meets None.",
        _mla_without_te,
    ),
    Fix(
        "mla-shared-rope-key",
        CORE + "transformer.multi_latent_attention",
        SUPPORTED,
        "SILENT: under TP without TE the rope key, shared by all heads, gets only the gradient of "
        "one rank's heads; the gradients of the kv down projection and all below are wrong.",
        _mla_shared_rope_key,
    ),
    Fix(
        "mla-query-norm-counted-once",
        CORE + "transformer.multi_latent_attention",
        SUPPORTED,
        "SILENT: with qk_layernorm under TP without sequence parallelism the gradient of MLA's "
        "q_layernorm, complete on every rank, is summed over TP: TP times too large.",
        _mla_query_norm_counted_once,
    ),
    Fix(
        "checkpoint-without-fp8",
        CORE + "tensor_parallel.random",
        SUPPORTED,
        "CheckpointWithoutOutput takes fp8=False (its default) for fp8 and calls into TE.",
        _checkpoint_without_fp8,
    ),
)
