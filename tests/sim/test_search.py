"""The search: nothing better is missed, all that comes out can run and fits."""

from __future__ import annotations

from typing import Any

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.sim import memory, search, step
from loopmoe_train.sim.machine import Machine, machine_of
from loopmoe_train.sim.space import Space, configured
from loopmoe_train.sim.techniques import TECHNIQUES, using
from loopmoe_train.sim.workload import workload_of


def _run(*words: str) -> RunConfig:
    settings = ["parallel=data", "model=loopmoe_3b", "cluster=ascend_a2", "cluster.devices=16",
                "sequence_length=4096", "global_batch_size=32", "precision=bf16"]  # fmt: skip
    return compose([*settings, *words], layout=False)


def _machine(run: RunConfig) -> Machine:
    return machine_of(run.cluster)


@pytest.mark.parametrize(
    "words",
    [(), ("model=vanilla_3b",), ("model=loopmoe_3b", "cluster.memory_gib=16"),
     ("model=mixtral_8x7b", "cluster.devices=32")],
)  # fmt: skip
def test_nothing_better_is_missed(words: tuple[str, ...]) -> None:
    run = _run(*words)
    machine = _machine(run)
    found = search.search(run, machine, top=5)
    space = Space(run, machine, (), {})
    times = sorted(
        step.estimate_of(stages, stages.passes()).seconds for _, stages in space.fitting({})
    )
    assert found.simulated < len(times)
    assert [one.estimate.seconds for one in found.best] == pytest.approx(times[:5])


@pytest.mark.parametrize("model", ["loopmoe_3b", "vanilla_3b", "mixtral_8x7b", "qwen3_30b_a3b"])
def test_what_comes_out_runs_and_fits(model: str) -> None:
    run = _run(f"model={model}", "cluster.devices=32")
    machine = _machine(run)
    found = search.search(run, machine, top=8)
    assert len(found.best) == 8
    for one in found.best:
        assert not problems(configured(run, one.candidate))
        assert one.estimate.peak <= memory.room(one.workload, machine)
        assert one.workload.grid.world == 32
        # the workload of the run that it becomes is the one that was simulated
        again = compose(
            ["parallel=data", f"model={model}", "cluster=ascend_a2", "cluster.devices=32",
             "sequence_length=4096", "global_batch_size=32", "precision=bf16",
             *one.candidate.overrides()]
        )  # fmt: skip
        seconds = step.estimate(workload_of(again), machine).seconds
        assert seconds == pytest.approx(one.estimate.seconds)
    order = [one.estimate.seconds for one in found.best]
    assert order == sorted(order)


def test_what_is_given_is_kept() -> None:
    run = _run()
    fixed: dict[str, Any] = {
        "parallel.tensor_parallel_size": 2, "parallel.pipeline_parallel_size": 2,
        "parallel.expert_parallel_size": 4, "micro_batch_size": 1, "memory.recompute": "full",
    }  # fmt: skip
    found = search.search(run, _machine(run), fixed=fixed)
    assert found.best
    for one in found.best:
        settings = one.candidate.settings()
        assert {name: settings[name] for name in fixed} == fixed


def test_a_policy_of_ones_own_is_kept() -> None:
    run = _run("memory=selective", "memory.recompute_modules=[shared_experts]")
    fixed: dict[str, Any] = {
        "memory.recompute": "selective", "memory.recompute_modules": ["shared_experts"]
    }  # fmt: skip
    found = search.search(run, _machine(run), top=2, fixed=fixed)
    assert [one.candidate.recompute for one in found.best] == ["shared_experts"] * 2
    assert found.best[0].candidate.settings()["memory.recompute_modules"] == ["shared_experts"]


def test_less_memory_costs_time() -> None:
    seconds, peaks = [], []
    for gib in (60.3, 24, 14):
        run = _run(f"cluster.memory_gib={gib}", "model=vanilla_3b")
        best = search.search(run, _machine(run)).best[0].estimate
        seconds.append(best.seconds)
        peaks.append(best.peak)
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    assert peaks == sorted(peaks, reverse=True)


def test_pareto_is_a_front() -> None:
    run = _run()
    front = search.search(run, _machine(run)).pareto
    pairs = [(one.estimate.peak, one.estimate.seconds) for one in front]
    assert pairs == sorted(pairs)
    assert [seconds for _, seconds in pairs] == sorted((s for _, s in pairs), reverse=True)


def test_too_large_a_model_fits_nowhere() -> None:
    run = _run("model=pangu_ultra_moe_718b")
    found = search.search(run, _machine(run))
    assert not found.best
    assert "weights and optimizer states alone do not fit" in found.dropped


def test_a_batch_that_nothing_divides() -> None:
    run = _run("cluster.devices=6", "global_batch_size=5", "model.attention.num_heads=5")
    with pytest.raises(Refused, match="no layout divides 6 devices and global_batch_size=5"):
        search.search(run, _machine(run))


def test_an_unknown_technique() -> None:
    run = _run()
    with pytest.raises(Refused, match="magic: an unknown technique"):
        search.search(run, _machine(run), techniques=("magic",))


def test_memory_is_bought_only_where_it_pays() -> None:
    both = ("fine-recompute", "swap-optimizer")
    roomy, tight = _run("model=vanilla_3b"), _run("cluster.memory_gib=16")
    best = search.search(roomy, _machine(roomy), techniques=both).best[0]
    assert best.candidate.saving == ()
    assert best.estimate.seconds == search.search(roomy, _machine(roomy)).best[0].estimate.seconds
    without = search.search(tight, _machine(tight)).best[0].estimate.seconds
    bought = search.search(tight, _machine(tight), techniques=both).best[0]
    assert bought.candidate.saving and bought.estimate.seconds < without
    assert bought.estimate.peak <= memory.room(bought.workload, _machine(tight))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_does_something(name: str) -> None:
    run = compose(
        ["model=deepseek_v3_671b", "cluster=ascend_a2", "cluster.devices=256", "precision=bf16",
         "parallel.tensor_parallel_size=4", "parallel.pipeline_parallel_size=8",
         "parallel.expert_parallel_size=32", "global_batch_size=256", "sequence_length=4096",
         "micro_batch_size=1", "parallel.expert_tensor_parallel_size=1"]
    )  # fmt: skip
    machine = _machine(run)
    work = workload_of(run)
    before = step.estimate(work, machine)
    after = step.estimate(using(work, [name]), machine)
    if name in ("fine-recompute", "swap-optimizer"):
        assert after.peak < before.peak and after.seconds > before.seconds
    else:
        assert after.seconds < before.seconds


def test_the_fullest_stage_counts() -> None:
    run = _run("model=vanilla_3b")
    machine = _machine(run)
    space = Space(run, machine, (), {})
    for candidate, stages in space.fitting({}):
        assert memory.peak(stages) == max(one.total for one in memory.held(stages))
        assert memory.fits(stages, memory.room(stages.workload, machine)), candidate
