"""The balancing solver: it finds the paper's models, and nothing nearby is better."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Tuple

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.errors import Refused
from loopmoe_train.spec.balance import Layout, Multiples, Setting, balance
from loopmoe_train.spec.capacity import UniqueExperts, independent, measured, overlapping

VOCAB, LENGTH = 100352, 4096
# (L_p/L_b/L_s x K, query rank, key/value rank, expert width, experts) of arXiv 2606.04438
PAPER = {
    "vanilla_3b": ("2/2/2x4", 512, 640, 864, 136),
    "vanilla_9b": ("3/3/3x4", 896, 640, 1216, 136),
}


def _sizes(model: ModelConfig) -> Tuple[int, ...]:
    a, moe = model.attention, model.moe
    return (a.q_lora_rank or 0, a.kv_lora_rank, moe.expert_hidden_size, moe.num_experts)


def _solve(
    name: str, unique: UniqueExperts, *overrides: str, count_iter_adaln: bool = False
) -> Tuple[ModelConfig, List[float]]:
    """The looped model and its residuals in N, F, rho."""
    reference = compose([f"model={name}", *overrides]).model
    setting = Setting(VOCAB, LENGTH, unique, count_iter_adaln)
    model = balance(reference, Layout.parse(PAPER[name][0]), setting, Multiples())
    return model, list(setting.point(model).residuals(setting.point(reference)))


@pytest.mark.parametrize("name", PAPER)
def test_it_finds_the_models_of_the_paper(name: str) -> None:
    """All eight sizes exactly, from one number that the paper measured and does not print.

    Two iterations' expert sets overlapping by 0.58..0.60 (Jaccard; 10.4 to 10.7 distinct
    experts of 24 possible) give both models, provided that the dense first layer is counted as
    an MoE layer like the others. Experts and width hardly hang on the overlap: from 0.40 to
    0.76 they stay within one step (8 and 32) of the paper's.
    """
    for jaccard in (0.58, 0.60):
        model, residuals = _solve(name, overlapping(jaccard), "model.dense_layers=0")
        assert _sizes(model) == PAPER[name][1:]
        assert max(map(abs, residuals)) < 0.025
    for jaccard in (0.4, 0.5, 0.7, 0.76):
        model, _ = _solve(name, overlapping(jaccard), "model.dense_layers=0")
        assert abs(model.moe.num_experts - 136) <= 8
        assert abs(model.moe.expert_hidden_size - PAPER[name][3]) <= 32


@pytest.mark.parametrize("name", PAPER)
def test_with_the_dense_first_layer_counted(name: str) -> None:
    """The presets as they are: every size within one step of the paper's (128, 32, 8). One MoE
    layer is missing of 6 (9) in the loop, but only one of 12 (18) in the reference: 144 experts.
    """
    model, residuals = _solve(name, overlapping(0.6))
    steps = [(ours - theirs) / multiple for ours, theirs, multiple in zip(
        _sizes(model), PAPER[name][1:], (128, 128, 32, 8))]  # fmt: skip
    assert max(map(abs, steps)) <= 1 and model.moe.num_experts == 144
    assert max(map(abs, residuals)) < 0.025


@pytest.mark.parametrize("name", PAPER)
def test_the_published_match_leaves_iter_adaln_out(name: str) -> None:
    """With it in F, at the width of the hidden state, experts would be a quarter narrower than
    published and rho out of reach; a bottleneck of 256 comes back to within 64."""
    model, residuals = _solve(name, overlapping(0.6), "model.dense_layers=0", count_iter_adaln=True)
    assert model.moe.expert_hidden_size < 0.8 * PAPER[name][3]
    assert residuals[2] > 0.15
    model, residuals = _solve(name, overlapping(0.6), "model.dense_layers=0",
                              "model.loop.bottleneck=256", count_iter_adaln=True)  # fmt: skip
    assert abs(model.moe.expert_hidden_size - PAPER[name][3]) <= 64
    assert max(map(abs, residuals)) < 0.025


@pytest.mark.parametrize("name", PAPER)
def test_independent_routing_asks_for_more_attention(name: str) -> None:
    """22 distinct experts instead of 10: ranks and experts above the paper's, width below."""
    model, residuals = _solve(name, independent)
    q, kv, width, experts = _sizes(model)
    assert q > PAPER[name][1] and kv > PAPER[name][2]
    assert width < PAPER[name][3] and experts > PAPER[name][4]
    assert max(map(abs, residuals)) < 0.025


@pytest.mark.parametrize("unique", [independent, overlapping(0.6), measured(8)])
def test_no_neighbour_on_the_grid_is_nearer(unique: UniqueExperts) -> None:
    reference = compose(["model=vanilla_3b"]).model
    setting, grid = Setting(VOCAB, LENGTH, unique), Multiples()
    target = setting.point(reference)
    best = balance(reference, Layout(2, 2, 2, 4), setting, grid)

    def score(steps: Tuple[int, ...]) -> float:
        q, kv, width, experts = (
            size + step * multiple
            for size, step, multiple in zip(
                _sizes(best), steps, (grid.rank, grid.rank, grid.width, grid.experts)
            )
        )
        if q < 384 or kv < 512:
            return float("inf")
        model = replace(
            best,
            dense_ffn_hidden_size=8 * width,
            attention=replace(best.attention, q_lora_rank=q, kv_lora_rank=kv),
            moe=replace(best.moe, expert_hidden_size=width, num_experts=experts),
        )
        uneven = (q - 384 - (kv - 512)) / grid.rank
        return sum(r * r for r in setting.point(model).residuals(target)) + (0.01 * uneven) ** 2

    own = score((0, 0, 0, 0))
    assert all(
        own <= score((a, b, c, d)) + 1e-12
        for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) for d in (-1, 0, 1)
    )  # fmt: skip


def test_multiples_and_other_settings_are_kept() -> None:
    reference = compose(["model=vanilla_tiny", "model.loop.bottleneck=32"]).model
    grid = Multiples(rank=48, width=24, experts=6)
    model = balance(reference, Layout.parse("1/2/1x2"), Setting(4096, 256), grid)
    q, kv, width, experts = _sizes(model)
    assert (q % 48, kv % 48, width % 24, experts % 6) == (0, 0, 0, 0)
    assert q >= reference.attention.q_lora_rank and kv >= reference.attention.kv_lora_rank
    assert model.loop == replace(reference.loop, iterations=2)
    assert (model.hidden_size, model.moe.top_k) == (reference.hidden_size, reference.moe.top_k)
    assert model.name == "loopmoe_tiny"


def test_a_model_without_query_rank() -> None:
    reference = compose(["model=vanilla_3b", "model.attention.q_lora_rank=null"]).model
    setting = Setting(VOCAB, LENGTH, overlapping(0.6))
    model = balance(reference, Layout(2, 2, 2, 4), setting, Multiples())
    residuals = setting.point(model).residuals(setting.point(reference))
    assert model.attention.q_lora_rank is None and model.attention.kv_lora_rank > 512
    assert max(map(abs, residuals)) < 0.06


def test_the_small_twins_are_the_solvers() -> None:
    reference, preset = (
        compose([f"model={name}"]).model for name in ("vanilla_small", "loopmoe_small")
    )
    setting = Setting(4096, LENGTH, overlapping(0.6), count_iter_adaln=True)
    assert balance(reference, Layout.parse("2/2/2x4"), setting, Multiples(rank=32)) == preset
    residuals = setting.point(preset).residuals(setting.point(reference))
    assert max(map(abs, residuals)) < 0.01


@pytest.mark.parametrize("text", ["2/2x4", "2/2/2", "2/2/2x1", "0/2/2x4", "2/0/2x4", "a/b/cxd"])
def test_layouts_that_are_no_loop(text: str) -> None:
    with pytest.raises(Refused, match="2/2/2x4"):
        Layout.parse(text)
