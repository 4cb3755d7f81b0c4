"""The simulator's operators have the parameters and FLOPs of the model's own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.sim.machine import Machine, machine_of, named
from loopmoe_train.sim.shape import Attention, Shape, shape_of
from loopmoe_train.sim.stage import Stages
from loopmoe_train.sim.workload import Workload, workload_of
from loopmoe_train.spec.arithmetic import (
    forward_flops_per_token,
    parameters,
    train_flops_per_token,
)
from loopmoe_train.spec.grid import Grid

PRESETS = (
    "loopmoe_tiny", "vanilla_tiny", "loopmoe_9b", "vanilla_9b", "pangu_ultra_moe_718b",
    "pangu_pro_moe_72b", "deepseek_v3_671b", "qwen3_30b_a3b", "mixtral_8x7b",
)  # fmt: skip


def _run(model: str) -> RunConfig:
    return compose(
        [f"model={model}", "cluster.devices=1", "parallel=data", "sequence_length=4096",
         "micro_batch_size=1", "global_batch_size=1", "precision=bf16"]
    )  # fmt: skip


def _vocabulary(run: RunConfig) -> int:
    return run.model.vocab_size or run.tokenizer.vocab_size


@pytest.fixture(scope="module")
def machine() -> Machine:
    return machine_of(named("ascend_a2"))


@pytest.mark.parametrize("model", PRESETS)
def test_parameters(model: str) -> None:
    run = _run(model)
    wanted = parameters(run.model, _vocabulary(run))["total"]
    # IterAdaLN's biases and MLP_iter, and the norms inside attention, are left out
    assert shape_of(run.model, _vocabulary(run)).parameters() == pytest.approx(wanted, rel=0.02)
    if not model.startswith("loopmoe"):
        assert shape_of(run.model, _vocabulary(run)).parameters() == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("model", PRESETS)
def test_flops(model: str, machine: Machine) -> None:
    run = _run(model)
    vocabulary = _vocabulary(run)
    work = replace(workload_of(run), imbalance=1.0)
    wanted = train_flops_per_token(run.model, vocabulary, 4096)
    assert work.shape.train_flops(4096) == pytest.approx(wanted, rel=1e-3)
    # and so the operators that are simulated
    stages = Stages(work, machine)
    whole = sum(
        operator.flops for slot in stages.placed.slots for kind in slot
        for operator in stages.operators(kind)
    ) + sum(operator.flops for operator in stages.head())  # fmt: skip
    parts = forward_flops_per_token(run.model, vocabulary, 4096)
    assert whole / work.tokens == pytest.approx(sum(parts.values()) - parts["mtp"], rel=1e-3)


def _cut(work: Workload, **sizes: int) -> Workload:
    world = 1
    for size in sizes.values():
        world = max(world, size)
    return replace(work, grid=Grid.of(world, **sizes), sequence_parallel=True)


@pytest.mark.parametrize(
    "sizes",
    [{"tensor": 4}, {"context": 4}, {"expert": 4}, {"tensor": 4, "expert_tensor": 4},
     {"tensor": 4, "expert": 4}],
)  # fmt: skip
def test_cuts_share_the_work(sizes: dict[str, int], machine: Machine) -> None:
    """However a layer is cut, its ranks together do the same (but for what all of them do)."""
    work = replace(workload_of(_run("mixtral_8x7b")), imbalance=1.0)

    def flops(one: Workload) -> float:
        stages = Stages(one, machine)
        kind = stages.placed.slots[0][-1]
        return sum(operator.flops for operator in stages.operators(kind))

    cut = _cut(work, **sizes)
    # experts of other ranks' tokens come in exchange for one's own: data parallel ranks count
    batches = cut.grid.data
    assert flops(cut) * cut.grid.world == pytest.approx(flops(work) * batches, rel=1e-6)


def test_window() -> None:
    attention = Attention(heads=1, groups=1, qk_dim=1, v_dim=1)
    seen = [min(place + 1, 100) for place in range(1000)]
    assert replace(attention, window=100).keys_seen(1000) == pytest.approx(sum(seen) / 1000)
    assert attention.keys_seen(1000) == 500.5


def test_looped_weights_count_once(machine: Machine) -> None:
    run = _run("loopmoe_9b")
    stages = Stages(workload_of(run), machine)
    assert stages.weights(0).total == pytest.approx(
        shape_of(run.model, _vocabulary(run)).parameters(), rel=1e-9
    )
    assert isinstance(stages.workload.shape, Shape)
    assert len(stages.workload.shape.order) > len(stages.workload.shape.layers)
