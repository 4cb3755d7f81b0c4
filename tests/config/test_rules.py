"""Every rule says no to what it is for, in one line that names the place and the mend."""

from __future__ import annotations

from typing import List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.rules import get, paths, problems
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused

REFUSED = {
    # override -> words that the line must hold
    "modle=loopmoe_tiny": ["modle", "model"],
    "model=loopmoe_tinny": ["loopmoe_tinny", "loopmoe_tiny"],
    "optim.learning_rate=1": ["optim.learning_rate", "did you mean"],
    "optim.lrr=1": ["optim.lrr", "optim.lr"],
    "expert_parallel_size=2": ["expert_parallel_size", "parallel.expert_parallel_size"],
    "steps=many": ["steps", "many"],
    "steps=0": ["steps=0", "at least 1"],
    "steps=5": ["optim.warmup_steps", "steps=5"],
    "seed=-1": ["seed"],
    "seed=9223372036854775808": ["seed=9223372036854775808", "below 2^63"],
    "precision=fp23": ["precision=fp23", "fp32"],
    "cluster.device=gpu": ["cluster.device=gpu", "cuda"],
    "cluster.devices=3": ["expert_parallel_size=2", "cluster.devices=3"],
    "global_batch_size=12": ["global_batch_size=12", "use 16"],
    "parallel.expert_parallel_size=3": ["parallel.expert_parallel_size=3", "cluster.devices"],
    "model.moe.num_experts=15": ["model.moe.num_experts=15"],
    "model.moe.top_k=99": ["top_k=99", "num_experts"],
    "model.moe.top_k=0": ["model.moe.top_k=0"],
    "model.moe.dispatcher=flex": ["model.moe.dispatcher=flex", "alltoall"],
    "model.moe.aux_loss=seq": ["model.moe.aux_loss=seq", "sequence"],
    "model.moe.score_function=softmax": ["expert_bias_update_rate"],
    "model.moe.norm_topk_prob=false": ["norm_topk_prob", "softmax"],
    "model.attention.qk_norm=true": ["qk_norm", "gqa"],
    "model.mtp_layers=-1": ["model.mtp_layers=-1"],
    "model.loop.min_iterations=9": ["must be from 1 to model.loop.iterations=3"],
    "model.loop.backprop_iterations=1": ["set model.loop.state_injection=true"],
    "model.body_layers=0": ["model.body_layers=0", "iterations"],
    "model.dense_layers=2": ["model.dense_layers=2"],
    "model.dense_layers=9": ["model.dense_layers=9"],
    "model.loop.gate=matrix": ["model.loop.gate=matrix", "vector"],
    "model.loop.bottleneck=0": ["model.loop.bottleneck=0", "null"],
    "model.loop.iteration_code_size=7": ["iteration_code_size", "even"],
    "model.attention.kind=mha": ["model.attention.kind=mha", "mla"],
    "model.attention.qk_rope_head_dim=7": ["even"],
    "optim.lr=0": ["optim.lr=0"],
    "optim.min_lr=1": ["optim.min_lr"],
    "optim.beta1=1": ["optim.beta1"],
    "optim.kind=muo": ["optim.kind=muo", "muon"],
    "optim.momentum=1": ["optim.momentum=1"],
    "optim.newton_schulz_steps=0": ["newton_schulz_steps=0"],
    "optim.update_rms=0": ["optim.update_rms=0"],
    "optim.schedule=linear": ["optim.schedule=linear", "cosine"],
    "optim.schedule=wsd optim.decay_steps=341": ["decay_steps=341", "the 340 steps after"],
    "data.valid_percent=0": ["data.valid_percent"],
    "tokenizer.vocab_size=100": ["tokenizer.vocab_size=100", "300"],
    "memory.recompute=selective": ["memory.recompute_modules"],
    "memory.recompute_modules=[attention]": ["attention", "core_attn"],
    "memory.recompute=selective memory.recompute_modules=mla_up_proj model.attention.kind=gqa": [
        "model.attention.kind=gqa has no mla_up_proj"
    ],
    "parallel.overlap_param_gather=true": ["overlap_grad_reduce"],
    "observe.wandb=on": ["observe.wandb"],
    "launcher.timeout_minutes=0": ["launcher.timeout_minutes"],
    "name=a/b": ["name"],
    "steps=1 2": ["steps"],
    "=": ["="],
    "": ["not a setting"],
    "+foo=1": ["+foo=1", "not a setting"],
    "~model": ["~model", "not a setting"],
    "model": ["'model'", "not a setting"],
    "model=[": ["model=["],
    "model=": ["model"],
}


@pytest.mark.parametrize("override", REFUSED)
def test_refused_in_one_line(override: str) -> None:
    # "steps=1 2" is one wrong override, not two.
    overrides = override.split() if override.count("=") > 1 else [override]
    with pytest.raises(Refused) as caught:
        compose(overrides)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    for words in REFUSED[override]:
        assert words in line, line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.distributed_optimizer=false", "set parallel.distributed_optimizer=true"),
        ("parallel.overlap_param_gather=true", "which optim.kind=muon does not use"),
    ],
)
def test_muon_refuses_what_it_cannot_use(override: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        compose(["optim=muon", "parallel.overlap_grad_reduce=true", override])


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_no_number_is_infinite_or_none_at_all(value: str) -> None:
    kinds = ("float", "Optional[float]")
    hints = [path for path in paths(RunConfig()) if _annotation(path) in kinds]
    assert len(hints) > 20
    for path in hints:
        with pytest.raises(Refused, match=f"{path}={value}: must be a finite number"):
            compose([f"{path}={value}"])


def _annotation(path: str) -> str:
    *sections, name = path.split(".")
    node = get(RunConfig(), ".".join(sections)) if sections else RunConfig()
    return str(type(node).__annotations__[name])


def test_the_largest_seed_is_one() -> None:
    assert compose(["seed=9223372036854775807"]).seed == 2**63 - 1


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(Refused) as caught:
        compose(["optim.lr=0", "seed=-1"])
    assert "optim.lr" in str(caught.value) and "seed" in str(caught.value)


def test_defaults_are_sound() -> None:
    assert problems(RunConfig()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=vanilla_tiny"],
        ["experiment=smoke"],
        ["experiment=smoke", "model=vanilla_tiny"],
        ["experiment=bench_resume", "model=vanilla_tiny"],
        ["experiment=bench_train"],
        ["parallel=data", "cluster.devices=1"],
        ["cluster=h200"],
        ["memory=full"],
        ["memory=selective"],
        ["checkpoint=regular", "observe=wandb"],
        ["optim=muon", "parallel=data", "observe=tensorboard"],
    ],
    ids=lambda o: ",".join(o) or "default",
)
def test_presets_compose(overrides: List[str]) -> None:
    if overrides == ["cluster=h200"]:
        overrides = [*overrides, "parallel=data"]
    compose(overrides)
