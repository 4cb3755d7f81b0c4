"""Cross-field checks of a layout; generators over problems, as in :mod:`.rules`."""

from __future__ import annotations

from typing import Iterator, Tuple

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.spec.batch import micro_batches
from loopmoe_train.spec.exchange import TWO_LEVEL, fills_nodes
from loopmoe_train.spec.grid import grid_of
from loopmoe_train.spec.placement import Placement, feasible
from loopmoe_train.spec.visits import conditioned

Problems = Iterator[str]


def ranks(config: RunConfig) -> Problems:
    parallel, devices = config.parallel, config.cluster.devices
    attention = {
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
    }
    experts = {
        "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
        "expert_parallel_size": parallel.expert_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
    }
    told = set()
    for side in (attention, experts):
        product, used = 1, {name: size for name, size in side.items() if size > 1}
        for size in used.values():
            product *= size
        if devices % product:
            words = " x ".join(f"parallel.{name}={size}" for name, size in used.items())
            words += f" = {product}" if len(used) > 1 else ""
            if words in told:
                continue
            told.add(words)
            yield (
                f"{words} does not divide cluster.devices={devices}: choose a divisor, "
                "or other devices"
            )


def divisors(config: RunConfig) -> Problems:
    """What is cut by tensor, expert or context parallelism must come out even."""
    model, parallel = config.model, config.parallel
    attention, moe = model.attention, model.moe
    tensor, experts = parallel.tensor_parallel_size, parallel.expert_tensor_parallel_size
    cut = [("model.attention.num_heads", attention.num_heads)]
    if attention.kind == "gqa":
        cut += [("model.attention.num_query_groups", attention.num_query_groups)]
    else:
        latent = attention.kv_lora_rank + attention.qk_rope_head_dim
        cut += [("model.attention.kv_lora_rank + qk_rope_head_dim", latent)]
        if attention.q_lora_rank is not None:
            cut += [("model.attention.q_lora_rank", attention.q_lora_rank)]
    if model.mtp_layers:
        cut += [("model.hidden_size (with model.mtp_layers)", model.hidden_size)]
    if model.dense_layers:
        cut += [("model.dense_ffn_hidden_size", model.dense_ffn_hidden_size)]
    if moe.num_shared_experts:
        shared = moe.num_shared_experts * moe.expert_hidden_size
        cut += [("model.moe.num_shared_experts x expert_hidden_size", shared)]
    cut += [
        ("model.vocab_size", model.vocab_size)
        if model.vocab_size is not None
        else ("tokenizer.vocab_size", config.tokenizer.vocab_size)
    ]
    yield from _multiples(cut, tensor, "parallel.tensor_parallel_size")
    row = 8 if config.precision == "bf16" else 4
    if experts > 1 and moe.expert_hidden_size % (experts * row):
        yield (
            f"model.moe.expert_hidden_size={moe.expert_hidden_size}: must be a multiple of {row} x "
            f"parallel.expert_tensor_parallel_size = {experts * row} in {config.precision}"
        )
    yield from _multiples(
        [("model.moe.num_experts", moe.num_experts)],
        parallel.expert_parallel_size,
        "parallel.expert_parallel_size",
    )
    context = parallel.context_parallel_size
    pieces = tensor * context * (2 if context > 1 else 1)
    if config.sequence_length % pieces:
        yield (
            f"sequence_length={config.sequence_length} is not a multiple of {pieces} (tensor-"
            "parallel size, and twice the context-parallel size: a rank takes two chunks of every "
            f"sequence): use {-(-config.sequence_length // pieces) * pieces}"
        )
    if context > 1 and parallel.context_parallel == "ulysses":
        kind = [("model.attention.num_heads", attention.num_heads)]
        if attention.kind == "gqa":
            kind += [("model.attention.num_query_groups", attention.num_query_groups)]
        yield from _multiples(
            kind, tensor * context, "tensor x context parallel size (context_parallel=ulysses)"
        )


def _multiples(sizes: list[Tuple[str, int]], of: int, name: str) -> Problems:
    for path, size in sizes:
        if size % of:
            yield f"{path}={size} is not a multiple of {name}={of}: change either"


def exchange(config: RunConfig) -> Problems:
    """Dispatchers of two levels need whole nodes."""
    kind, parallel = config.model.moe.dispatcher, config.parallel
    if kind not in TWO_LEVEL:
        return
    experts, node = parallel.expert_parallel_size, config.cluster.devices_per_node
    if parallel.expert_tensor_parallel_size > 1:
        yield (
            f"model.moe.dispatcher={kind} needs parallel.expert_tensor_parallel_size=1: spread the "
            "experts over more ranks instead (expert_parallel_size)"
        )
    if not fills_nodes(experts, node):
        yield (
            f"model.moe.dispatcher={kind} is for experts that span whole nodes: "
            f"parallel.expert_parallel_size={experts} is no multiple of 2 or more of "
            f"cluster.devices_per_node={node}; use alltoall"
        )


def pipeline(config: RunConfig) -> Problems:
    model, parallel = config.model, config.parallel
    stages = parallel.pipeline_parallel_size
    if stages == 1:
        for name, value, default in (
            ("virtual_pipeline_size", parallel.virtual_pipeline_size, 1),
            ("pipeline_layout", parallel.pipeline_layout, None),
        ):
            if value != default:
                yield (
                    f"parallel.{name}={value} is for parallel.pipeline_parallel_size above 1: "
                    "leave it out"
                )
        return
    if model.tie_embeddings and model.mtp_layers:
        yield (
            "model.tie_embeddings with model.mtp_layers: core keeps an output matrix of its own on "
            "the last stage, which nothing uses: untie, leave MTP out, or set "
            "parallel.pipeline_parallel_size=1"
        )
    if model.loop.iterations > 1:
        if model.loop.min_iterations is not None:
            yield (
                "model.loop.min_iterations draws the iterations of a step, which the chunks of a "
                "pipeline fix: leave it null, or set parallel.pipeline_parallel_size=1"
            )
        if model.loop.state_injection or model.loop.backprop_iterations is not None:
            yield (
                "model.loop.state_injection (and backprop_iterations, which needs it) reads the "
                "state of another stage: leave both out, or set parallel.pipeline_parallel_size=1"
            )
        if conditioned(model) and model.loop.share_iteration_mlp:
            yield (
                "model.loop.share_iteration_mlp=true has one MLP for layers of all stages: set it "
                "to false, or parallel.pipeline_parallel_size=1"
            )
    try:
        placement = feasible(config)
    except ValueError as error:
        yield str(error)
        return
    yield from _micro_batches(config, placement)


def _micro_batches(config: RunConfig, placement: Placement) -> Problems:
    """Core's interleaved schedule takes groups of as many micro-batches as stages."""
    stages, per_pass = placement.stages, config.micro_batch_size * grid_of(config).data
    if placement.chunks == 1:
        return
    for name, samples in (
        ("batch_ramp_from", config.batch_ramp_from),
        ("global_batch_size", config.global_batch_size),
    ):
        if samples is not None and micro_batches(config, samples) % stages:
            wanted = max(1, round(samples / per_pass / stages)) * per_pass * stages
            yield (
                f"{name}={samples} makes {micro_batches(config, samples)} micro-batches; {stages} "
                f"pipeline stages with {placement.chunks} chunks each need a multiple of {stages}: "
                f"use {name}={wanted}, or another micro_batch_size"
            )


def optimizer(config: RunConfig) -> Problems:
    parallel = config.parallel
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        yield "parallel.overlap_param_gather needs parallel.distributed_optimizer=true"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "parallel.overlap_param_gather needs parallel.overlap_grad_reduce=true"
    for name in ("tensor_parallel_size", "expert_tensor_parallel_size"):
        if config.optim.kind == "muon" and getattr(parallel, name) > 1:
            yield (
                f"optim.kind=muon orthogonalises whole matrices, parallel.{name}="
                f"{getattr(parallel, name)} cuts them: use optim=adamw, or set it to 1"
            )


RULES = (ranks, divisors, exchange, pipeline, optimizer)
