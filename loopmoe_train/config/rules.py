"""Cross-field checks of a run. Each problem says where it is and what to change.

A rule is a generator over problems; all problems are collected, so that one look mends
them all. Rules see only the configuration: no file, no device.
"""

from __future__ import annotations

import difflib
import math
import os.path
from dataclasses import fields, is_dataclass
from typing import Any, Callable, List, Sequence

from loopmoe_train.config import (
    launcher_rules,
    model_rules,
    optim_rules,
    parallel_rules,
    profile_rules,
)
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.spec.exchange import DISPATCHERS
from loopmoe_train.spec.grid import grid_of

Problems = model_rules.Problems

RECOMPUTE_MODULES = ("core_attn", "moe", "mlp", "mla_up_proj", "shared_experts")

_CHOICES = {
    "precision": ("fp32", "bf16"),
    "engine": ("megatron", "deepspeed"),
    "parallel.zero_stage": ("1", "2", "3"),
    "model.attention.kind": ("mla", "gqa"),
    "model.moe.score_function": ("sigmoid", "softmax"),
    "model.init": ("scaled", "tiny"),
    "model.moe.aux_loss": ("none", "micro_batch", "sequence", "expert_parallel", "global_batch"),
    "model.moe.balance_over": ("layer", "visit"),
    "model.moe.group_routing": ("none", "limited", "balanced"),
    "model.moe.drop_policy": ("probs", "position"),
    "model.moe.dispatcher": DISPATCHERS,
    "model.loop.conditioning": ("iter_adaln", "none"),
    "model.loop.gate": ("vector", "scalar"),
    "parallel.context_parallel": ("gather", "ulysses"),
    "cluster.device": ("cpu", "cuda", "npu"),
    "tokenizer.kind": ("bpe", "unigram"),
    "optim.kind": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd", "constant"),
    "optim.offload": ("none", "cpu"),
    "optim.offload_update": ("torch", "deepspeed"),
    "memory.recompute": ("none", "selective", "full"),
    "observe.wandb": ("off", "offline", "online"),
    "launcher.kind": launcher_rules.KINDS,
}

_AT_LEAST_ONE = (
    "steps sequence_length micro_batch_size global_batch_size cluster.devices data.workers "
    "model.hidden_size model.prefix_layers model.dense_ffn_hidden_size "
    "model.attention.num_heads model.attention.kv_lora_rank model.attention.qk_head_dim "
    "model.attention.qk_rope_head_dim model.attention.v_head_dim model.attention.head_dim "
    "model.attention.num_query_groups model.moe.num_experts model.moe.top_k "
    "model.moe.expert_hidden_size model.loop.iterations model.loop.iteration_code_size "
    "parallel.tensor_parallel_size parallel.context_parallel_size parallel.pipeline_parallel_size "
    "parallel.virtual_pipeline_size parallel.expert_parallel_size "
    "parallel.expert_tensor_parallel_size observe.log_interval launcher.threads_per_rank "
    "launcher.nodes tokenizer.train_bytes optim.newton_schulz_steps"
).split()

_AT_LEAST_ZERO = (
    "seed batch_ramp_samples eval_interval eval_batches "
    "model.body_layers model.suffix_layers model.dense_layers model.mtp_layers "
    "model.moe.num_shared_experts model.moe.expert_bias_update_rate model.moe.aux_loss_coeff "
    "model.moe.z_loss_coeff model.moe.device_loss_coeff model.mtp_loss_coeff "
    "optim.warmup_steps optim.weight_decay optim.clip_grad optim.min_lr "
    "checkpoint.interval checkpoint.keep observe.sample_tokens launcher.max_restarts"
).split()


def paths(node: Any, prefix: str = "") -> List[str]:
    """Dotted names of every setting below a config dataclass."""
    names: List[str] = []
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            names += paths(value, f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def get(config: RunConfig, path: str) -> object:
    """Value at a dotted path."""
    node: object = config
    for part in path.split("."):
        node = getattr(node, part)
    return node


def _choices(config: RunConfig) -> Problems:
    for path, allowed in _CHOICES.items():
        value = str(get(config, path))
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            yield f"{path}={value}: {hint}use one of {', '.join(allowed)}"
    for name in config.memory.recompute_modules:
        if name not in RECOMPUTE_MODULES:
            yield (
                f"memory.recompute_modules: {name!r} is unknown; "
                f"use some of {', '.join(RECOMPUTE_MODULES)}"
            )


def _finite(config: RunConfig) -> Problems:
    for path in paths(config):
        value = get(config, path)
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{path}={value}: must be a finite number"


def _sizes(config: RunConfig) -> Problems:
    for path in _AT_LEAST_ONE:
        if get(config, path) < 1:  # type: ignore[operator]
            yield f"{path}={get(config, path)}: must be at least 1"
    for path in _AT_LEAST_ZERO:
        if get(config, path) < 0:  # type: ignore[operator]
            yield f"{path}={get(config, path)}: must not be negative"
    if config.seed >= 2**63:
        yield f"seed={config.seed}: must be below 2^63"
    for path in ("optim.lr", "optim.eps", "launcher.timeout_minutes", "model.init_std",
                 "model.norm_epsilon", "model.attention.rotary_base", "optim.update_rms",
                 ):  # fmt: skip
        if get(config, path) <= 0:  # type: ignore[operator]
            yield f"{path}={get(config, path)}: must be above 0"
    for path in ("model.hidden_dropout", "model.attention_dropout", "optim.beta1", "optim.beta2",
                 "optim.momentum"):  # fmt: skip
        if not 0 <= get(config, path) < 1:  # type: ignore[operator]
            yield f"{path}={get(config, path)}: must be in [0, 1)"
    for path in ("model.vocab_size", "model.loop.bottleneck", "model.attention.q_lora_rank",
                 "model.moe.topk_scaling_factor", "optim.decay_steps",
                 "model.embedding_init_std", "model.moe.capacity_factor",
                 "cluster.peak_tflops_bf16", "cluster.peak_tflops_fp32",
                 "launcher.hang_seconds", "launcher.minutes"):  # fmt: skip
        value = get(config, path)
        if value is not None and value <= 0:  # type: ignore[operator]
            yield f"{path}={value}: must be above 0, or null"
    yield from _cluster(config)
    if not 0 < config.data.valid_percent < 100:
        yield f"data.valid_percent={config.data.valid_percent}: must be between 0 and 100"
    if not config.data.source:
        yield "data.source is empty: name python-stdlib, a folder, .txt or .jsonl files, or globs"
    if config.tokenizer.vocab_size < 300:
        yield (
            f"tokenizer.vocab_size={config.tokenizer.vocab_size}: "
            "must be at least 300 (256 byte pieces and the special tokens come first)"
        )


def _cluster(config: RunConfig) -> Problems:
    """Figures that the simulator divides by."""
    cluster, reached = config.cluster, config.cluster.efficiency
    for name in (
        "memory_gib", "memory_gbytes_per_s", "peak_tflops_fp8", "peak_tflops_fp4",
        "peak_tflops_vector", "host_gbytes_per_s", "cores", "devices_per_node",
    ):  # fmt: skip
        value = getattr(cluster, name)
        if value is not None and value <= 0:
            yield f"cluster.{name}={value}: must be above 0"
    for item in fields(reached):
        value = getattr(reached, item.name)
        if item.name.endswith("_us") and value < 0:
            yield f"cluster.efficiency.{item.name}={value}: must not be negative"
        elif item.name == "scale":
            if not 0.1 <= value <= 10:
                yield f"cluster.efficiency.scale={value}: must be from 0.1 to 10"
        elif isinstance(value, float) and not item.name.endswith("_us") and not 0 < value <= 1:
            yield f"cluster.efficiency.{item.name}={value}: is a share, from above 0 to 1"
    if cluster.memory_gib is not None and not 0 <= cluster.reserved_gib < cluster.memory_gib:
        yield (
            f"cluster.reserved_gib={cluster.reserved_gib}: must be from 0 to below "
            f"cluster.memory_gib={cluster.memory_gib}"
        )
    if cluster.kernels not in (None, "eager", "triton"):
        yield f"cluster.kernels={cluster.kernels}: use eager, triton or null (what fits the device)"
    if cluster.kernels == "triton" and cluster.device == "cpu":
        yield "cluster.kernels=triton needs cluster.device=cuda or npu: leave it out"
    if cluster.communicator_mib < 0:
        yield f"cluster.communicator_mib={cluster.communicator_mib}: must not be negative"
    if not 0 <= cluster.fragmentation <= 1:
        yield f"cluster.fragmentation={cluster.fragmentation}: is a share, from 0 to 1"
    for number, link in enumerate(cluster.links):
        if link.gbytes_per_s <= 0 or link.latency_us < 0 or link.devices < 0:
            yield (
                f"cluster.links[{number}]: gbytes_per_s must be above 0, latency_us and devices "
                "not negative"
            )


def _batch(config: RunConfig) -> Problems:
    data = grid_of(config).data
    per_pass = config.micro_batch_size * data
    if config.global_batch_size % per_pass:
        yield (
            f"global_batch_size={config.global_batch_size} is not a multiple of micro_batch_size x "
            f"data-parallel ranks = {config.micro_batch_size} x {data}: "
            f"use {max(1, round(config.global_batch_size / per_pass)) * per_pass}"
        )
    first = config.batch_ramp_from
    if first is not None:
        if first < 1 or first % per_pass or config.global_batch_size % first:
            yield (
                f"batch_ramp_from={first} must be a multiple of {per_pass} (micro_batch_size x "
                f"data-parallel ranks) and divide global_batch_size={config.global_batch_size}"
            )
        if config.batch_ramp_samples < 1:
            yield "batch_ramp_from needs batch_ramp_samples=N, the samples over which it grows"
    elif config.batch_ramp_samples:
        yield "batch_ramp_samples needs batch_ramp_from=N, the batch size to begin with"


def _memory(config: RunConfig) -> Problems:
    selective = config.memory.recompute == "selective"
    if selective != bool(config.memory.recompute_modules):
        yield (
            "memory.recompute=selective and memory.recompute_modules=[...] go together: "
            "set both or neither"
        )
    if "mla_up_proj" in config.memory.recompute_modules and config.model.attention.kind != "mla":
        yield (
            f"memory.recompute_modules: model.attention.kind={config.model.attention.kind} has no "
            "mla_up_proj: leave it out"
        )


def _mixture(config: RunConfig) -> Problems:
    members, extra = config.data.mixture, config.data.validation
    for number, member in enumerate(members):
        where = f"data.mixture[{number}]"
        if not member.path:
            yield f"{where}: names no folder; write {{path:FOLDER,weight:NUMBER}}"
        if not 0 < member.weight < math.inf:
            yield f"{where} ({member.path}): weight={member.weight}: must be above 0"
    if not all(extra):
        yield "data.validation: names no folder; write data.validation=[FOLDER,...]"
    folders = [os.path.realpath(path) for path in (*(m.path for m in members), *extra) if path]
    for folder in dict.fromkeys(folders):
        if folders.count(folder) > 1:
            yield f"data.mixture and data.validation name {folder} twice: once is enough"
    names = [name for name in dataset_names(config) if name]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and len(set(folders)) == len(folders):
            yield (
                f"two datasets are called {name!r}: tell them apart with "
                "data.mixture=[{path:...,weight:...,name:...},...]"
            )
        if "/" in name:
            yield f"data.mixture: name={name!r} must not hold a /"


def dataset_names(config: RunConfig) -> List[str]:
    """Names of the datasets of a run: those trained on, then those only evaluated."""
    data = config.data
    trained = [member.name or _last(member.path) for member in data.mixture] or [_last(data.path)]
    return [*trained, *map(_last, data.validation)]


def _last(path: str) -> str:
    return os.path.basename(os.path.abspath(path)) if path else ""


def _names(config: RunConfig) -> Problems:
    if not config.name or config.name in (".", "..") or "/" in config.name or "\0" in config.name:
        yield f"name={config.name!r}: must be one folder name"


RULES: Sequence[Callable[[RunConfig], Problems]] = (
    _choices, _finite, _sizes, *model_rules.RULES, *parallel_rules.RULES, _batch,
    *optim_rules.RULES, _memory, _mixture, *launcher_rules.RULES, _names, *profile_rules.RULES,
)  # fmt: skip


# Those that say something of a layout: left out where one is still to be found.
OF_LAYOUT = (*parallel_rules.RULES, _batch)


def problems(config: RunConfig, layout: bool = True) -> List[str]:
    """Every rule's complaints, first things first; without ``layout``: but for its layout."""
    found: List[str] = []
    for rule in RULES:
        if not layout and rule in OF_LAYOUT:
            continue
        # A rule may divide by a size that an earlier one has just refused.
        if found and rule in (*model_rules.RULES, *parallel_rules.RULES, _batch):
            break
        found += rule(config)
    return found


def check(config: RunConfig, layout: bool = True) -> None:
    """Raise when a run cannot work; without ``layout``: in any layout.

    Raises:
        Refused: all problems in one line, separated by semicolons.
    """
    found = problems(config, layout)
    if found:
        raise Refused("; ".join(found))
