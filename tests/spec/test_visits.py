"""Visits in the order of the paper: the block runs as a whole."""

from __future__ import annotations

from loopmoe_train.config.schema import LoopConfig, ModelConfig
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters
from loopmoe_train.spec.visits import conditioned, visits


def _model(prefix: int, body: int, suffix: int, iterations: int) -> ModelConfig:
    return ModelConfig(prefix_layers=prefix, body_layers=body, suffix_layers=suffix,
                       loop=LoopConfig(iterations=iterations))  # fmt: skip


def test_order() -> None:
    seen = [(v.layer, v.iteration) for v in visits(_model(2, 2, 1, 3))]
    assert seen == [(0, 1), (1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (2, 3), (3, 3), (4, 1)]


def test_depths_of_the_paper() -> None:
    """3B: 2/2/2, K = 4 -> effective depth 12, unique 6; 9B: 3/3/3 -> 18 and 9 (section 5)."""
    for n, depth, unique in ((2, 12, 6), (3, 18, 9)):
        model = _model(n, n, n, 4)
        assert len(visits(model)) == depth
        assert sum(v.owns_weights for v in visits(model)) == unique
        assert [v.index for v in visits(model)] == list(range(depth))


def test_not_looped() -> None:
    model = _model(3, 2, 0, 1)
    assert not conditioned(model) and not any(v.looped for v in visits(model))
    assert all(v.owns_weights for v in visits(model))


def test_a_loop_uses_what_it_owns_again() -> None:
    once, twice = _model(1, 2, 1, 2), _model(1, 2, 1, 4)
    a, b = parameters(once, 100), parameters(twice, 100)
    assert a["total"] == b["total"] and a["physical_active"] == b["physical_active"]
    assert b["active"] > a["active"]
    flops = [sum(forward_flops_per_token(m, 100, 64).values()) for m in (once, twice)]
    assert flops[1] > flops[0]
