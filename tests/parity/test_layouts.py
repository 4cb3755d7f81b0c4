"""Every layout trains like one process: losses, gradients, router biases and weights by name.

Exit codes prove nothing here: what goes wrong off megatron-core's main path goes wrong silently.
The rows are in grid.py; here stand those of the default suite, and what must go wrong without a
safeguard. `make parity` runs all rows repeatedly.
"""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch

from tests.parity.grid import (
    MODELS,
    ONE,
    OVERLAP,
    ROWS,
    WHOLE,
    case,
    differences,
    on,
    settings_of,
    train,
)  # fmt: skip

pytestmark = pytest.mark.timeout(1200)  # the fixture trains all of them

DEFAULT_ROWS = {row.name: row for row in ROWS if row.default}
# Balance losses over more than a rank's tokens: what one process and two ranks are given.
_BY_GROUP = ["model.moe.aux_loss=expert_parallel"]
_BY_BATCH = ["model.moe.aux_loss=global_batch", "model.moe.balance_over=visit"]
BALANCE = {
    # The tokens of one pass over the group are those of one larger micro-batch.
    "of the expert-parallel group": (
        [*_BY_GROUP, "micro_batch_size=4"], [*_BY_GROUP, "micro_batch_size=2"]),
    "of the global batch": (_BY_BATCH, [*_BY_BATCH, "micro_batch_size=1", "memory=full"]),
}  # fmt: skip
_ON_CALL = "a reduction that follows backward"
SAFEGUARDS = {
    "loss per token": on("ep2"),
    "experts reduce among their own": on("ep2", WHOLE),
    "one start for all layouts": on("ep2"),
    "bias moves with all ranks": on("ep2"),
    # Of the loop pipeline:
    "the first visit owns the weights": on("pp2", OVERLAP, ONE),
    "a weight belongs to one chunk": on("pp2", WHOLE),
    "one counter for all iterations": on("pp2"),
}


@pytest.fixture(scope="module")
def trained() -> Dict[int, Dict[str, Any]]:
    """All cases of the default suite: a launch with one process and one with two, one after the
    other, since ranks that wait for each other must not wait for a core."""
    models = sorted({row.model for row in DEFAULT_ROWS.values()} | {"golden"})
    one = [case(name, ["parallel=data", *MODELS[name]]) for name in models]
    one += [case(name, ["parallel=data", *settings]) for name, (settings, _) in BALANCE.items()]
    two = [case(row.name, settings_of(row)) for row in DEFAULT_ROWS.values()]
    two += [case(f"without {name}", on_two, name) for name, on_two in SAFEGUARDS.items()]
    two += [case(name, [*on("ep2"), *settings]) for name, (_, settings) in BALANCE.items()]
    two += [case(_ON_CALL, on("pp2", OVERLAP, ONE), _ON_CALL)]
    two += [case("muon alone", [*on(""), *MODELS["muon"]], "owners share their weights")]
    return {1: train(one, 1), 2: train(two, 2)}


@pytest.mark.parametrize("row", DEFAULT_ROWS)
def test_layout(trained: Dict[int, Any], row: str) -> None:
    assert not differences(trained[2][row], trained[1][DEFAULT_ROWS[row].model])


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_without_a_safeguard_it_shows(trained: Dict[int, Any], safeguard: str) -> None:
    assert differences(trained[2][f"without {safeguard}"], trained[1]["golden"])


def test_reduction_after_backward(trained: Dict[int, Any]) -> None:
    """The counterpart of "the first visit owns the weights": only the owner differs."""
    assert not differences(trained[2][_ON_CALL], trained[1]["golden"])


@pytest.mark.parametrize("scope", BALANCE)
def test_balance(trained: Dict[int, Any], scope: str) -> None:
    assert not differences(trained[2][scope], trained[1][scope])
    # The loss does something: the run goes another way than the golden one.
    assert trained[1][scope]["losses"][-1] != trained[1]["golden"]["losses"][-1]


def test_muon_without_the_exchange_shows(trained: Dict[int, Any]) -> None:
    assert differences(trained[2]["muon alone"], trained[1]["muon"])


def test_the_golden_run_moves_everything(trained: Dict[int, Any]) -> None:
    """Nothing above passes because nothing happened: each weight moved, each expert learned."""
    golden = trained[1]["golden"]
    assert golden["losses"][-1] < golden["losses"][0] - 0.05
    still = {name for name, grad in golden["gradients"].items() if not grad.any()}
    assert all(".layers.1." in name or ".layers.2." in name for name in still)
    for name, grad in golden["gradients"].items():
        if ".experts." in name:
            assert grad.flatten(1).any(1).all(), f"{name}: an expert without a token"
    for bias in golden["bias"].values():
        assert bias.any()


def test_bf16_follows_fp32(trained: Dict[int, Any]) -> None:
    """Rounded, but no other run: the losses of mixed precision stay near those of fp32."""
    half = train([case("bf16", [*on("ep2"), "precision=bf16", *MODELS["wider experts"]])], 2)[
        "bf16"
    ]
    wanted = torch.tensor(trained[1]["wider experts"]["losses"])
    torch.testing.assert_close(torch.tensor(half["losses"]), wanted, rtol=5e-3, atol=0)
