"""Another number of iterations than built, drawn or asked for; cut gradients; state injection."""

from __future__ import annotations

from typing import Dict, List

import pytest
import torch

from loopmoe_train.config.schema import LoopConfig
from loopmoe_train.model.build import build_gpt, layer_names, unique_name
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.model.iterations import drawn_iterations, running
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters
from tests.model import float64_reference as reference
from tests.model.test_against_reference import _model_and_weights
from tests.parity.worker import VOCAB, golden, samples

INJECTED = ["model.loop.state_injection=true"]


def _gradients(model, weights, run) -> Dict[str, float]:
    errors = {}
    for name, parameter in model.named_parameters():
        wanted = weights[unique_name(name, layer_names(run))].grad
        if wanted is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        errors[name] = float((parameter.grad.double() - wanted).norm() / wanted.norm())
    return errors


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("overrides", [[], INJECTED], ids=["plain", "injected"])
def test_fewer_iterations_than_built(one_rank: None, count: int, overrides: List[str]) -> None:
    """The built model has 3; the reference is told how many there are."""
    run, model, weights = _model_and_weights(overrides)
    batch = samples(run, 0, 2)
    with running([model], count):
        ours = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
        ours.sum().backward()
    expected = reference.losses(batch.tokens, batch.labels, weights, run.model, count)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)
    expected.sum().backward()
    assert max(_gradients(model, weights, run).values()) < 1e-4
    assert len(model.decoder.layers) == 1 + 3 * 2 + 1
    assert model.decoder.num_layers_per_pipeline_rank == 8


@pytest.mark.parametrize("last", [1, 2])
def test_gradients_through_the_last_iterations_only(one_rank: None, last: int) -> None:
    run, model, weights = _model_and_weights(INJECTED)
    batch = samples(run, 0, 2)
    with running([model], 3, backprop=last):
        ours = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
        ours.sum().backward()
    expected = reference.losses(batch.tokens, batch.labels, weights, run.model, 3, last)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-5, atol=2e-5)
    expected.sum().backward()
    assert max(_gradients(model, weights, run).values()) < 1e-4
    assert not any(layer.cuts_gradient for layer in model.decoder.layers)


def test_injection_starts_at_nothing(one_rank: None) -> None:
    """At step 0 the model with injection is the one without; its matrix gets a gradient."""
    losses = []
    for overrides in ([], INJECTED):
        run = golden(["cluster.devices=1", "parallel=data", *overrides])
        model = build_gpt(run, VOCAB, transformer_config(run))
        batch = samples(run, 0, 2)
        losses.append(model(batch.tokens, batch.position_ids, None, labels=batch.labels))
    assert torch.equal(*losses)
    losses[1].sum().backward()
    (injection,) = (p for n, p in model.named_parameters() if n.endswith("injection.weight"))
    assert not injection.any() and injection.grad.any()
    counts = parameters(run.model, VOCAB)
    assert counts["total"] == sum(p.numel() for p in model.parameters())


def test_what_an_iteration_costs() -> None:
    model = golden(INJECTED).model
    whole, two, one = (
        sum(forward_flops_per_token(model, VOCAB, 24, iterations=n).values()) for n in (3, 2, 1)
    )
    assert whole == sum(forward_flops_per_token(model, VOCAB, 24).values())
    assert whole - two == two - one > 2 * model.hidden_size**2


def test_drawn_iterations() -> None:
    """Every number comes up, about equally often; a function of seed and step."""
    loop = LoopConfig(iterations=5, min_iterations=2)
    drawn = [drawn_iterations(loop, 7, step) for step in range(4000)]
    assert set(drawn) == {2, 3, 4, 5}
    assert all(850 < drawn.count(n) < 1150 for n in (2, 3, 4, 5))
    assert drawn == [drawn_iterations(loop, 7, step) for step in range(4000)]
    assert drawn != [drawn_iterations(loop, 8, step) for step in range(4000)]
    assert drawn_iterations(LoopConfig(iterations=5), 7, 0) == 5
