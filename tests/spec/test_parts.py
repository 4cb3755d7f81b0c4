"""FLOPs by part."""

from __future__ import annotations

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.spec.arithmetic import (
    forward_flops_per_token,
    parameters,
    train_flops_per_token,
)


def test_pangu_ultra_moe() -> None:
    """6 FLOPs per training token for each of 41.1B parameters: 39.19B without the lookup, 0.74B
    of multi-token prediction and 1.18B of its use of the head (facts, section 5)."""
    model = compose(["model=pangu_ultra_moe_718b"]).model
    vocab = model.vocab_size or 0
    parts = forward_flops_per_token(model, vocab, 8192)
    per_layer = 128 * (128 + 64 + 128) * 8193  # heads, dims of query and value, mean keys x 2
    assert parts["attention_scores"] == 61 * per_layer
    matrices = sum(parts.values()) - 62 * per_layer
    assert 3 * matrices == pytest.approx(6 * 41.1e9, rel=1e-3)
    counts = parameters(model, vocab)
    used = counts["active"] - counts["lookup"] + counts["mtp_active"] + vocab * model.hidden_size
    assert matrices == pytest.approx(2 * used, rel=1e-4)
    assert train_flops_per_token(model, vocab, 8192) == 3 * sum(parts.values())


def test_parts_that_a_model_lacks_are_zero() -> None:
    model = compose(["model=mixtral_8x7b"]).model
    parts = forward_flops_per_token(model, 32000, 4096)
    lacking = {part for part, flops in parts.items() if not flops}
    assert lacking == {"shared_and_dense", "iter_adaln", "mtp"}
