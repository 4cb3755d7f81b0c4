"""Cross-field checks of a model; generators over problems, as in :mod:`.rules`."""

from __future__ import annotations

import math
from typing import Iterator

from loopmoe_train.config.schema import RunConfig

Problems = Iterator[str]


def sizes(config: RunConfig) -> Problems:
    model, attention, moe = config.model, config.model.attention, config.model.moe
    if moe.top_k > moe.num_experts:
        yield (
            f"model.moe.top_k={moe.top_k} is more than model.moe.num_experts={moe.num_experts}: "
            "lower top_k or add experts"
        )
    if attention.qk_rope_head_dim % 2 or attention.head_dim % 2:
        yield "model.attention: rotary dims (qk_rope_head_dim, head_dim) must be even"
    if attention.kind == "gqa" and attention.num_heads % attention.num_query_groups:
        yield (
            f"model.attention.num_heads={attention.num_heads} is not a multiple of "
            f"num_query_groups={attention.num_query_groups}: change either"
        )
    if model.loop.iterations > 1 and model.body_layers == 0:
        yield (
            f"model.loop.iterations={model.loop.iterations} but model.body_layers=0: "
            "give the loop a body, or set model.loop.iterations=1"
        )
    unique = model.prefix_layers + model.body_layers + model.suffix_layers
    if model.dense_layers >= unique:
        yield (
            f"model.dense_layers={model.dense_layers} leaves none of the {unique} layers for "
            "experts: lower it"
        )
    if model.loop.iterations > 1 and model.prefix_layers < model.dense_layers:
        yield (
            f"model.dense_layers={model.dense_layers} reaches into the loop body "
            f"(model.prefix_layers={model.prefix_layers}): add prefix layers or lower it"
        )
    row = 8 if config.precision == "bf16" else 4
    for path, size in (
        ("model.hidden_size", model.hidden_size),
        ("model.moe.expert_hidden_size", moe.expert_hidden_size),
    ):
        if size % row:
            yield (
                f"{path}={size}: must be a multiple of {row} in {config.precision} "
                "(the grouped matrix product takes rows of whole 16 bytes)"
            )
    if moe.score_function == "softmax" and moe.expert_bias_update_rate > 0:
        yield (
            "model.moe.expert_bias_update_rate needs score_function=sigmoid: "
            "set model.moe.expert_bias_update_rate=0 or model.moe.score_function=sigmoid"
        )
    if moe.score_function == "sigmoid" and moe.top_k > 1 and not moe.norm_topk_prob:
        yield (
            "model.moe.norm_topk_prob=false needs score_function=softmax (core's sigmoid router "
            "always renormalises): set it to true or model.moe.score_function=softmax"
        )
    if attention.qk_norm and attention.kind == "mla":
        yield (
            "model.attention.qk_norm is for kind=gqa (mla always norms its latents): leave it out"
        )
    gains = model.depth_scaled_gains
    if gains is not None and (len(gains) != 2 or not all(0 < gain < math.inf for gain in gains)):
        yield (
            f"model.depth_scaled_gains={list(gains)}: give two numbers above 0, "
            "for attention and FFN"
        )
    if gains is not None and not model.sandwich_norm:
        yield "model.depth_scaled_gains are those of the output norms: set model.sandwich_norm=true"


def loop(config: RunConfig) -> Problems:
    loop = config.model.loop
    if loop.min_iterations is not None and not 1 <= loop.min_iterations <= loop.iterations:
        yield (
            f"model.loop.min_iterations={loop.min_iterations}: must be from 1 to "
            f"model.loop.iterations={loop.iterations}"
        )
    if loop.backprop_iterations is not None:
        if loop.backprop_iterations < 1:
            yield f"model.loop.backprop_iterations={loop.backprop_iterations}: must be at least 1"
        if not loop.state_injection:
            yield (
                "model.loop.backprop_iterations cuts the prefix off from the loss: "
                "set model.loop.state_injection=true too"
            )
    if loop.state_injection and loop.iterations == 1:
        yield "model.loop.state_injection needs model.loop.iterations above 1"
    if loop.state_injection and config.memory.recompute == "full":
        yield (
            "model.loop.state_injection reaches past whole layers, which memory.recompute=full "
            "runs alone: use memory=selective or keep"
        )
    if loop.iteration_code_size % 2:
        yield "model.loop.iteration_code_size must be even (sine and cosine halves)"


def groups(config: RunConfig) -> Problems:
    moe = config.model.moe
    groups, chosen = moe.num_groups, moe.topk_groups
    if moe.group_routing == "none":
        if groups is not None or chosen is not None:
            yield (
                "model.moe.num_groups and topk_groups do nothing with group_routing=none: "
                "set model.moe.group_routing=limited or balanced, or leave them out"
            )
        return
    if not groups or groups < 1 or moe.num_experts % groups:
        yield (
            f"model.moe.num_groups={groups}: group_routing={moe.group_routing} needs a divisor of "
            f"num_experts={moe.num_experts}"
        )
        return
    size = moe.num_experts // groups
    if moe.group_routing == "balanced":
        if chosen is not None:
            yield "model.moe.topk_groups is for group_routing=limited: leave it out"
        if moe.top_k % groups or moe.top_k // groups > size:
            yield (
                f"model.moe.top_k={moe.top_k}: group_routing=balanced takes equally many of each "
                f"of the {groups} groups of {size}: use a multiple of {groups}"
            )
    elif (
        not chosen
        or not 1 <= chosen <= groups
        or moe.top_k % chosen
        or (moe.top_k // chosen > size)
    ):
        yield (
            f"model.moe.topk_groups={chosen}: group_routing=limited needs a divisor of "
            f"top_k={moe.top_k}, at most num_groups={groups}, with top_k / topk_groups <= {size}"
        )


def balance(config: RunConfig) -> Problems:
    moe = config.model.moe
    if moe.device_loss_coeff and config.parallel.expert_parallel_size == 1:
        yield (
            f"model.moe.device_loss_coeff={moe.device_loss_coeff} balances expert-parallel ranks, "
            "of which there is one: set it to 0, or parallel.expert_parallel_size above 1"
        )
    if moe.pad_to_capacity and moe.capacity_factor is None:
        yield "model.moe.pad_to_capacity needs model.moe.capacity_factor: set it, 1.25 say"
    if moe.drop_policy != "probs" and moe.capacity_factor is None:
        yield f"model.moe.drop_policy={moe.drop_policy} does nothing without capacity_factor"
    if moe.balance_over == "visit" and not (
        moe.expert_bias_update_rate > 0 or moe.aux_loss == "global_batch"
    ):
        yield (
            "model.moe.balance_over=visit does nothing here: it is for the expert bias "
            "(expert_bias_update_rate) and aux_loss=global_batch"
        )
    if moe.pad_to_capacity and moe.dispatcher == "allgather":
        yield "model.moe.pad_to_capacity needs another model.moe.dispatcher: alltoall, say"
    if moe.overlap_shared_experts:
        if not moe.num_shared_experts:
            yield (
                "model.moe.overlap_shared_experts does nothing without shared experts: leave it "
                "out, or set model.moe.num_shared_experts above 0"
            )
        if moe.dispatcher == "allgather":
            yield (
                "model.moe.overlap_shared_experts is not for model.moe.dispatcher=allgather: "
                "use alltoall, or leave it out"
            )
        if "shared_experts" in config.memory.recompute_modules:
            yield (
                "model.moe.overlap_shared_experts: shared experts that run beside the exchange are "
                "not recomputed: take shared_experts out of memory.recompute_modules"
            )


RULES = (sizes, loop, groups, balance)
