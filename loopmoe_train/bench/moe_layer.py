"""A MoE layer, forward and backward, against megatron-core's own on the same weights and tokens.

Rank part; the verb (cli/bench.py) starts it. One process, so that nothing is exchanged: what
differs is how rows are moved and how experts are computed.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor, nn

from loopmoe_train.bench.core_model import PlainGroupedExperts
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe.layer import LoopMoELayer
from loopmoe_train.parallel import groups
from loopmoe_train.train.__main__ import leave, main

SIDES = ("ours", "core, SequentialMLP", "core, grouped products")
_CALLS = 3  # in a round


def measure(run: RunConfig) -> None:
    """Time all sides in ``run.steps`` rounds and write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    layers = _layers(run)
    shape = (run.sequence_length, run.micro_batch_size, run.model.hidden_size)
    x, upstream = (torch.randn(shape, device=accel.current_device()) for _ in range(2))
    if run.precision == "bf16":
        x, upstream = x.bfloat16(), upstream.bfloat16()
    calls = {side: _call(layer, x, upstream) for side, layer in layers.items()}
    outputs = {side: call() for side, call in calls.items()}
    error = {
        side: float((out - outputs["ours"]).float().norm() / outputs["ours"].float().norm())
        for side, out in outputs.items()
    }
    seconds: Dict[str, List[float]] = {side: [] for side in SIDES}
    for number in range(run.steps):
        for side in [*SIDES[number % 3 :], *SIDES[: number % 3]]:
            accel.synchronize()
            started = time.perf_counter()
            for _ in range(_CALLS):
                calls[side]()
            accel.synchronize()
            seconds[side].append((time.perf_counter() - started) / _CALLS)
        told = "  ".join(f"{side} {1e3 * times[-1]:.1f} ms" for side, times in seconds.items())
        print(f"round {number + 1}/{run.steps}: {told}", flush=True)
    table = {
        "model": run.model.name,
        "tokens": shape[0] * shape[1],
        "rounds": run.steps,
        "sides": {
            side: dict(
                seconds=statistics.median(times), low=min(times), high=max(times),
                over_ours=statistics.median(a / b for a, b in zip(times, seconds["ours"])),
                error=error[side],
            )
            for side, times in seconds.items()
        },
    }  # fmt: skip
    (run_dir(run) / "bench.json").write_text(json.dumps(table, indent=1))
    groups.leave()


def _call(layer: nn.Module, x: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
    x = x.clone().requires_grad_()

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad(set_to_none=True)
        out, _ = layer(x)
        out.backward(upstream)
        return out.detach()

    return call


def _layers(run: RunConfig) -> Dict[str, nn.Module]:
    """One layer for each side, with the same weights."""
    config = transformer_config(run)
    spec = get_gpt_layer_local_spec(
        num_experts=run.model.moe.num_experts, moe_grouped_gemm=False, normalization="RMSNorm"
    ).submodules.mlp
    ours = LoopMoELayer(config, layer_number=1)
    core = MoELayer(config, spec.submodules, layer_number=1)
    given = MoELayer(config, spec.submodules, layer_number=1)
    given.experts = PlainGroupedExperts(run.model.moe.num_experts, config, _groups(ours))
    with torch.no_grad():
        for weight in ours.parameters():
            weight.normal_(std=0.02)
        for other in (core, given):
            for name, weight in other.named_parameters():
                weight.copy_(_counterpart(ours, name))
    return dict(zip(SIDES, (ours, core, given)))


def _groups(ours: LoopMoELayer) -> Any:
    return ours.experts.pg_collection


def _counterpart(ours: LoopMoELayer, name: str) -> Tensor:
    """Our weights under the name that core's layer has for them."""
    mine = dict(ours.named_parameters())
    if ".local_experts." not in name:
        return mine[name]
    expert, _, which = name.partition(".local_experts.")[2].partition(".")
    if "linear_fc1" in which:
        return mine["experts.w1_EDGF"][int(expert)].flatten(1).T
    return mine["experts.w2_EFD"][int(expert)].T


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
