"""Muon's update against its definition, matrix by matrix in float64; what it is applied to."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
from torch import Tensor

from loopmoe_train.optim.matrices import by_muon, cost
from loopmoe_train.optim.muon import STACKED, Muon
from tests.optim.test_newton_schulz import by_svd, normal

LR, DECAY, MOMENTUM = 0.03, 0.1, 0.9

# name: shape, matrices in the rows
KINDS: Dict[str, Tuple[Tuple[int, ...], int]] = {
    "a matrix": ((12, 7), 1),
    "gate and up in the rows": ((10, 6), 2),
    "experts": ((3, 5, 9), 1),
    "experts, gate and up": ((3, 8, 2, 5), 1),
}


def matrices(weight: Tensor, stacked: int) -> Iterator[Tensor]:
    """The matrices of a weight, one by one, as views."""
    if weight.ndim == 2:
        rows = weight.shape[0] // stacked
        yield from (weight[i * rows : (i + 1) * rows] for i in range(stacked))
    elif weight.ndim == 3:
        yield from weight
    else:
        yield from (expert[:, half] for expert in weight for half in (0, 1))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_are_the_definition(kind: str, nesterov: bool) -> None:
    shape, stacked = KINDS[kind]
    parameter = torch.nn.Parameter(normal(*shape))
    setattr(parameter, STACKED, stacked)
    optimizer = Muon([parameter], LR, DECAY, MOMENTUM, nesterov)
    wanted, momentum = parameter.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    for step in range(1, 4):
        gradient = normal(*shape).roll(step) * step
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        direction = momentum
        if nesterov:
            direction = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        for weight, toward in zip(matrices(wanted, stacked), matrices(direction, stacked)):
            scale = 0.2 * math.sqrt(max(weight.shape))
            weight.sub_(LR * DECAY * weight + LR * scale * by_svd(toward))
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (4, 48, 32)])
def test_the_update_has_the_rms_of_adam(shape: Tuple[int, ...]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = normal(*shape).float()
    Muon([parameter], lr=1.0).step()
    assert 0.13 < parameter.detach().square().mean().sqrt() < 0.25


def test_cost_counts_every_matrix_by_its_smaller_side() -> None:
    assert cost(torch.empty(6, 10)) == cost(torch.empty(10, 6)) == 6 * 6 * (20 + 6)
    assert cost(torch.empty(4, 6, 2, 10)) == 8 * cost(torch.empty(6, 10))
    fused = torch.empty(12, 10)
    setattr(fused, STACKED, 2)
    assert cost(fused) == 2 * cost(torch.empty(6, 10))


BY_MUON = """
    input_layernorm.condition.weight input_layernorm.modulation.weight
    input_layernorm.iteration_mlp.0.weight input_layernorm.iteration_mlp.2.weight
    pre_mlp_layernorm.condition.weight pre_mlp_layernorm.modulation.weight
    self_attention.linear_proj.weight
    self_attention.linear_q_down_proj.weight self_attention.linear_q_up_proj.weight
    self_attention.linear_kv_down_proj.weight self_attention.linear_kv_up_proj.weight
    mlp.linear_fc1.weight mlp.linear_fc2.weight mlp.router.weight
    mlp.experts.w1_EDGF mlp.experts.w2_EFD
    mlp.shared_experts.linear_fc1.weight mlp.shared_experts.linear_fc2.weight
"""
BY_ADAMW = """
    embedding.word_embeddings.weight output_layer.weight decoder.final_layernorm.weight
    input_layernorm.weight pre_mlp_layernorm.weight
    self_attention.q_layernorm.weight self_attention.kv_layernorm.weight
    self_attn_bda.output_norm.weight mlp_bda.output_norm.weight
    input_layernorm.condition.bias input_layernorm.modulation.bias
    input_layernorm.iteration_mlp.0.bias input_layernorm.iteration_mlp.2.bias
    pre_mlp_layernorm.condition.bias pre_mlp_layernorm.modulation.bias
"""


def test_every_parameter_of_the_golden_model_has_its_optimizer(one_rank: None) -> None:
    from loopmoe_train.model.build import bare
    from loopmoe_train.optim.muon import STACKED
    from loopmoe_train.train.run import build
    from tests.parity.worker import VOCAB, golden

    state = build(golden(["cluster.devices=1", "parallel=data", "optim=muon"]), VOCAB, None)  # type: ignore[arg-type]
    named: Dict[Any, str] = {p: name for name, p in bare(state.model[0]).named_parameters()}
    found: List[set[str]] = []
    for part in state.optimizer.chained_optimizers:
        names = [named.pop(parameter) for parameter in part.get_parameters()]
        found.append({re.sub(r"^decoder\.layers\.\d+\.", "", name) for name in names})
    assert found == [set(BY_MUON.split()), set(BY_ADAMW.split())]
    assert not named, "parameters without an optimizer"
    decayed = [group for group in state.optimizer.param_groups if group["wd_mult"]]
    assert all(p.ndim > 1 for group in decayed for p in group["params"])
    stacked = {
        name for name, p in bare(state.model[0]).named_parameters() if getattr(p, STACKED, 1) == 2
    }
    assert len(stacked) == 4 and all(name.endswith("linear_fc1.weight") for name in stacked)


def test_tables_of_token_vectors_are_not_matrices() -> None:
    table = torch.empty(96, 40)
    assert not by_muon("embedding.word_embeddings.weight", table)
    assert not by_muon("output_layer.weight", table)
    assert by_muon("decoder.layers.3.mlp.linear_fc2.weight", table)
    assert not by_muon("decoder.layers.3.mlp_bda.output_norm.weight", table[0])
