"""Defects of megatron-core that this package repairs, each at the moment its module is imported.

All lie off the path that CUDA with Transformer Engine takes, and so on the path of npu and cpu;
the ones marked SILENT train wrongly without a word. `tests/device/test_fixes.py` switches each
one off and requires the scenario that needs it to fail.

Not here, because the port makes it unnecessary: `maybe_move_tensor_to_cpu` asks `is_cuda`, which
the rewriter turns into a question for the accelerator.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from loopmoe_train.errors import Refused

_SUPPORTED = "==0.16.1"
_disabled: set[str] = set()
#: how to take back what a fix set in its module; wrapped functions look at _disabled themselves
_undo: dict[str, Callable[[], None]] = {}


@dataclass(frozen=True)
class Fix:
    """One repair: `apply` changes `module` right after it was executed for the first time."""

    name: str
    module: str
    versions: str
    defect: str
    apply: Callable[[ModuleType], None]


def disable_fix(name: str) -> None:
    """Leave out one fix or config rule, or take it back if it is applied already; for tests.

    Raises:
        ValueError: there is no fix of that name.
    """
    if name not in {fix.name for fix in FIXES} | set(CONFIG_RULES):
        raise ValueError(f"no fix is called {name!r}")
    _disabled.add(name)
    _undo.pop(name, lambda: None)()


def check_versions() -> None:
    """Compare the megatron-core on the path with the versions the fixes were written for.

    Raises:
        Refused: another version; fixes could miss their target or repair what is no longer broken.
    """
    # asks the imported files, not the metadata: a checkout on PYTHONPATH has none
    from megatron.core import package_info
    from packaging.specifiers import SpecifierSet

    installed = package_info.__version__
    for versions in sorted({fix.versions for fix in FIXES}):
        if not SpecifierSet(versions, prereleases=True).contains(installed):
            raise Refused(
                f"megatron-core {installed} is installed, loopmoe_train supports {versions}",
                f"pip install 'megatron-core{versions}'",
            )


def apply_to(module: ModuleType) -> None:
    """Apply the fixes registered for this module of megatron.core; the port calls it.

    Raises:
        Refused: the fixes are for another version of megatron-core.
    """
    wanted = [fix for fix in FIXES if fix.module == module.__name__]
    if not wanted and module.__name__ != "megatron.core":
        return
    check_versions()
    for fix in wanted:
        if fix.name not in _disabled:
            fix.apply(module)


def _wrap(fix: str, owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace `owner.name` by the decorated function, which gets the original as `original`."""
    original = getattr(owner, name)

    def decorate(replacement: Callable[..., Any]) -> None:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if fix in _disabled:
                return original(*args, **kwargs)
            return replacement(original, *args, **kwargs)

        setattr(owner, name, wrapper)

    return decorate


# -- device-dependent settings of core (not defects) -------------------------------------------


def _no_jit_fuser(module: ModuleType) -> None:
    from loopmoe_train.device.accelerator import accel

    if not accel.compiles:
        module.disable_jit_fuser()
        _undo["no-jit-fuser"] = module.enable_jit_fuser


def _no_rng_notice(module: ModuleType) -> None:
    from loopmoe_train.device import quiet
    from loopmoe_train.device.accelerator import accel

    if accel.device_type == "cpu":
        _undo["no-rng-notice"] = quiet.hush_rng_notice(module.__name__)


# -- defects -----------------------------------------------------------------------------------


def _name_missing_te_gemm(module: ModuleType) -> None:
    if not hasattr(module, "te_general_gemm"):
        module.te_general_gemm = None  # type: ignore[attr-defined]
        _undo["router-gemm-without-te"] = lambda: delattr(module, "te_general_gemm")


def _norm_under_sequence_parallel(module: ModuleType) -> None:
    @_wrap("norm-under-sequence-parallel", module.WrappedTorchNorm, "__new__")
    def new(original: Any, cls: type, config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
        allowed = copy.copy(config)
        allowed.sequence_parallel = False
        norm = original(cls, allowed, *args, **kwargs)
        for parameter in norm.parameters():
            # finalize_model_grads sums marked gradients over TP, whose ranks hold other tokens
            parameter.sequence_parallel = config.sequence_parallel
        return norm


def _all_reduce_of_strided(module: ModuleType) -> None:
    @_wrap("all-reduce-of-strided-tensor", module, "_reduce")
    def reduce(original: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        return original(tensor.contiguous(), group)


def _uneven_gather_on_gloo(module: ModuleType) -> None:
    name = "uneven-gather-on-gloo"

    @_wrap(name, module, "_gather_along_first_dim")
    def gather(original: Any, part: torch.Tensor, group: Any, sizes: Any = None, *args: Any) -> Any:
        if sizes is None or group.size() == 1 or torch.distributed.get_backend(group) != "gloo":
            return original(part, group, sizes, *args)
        whole = part.new_empty(sum(sizes), *part.shape[1:])
        copies = torch.cat([part] * group.size())
        torch.distributed.all_to_all_single(
            whole, copies, sizes, [len(part)] * group.size(), group=group
        )
        return whole

    @_wrap(name, module, "_reduce_scatter_along_first_dim")
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
        _undo["mla-without-te"] = lambda: setattr(module, "HAVE_TE", True)


def _mla_shared_rope_key(module: ModuleType) -> None:
    from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region

    def remember(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
        output[0].kv_lora_rank = layer.config.kv_lora_rank

    @_wrap("mla-shared-rope-key", module.MLASelfAttention, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.linear_kv_down_proj.register_forward_hook(remember)

    @_wrap("mla-shared-rope-key", module, "gather_from_tensor_model_parallel_region")
    def gather(original: Any, part: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        full = original(part, *args, **kwargs)
        rank = getattr(part, "kv_lora_rank", None)
        if rank is None:
            return full
        # the latent's gradient is complete (the up projection sums it), the rope key's is not
        latent, key = full[..., :rank], full[..., rank:]
        return torch.cat((latent, copy_to_tensor_model_parallel_region(key)), dim=-1)


def _mla_query_norm_counted_once(module: ModuleType) -> None:
    @_wrap("mla-query-norm-counted-once", module.MLASelfAttention, "__init__")
    def init(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        norm = getattr(self, "q_layernorm", None)
        if norm is not None and not self.config.sequence_parallel:
            for parameter in norm.parameters():
                # every rank holds the whole gradient: their mean is the gradient, their sum not
                parameter.average_gradients_across_tp_domain = True


def _checkpoint_without_fp8(module: ModuleType) -> None:
    @_wrap("checkpoint-without-fp8", module.CheckpointWithoutOutput, "__init__")
    def init(original: Any, self: Any, fp8: Any = False) -> None:
        original(self, fp8=fp8 or None)


def _state_before_first_step(module: ModuleType) -> None:
    @_wrap("optimizer-state-before-first-step", module.DistributedOptimizer, "state_dict")
    def state_dict(original: Any, self: Any) -> dict[str, Any]:
        inner = self.optimizer
        if isinstance(inner, torch.optim.Optimizer) and not inner.state:
            _initialize_moments(inner)
        return original(self)


def _initialize_moments(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer create its state without a trace in parameters or step count.

    Core's own `_init_optimizer_states_with_dummy_values` takes a real step: weight decay shrinks
    the parameters once and Adam counts from one.
    """
    settings = [(group["lr"], group.get("weight_decay")) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, (rate, decay) in zip(optimizer.param_groups, settings, strict=True):
        group["lr"] = rate
        if decay is not None:
            group["weight_decay"] = decay
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].zero_()


def _state_without_step_key(module: ModuleType) -> None:
    @_wrap(
        "optimizer-state-without-step-key",
        module.DistributedOptimizer,
        "_set_main_param_and_optimizer_states",
    )
    def put(original: Any, self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        if not self.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            group, order = self.model_param_group_index_map[model_param]
            state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
            if "step" in state:
                # set by load_state_dict already; it is not a tensor of the checkpoint
                tensors = {"step": state["step"], **tensors}
        with torch.no_grad():
            original(self, model_param, tensors)


def _step_shared_on_resume(module: ModuleType) -> None:
    @_wrap("optimizer-step-shared-on-resume", module.DistributedOptimizer, "load_state_dict")
    def load_state_dict(original: Any, self: Any, state_dict: dict[str, Any]) -> None:
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].detach().clone()


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
    @_wrap("expert-gradients-without-ep", module.DistributedDataParallel, "__init__")
    def init(
        original: Any, self: Any, config: Any, ddp_config: Any, module: Any, *args: Any, **kw: Any
    ) -> None:
        mark_expert_parameters(module)
        original(self, config, ddp_config, module, *args, **kw)


_COUNTERS = ("local_tokens_per_expert", "global_tokens_per_expert", "ga_steps", "expert_bias")


def _router_counters_in_fp32(module: ModuleType) -> None:
    @_wrap("router-counters-in-fp32", module.TopKRouter, "_apply")
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
    @_wrap("sequence-loss-of-all-tokens", module.TopKRouter, "_apply_seq_aux_loss")
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

    @_wrap(name, module.TopKRouter, "attach_and_log_load_balancing_loss")
    def attach(original: Any, self: Any, probs: Any, coeff: Any, loss: Any, kind: Any, group: Any,
               *args: Any, valid_token_count: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        # core's own losses name their tokens; each rank holds its part of the loss of all of them
        if valid_token_count is not None:
            valid_token_count = valid_token_count * group.size()
        kwargs["valid_token_count"] = valid_token_count
        return original(self, probs, coeff, loss, kind, group, *args, **kwargs)

    @_wrap(name, module.TopKRouter, "apply_z_loss")
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


_CORE = "megatron.core."
_DISTRIBUTED_OPTIMIZER = _CORE + "optimizer.distrib_optimizer"

FIXES: tuple[Fix, ...] = (
    Fix(
        "no-jit-fuser",
        _CORE + "jit",
        _SUPPORTED,
        "jit_fuser is torch.compile: off CUDA it costs seconds per function and gains nothing.",
        _no_jit_fuser,
    ),
    Fix(
        "no-rng-notice",
        _CORE + "tensor_parallel.random",
        _SUPPORTED,
        "On cpu every fork of the generator logs that the CPU generator moved. It must.",
        _no_rng_notice,
    ),
    Fix(
        "router-gemm-without-te",
        _CORE + "transformer.moe.moe_utils",
        _SUPPORTED,
        "Without Transformer Engine te_general_gemm is never bound: NameError in every router.",
        _name_missing_te_gemm,
    ),
    Fix(
        "norm-under-sequence-parallel",
        _CORE + "transformer.torch_norm",
        _SUPPORTED,
        "The torch norm refuses sequence parallelism, although marking its gradients suffices.",
        _norm_under_sequence_parallel,
    ),
    Fix(
        "all-reduce-of-strided-tensor",
        _CORE + "tensor_parallel.mappings",
        _SUPPORTED,
        "SILENT: _reduce sums a contiguous copy and returns its argument, so a strided gradient "
        "passes the tensor parallel all-reduce without being summed.",
        _all_reduce_of_strided,
    ),
    Fix(
        "uneven-gather-on-gloo",
        _CORE + "tensor_parallel.mappings",
        _SUPPORTED,
        "Expert tensor parallelism gathers tokens of uneven counts, and scatters their gradients; "
        "gloo knows equal counts only. An all-to-all does both, exactly in volume.",
        _uneven_gather_on_gloo,
    ),
    Fix(
        "mla-without-te",
        _CORE + "transformer.multi_latent_attention",
        _SUPPORTED,
        "The TE extension imports without TE, so HAVE_TE is True and isinstance meets None.",
        _mla_without_te,
    ),
    Fix(
        "mla-shared-rope-key",
        _CORE + "transformer.multi_latent_attention",
        _SUPPORTED,
        "SILENT: under TP without TE the rope key, shared by all heads, gets only the gradient of "
        "one rank's heads; the gradients of the kv down projection and all below are wrong.",
        _mla_shared_rope_key,
    ),
    Fix(
        "mla-query-norm-counted-once",
        _CORE + "transformer.multi_latent_attention",
        _SUPPORTED,
        "SILENT: with qk_layernorm under TP without sequence parallelism the gradient of MLA's "
        "q_layernorm, complete on every rank, is summed over TP: TP times too large.",
        _mla_query_norm_counted_once,
    ),
    Fix(
        "checkpoint-without-fp8",
        _CORE + "tensor_parallel.random",
        _SUPPORTED,
        "CheckpointWithoutOutput takes fp8=False (its default) for fp8 and calls into TE.",
        _checkpoint_without_fp8,
    ),
    Fix(
        "optimizer-state-before-first-step",
        _DISTRIBUTED_OPTIMIZER,
        _SUPPORTED,
        "state_dict asserts a step count, which a fresh optimizer lacks: loading into it fails.",
        _state_before_first_step,
    ),
    Fix(
        "optimizer-state-without-step-key",
        _DISTRIBUTED_OPTIMIZER,
        _SUPPORTED,
        "Loading copies every state of torch's Adam, also `step`, which checkpoints do not hold, "
        "and writes in place to leaves that require gradients.",
        _state_without_step_key,
    ),
    Fix(
        "optimizer-step-shared-on-resume",
        _DISTRIBUTED_OPTIMIZER,
        _SUPPORTED,
        "SILENT: after loading all parameters share one step tensor; each step advances it once "
        "per parameter, so Adam's bias correction is wrong from then on.",
        _step_shared_on_resume,
    ),
    Fix(
        "expert-gradients-without-ep",
        _CORE + "distributed.distributed_data_parallel",
        _SUPPORTED,
        "SILENT: with EP=1 experts count as dense parameters; under TP with ETP=1 and sequence "
        "parallelism their gradients are never summed over the ranks that saw other tokens. "
        "Checkpoints of EP=1 and EP>1 also disagree on the number of optimizers.",
        _expert_gradients_without_ep,
    ),
    Fix(
        "router-counters-in-fp32",
        _CORE + "transformer.moe.router",
        _SUPPORTED,
        "SILENT: Float16Module casts the routers' token counters to bf16 or fp16, which stop "
        "counting exactly at 256 (2048), so the expert bias is steered by rounded loads.",
        _router_counters_in_fp32,
    ),
    Fix(
        "sequence-loss-of-all-tokens",
        _CORE + "transformer.moe.router",
        _SUPPORTED,
        "SILENT: with calculate_per_token_loss the auxiliary loss per sequence is weighted by the "
        "tokens of one sequence, not of the micro-batch: micro_batch_size times too weak.",
        _sequence_loss_of_all_tokens,
    ),
    Fix(
        "balance-losses-of-all-ranks",
        _CORE + "transformer.moe.router",
        _SUPPORTED,
        "SILENT: with calculate_per_token_loss under tensor or context parallelism the auxiliary "
        "losses and the z-loss are weighted by the tokens of one rank, not of the group: "
        "tensor x context size times too weak.",
        _balance_losses_of_all_ranks,
    ),
)


# -- rules over a configuration of megatron.core -------------------------------------------------


def _interleaved_over_two_stages(config: Any, device_type: str) -> str:
    chunks = config.virtual_pipeline_model_parallel_size
    if not chunks or config.pipeline_model_parallel_size != 2 or not config.batch_p2p_comm:
        return ""
    config.batch_p2p_comm = False
    return (
        "batch_p2p_comm=False: with two interleaved stages the next and the previous stage are "
        "the same rank, and batched messages of both directions get swapped silently"
    )


def _gloo_sends_hold_their_buffer(config: Any, device_type: str) -> str:
    held = config.overlap_p2p_comm and config.deallocate_pipeline_outputs
    if device_type != "cpu" or not held:
        return ""
    config.deallocate_pipeline_outputs = False
    return (
        "deallocate_pipeline_outputs=False: with overlap_p2p_comm the buffer of a send still in "
        "flight would be freed, which gloo (no stream order) turns into random losses"
    )


CONFIG_RULES: dict[str, Callable[[Any, str], str]] = {
    "interleaved-over-two-stages": _interleaved_over_two_stages,
    "gloo-sends-hold-their-buffer": _gloo_sends_hold_their_buffer,
}


def apply_config_rules(config: Any, device_type: str) -> list[str]:
    """Correct settings of a core ModelParallelConfig that core accepts and trains wrongly with.

    Args:
        config: changed in place. Call it once, before the model and the schedule see it.
        device_type: "cpu" means gloo.

    Returns:
        One sentence per change, for the log.
    """
    done = [rule(config, device_type) for n, rule in CONFIG_RULES.items() if n not in _disabled]
    return [sentence for sentence in done if sentence]
