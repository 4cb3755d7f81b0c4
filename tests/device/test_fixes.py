"""Every fix and rule: its scenario passes with it and fails without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from loopmoe_train.errors import Refused

ROOT = Path(__file__).parents[2]

#: fix or rule left out -> (scenario, what its failure says)
WITHOUT = {
    "no-jit-fuser": ("settings_of_core", "jit_fuser is not switched off"),
    "no-rng-notice": ("settings_of_core", "CPU RNG state changed"),
    "router-gemm-without-te": ("moe_reference", "NameError: name 'te_general_gemm'"),
    "norm-under-sequence-parallel": ("moe_tp2_sp", "sequence parallel not supported"),
    "expert-gradients-without-ep": ("moe_tp2_sp", "experts"),
    "all-reduce-of-strided-tensor": ("mla_tp2", "gradients are off"),
    "uneven-gather-on-gloo": ("uneven_gather", "RuntimeError"),
    "mla-without-te": ("mla_reference", "TypeError: isinstance()"),
    "mla-shared-rope-key": ("mla_tp2", "gradients are off"),
    "mla-query-norm-counted-once": ("mla_tp2", "q_layernorm.weight': 1.0"),
    "checkpoint-without-fp8": ("recompute_without_fp8", "NameError: name 'FP8GlobalState"),
    "optimizer-state-before-first-step": ("state_before_first_step", "AssertionError"),
    "optimizer-state-without-step-key": ("resume", "KeyError: 'step'"),
    "optimizer-step-shared-on-resume": ("resume", "after resuming"),
    "optimizer-step-of-empty-part": ("stage_without_experts", "AssertionError"),
    "optimizer-offload-without-te": ("offloaded_optimizer", "TypeError: '>=' not supported"),
    "router-counters-in-fp32": ("router_counts", "instead of"),
    "sequence-loss-of-all-tokens": ("sequence_loss", "off by a factor"),
    "balance-losses-of-all-ranks": ("balance_of_ranks", "off by a factor of 2"),
    "interleaved-over-two-stages": ("pipeline_pp2_vpp2", "gradients are off"),
}
WITH = (
    "moe_reference",
    "mla_reference",
    "pipeline_reference",
    "moe_tp2_sp",
    "mla_tp2",
    "mla_tp2_sp",
    "pipeline_pp2_vpp2",
    "balance_of_ranks",
    "uneven_gather",
    "recompute_without_fp8",
    "router_counts",
    "sequence_loss",
    "resume",
    "state_before_first_step",
    "stage_without_experts",
    "offloaded_optimizer",
    "settings_of_core",
)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """All scenarios in one launch."""
    pairs = [*WITH, *(f"{scenario}:{fix}" for fix, (scenario, _) in WITHOUT.items())]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.device.fix_scenarios", *pairs],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout[done.stdout.index("{") :]))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("scenario", WITH)
def test_with_all_fixes(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[f"{scenario}:"] == "ok"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("fix", WITHOUT)
def test_without_it(outcomes: dict[str, str], fix: str) -> None:
    scenario, says = WITHOUT[fix]
    assert says in outcomes[f"{scenario}:{fix}"]


def test_no_fix_and_no_rule_is_left_untested() -> None:
    from loopmoe_train.device import fixes

    # what the gloo rule prevents is a race: it has a test of the rule alone, below
    names = {fix.name for fix in fixes.FIXES} | set(fixes.CONFIG_RULES)
    assert names - {"gloo-sends-hold-their-buffer"} == set(WITHOUT)


def _config(**changes: object) -> SimpleNamespace:
    values: dict[str, object] = {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "batch_p2p_comm": False,
        "overlap_p2p_comm": False,
        "deallocate_pipeline_outputs": True,
    }
    return SimpleNamespace(**(values | changes))


@pytest.mark.parametrize(
    ("pipeline", "virtual", "kept"), [(2, 2, False), (2, None, True), (4, 2, True), (1, None, True)]
)
def test_rule_interleaved_over_two_stages(pipeline: int, virtual: int | None, kept: bool) -> None:
    from loopmoe_train.device import fixes

    config = _config(
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        batch_p2p_comm=True,
    )
    said = fixes.apply_config_rules(config, "npu")
    assert config.batch_p2p_comm is kept
    assert len(said) == (0 if kept else 1)


@pytest.mark.parametrize(
    ("device", "overlap", "kept"), [("cpu", True, False), ("cpu", False, True), ("npu", True, True)]
)
def test_rule_gloo_sends_hold_their_buffer(device: str, overlap: bool, kept: bool) -> None:
    from loopmoe_train.device import fixes

    config = _config(overlap_p2p_comm=overlap)
    fixes.apply_config_rules(config, device)
    assert config.deallocate_pipeline_outputs is kept


def test_another_version_of_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import package_info

    from loopmoe_train.device import fixes

    fixes.check_versions()
    monkeypatch.setattr(package_info, "__version__", "0.17.0")
    with pytest.raises(Refused, match=r"0\.17\.0 is installed, loopmoe_train supports ==0\.16\.1"):
        fixes.check_versions()


def test_an_unknown_fix_cannot_be_disabled() -> None:
    from loopmoe_train.device import fixes

    with pytest.raises(ValueError, match="no fix is called 'nonsense'"):
        fixes.disable_fix("nonsense")
