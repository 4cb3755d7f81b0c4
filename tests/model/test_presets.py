"""Presets add up: the arithmetic equals the built model, and both equal what was published."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import List, NamedTuple

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.rules import problems
from loopmoe_train.device.accelerator import shapes_only
from loopmoe_train.model.build import empty_gpt
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.spec.arithmetic import parameters

PRESETS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "configs" / "model").glob("*.yaml")
)
BILLION = 1e9


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_accepted_by_the_rules_on_a_large_cluster(name: str) -> None:
    experts = compose([f"model={name}", "parallel=data"]).model.moe.num_experts
    run = compose([f"model={name}", "cluster=ascend_a2", "cluster.devices=64", "precision=bf16",
                   f"parallel.expert_parallel_size={gcd(8, experts)}", "global_batch_size=256",
                   "sequence_length=4096"])  # fmt: skip
    assert problems(run) == [] and run.model.name == name


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_equal_the_built_model(one_rank: None, name: str) -> None:
    """The whole model, layer by layer as in training, on torch's meta device."""
    run = compose([f"model={name}", "cluster.devices=1", "parallel=data", "precision=bf16"])
    vocab = run.model.vocab_size or 4096
    with shapes_only():
        model = empty_gpt(run, vocab, transformer_config(run))
    assert all(p.is_meta for p in model.parameters())
    # Multi-token prediction is counted apart.
    built = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("mtp"))
    assert built == parameters(run.model, vocab)["total"]


class Published(NamedTuple):
    """In billions; ``without``: what the publication does not count as active."""

    total: float
    active: float
    without: str  # "" or "lookup": the input embedding, of which a token reads one row
    tolerance: float  # relative, of active


PUBLISHED = {
    "pangu_ultra_moe_718b": Published(718, 39, "lookup", 0.01),
    "deepseek_v3_671b": Published(671, 37, "lookup", 0.011),
    # 3.353 is printed as 3.3
    "qwen3_30b_a3b": Published(30.5, 3.3, "", 0.017),
    "mixtral_8x7b": Published(46.7, 12.9, "", 0.01),
    # "16.5B" in the paper's table
    "pangu_pro_moe_72b": Published(72, 16.5, "", 0.01),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    model, published = compose([f"model={name}"]).model, PUBLISHED[name]
    counts = parameters(model, model.vocab_size or 0)
    assert counts["total"] / BILLION == pytest.approx(published.total, rel=0.01)
    active = counts["active"] - (counts["lookup"] if published.without else 0)
    assert active / BILLION == pytest.approx(published.active, rel=published.tolerance)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("vanilla_3b", [3, 0.8, 0.8]),
        ("loopmoe_3b", [3, 0.8, 0.6]),
        ("vanilla_9b", [9, 1.9, 1.9]),
        ("loopmoe_9b", [9, 1.9, 1.3]),
    ],
)
def test_totals_of_the_loopmoe_paper(name: str, printed: List[float]) -> None:
    """Total, active and physically active as arXiv 2606.04438 prints them, in billions.

    Hidden size, heads and vocabulary are not in the paper (facts, section 5): the best fit is
    within 15 % of every figure. Its active figure leaves out IterAdaLN.
    """
    model = compose([f"model={name}"]).model
    bare = compose([f"model={name}", "model.loop.conditioning=none"]).model
    counts = parameters(model, model.vocab_size or 0)
    counted = [counts["total"], parameters(bare, model.vocab_size or 0)["active"],
               counts["physical_active"]]  # fmt: skip
    for ours, theirs in zip(counted, printed):
        assert ours / BILLION == pytest.approx(theirs, rel=0.15)


def test_multi_token_prediction_is_counted_apart() -> None:
    """Pangu Ultra MoE's one depth: 12.44B, 0.741B active (facts, section 1), not in the 718B."""
    model = compose(["model=pangu_ultra_moe_718b"]).model
    counts = parameters(model, model.vocab_size or 0)
    assert counts["mtp"] / BILLION == pytest.approx(12.44, abs=0.005)
    assert counts["mtp_active"] / BILLION == pytest.approx(0.741, abs=0.0005)
