"""Every dispatcher on four gloo ranks, as two nodes of two or four of one, against one process."""

from __future__ import annotations

import pytest
import torch

from tests.dist import ranks
from tests.moe.exchanges import E, H, K, T, capped, definition, inputs, routings

NODES = "cluster.devices_per_node"
KINDS = ("alltoall", "hierarchical", "deduplicated")
CASES = list(routings(3, 4).items())


def _compare(kind: str, per_node: int, cases: list, dtype: str = "float32", *more: str) -> list:
    settings = [f"model.moe.dispatcher={kind}", f"{NODES}={per_node}", *more]
    found = ranks.run("tests.moe.exchanges:exchange", 4, settings, cases, dtype)
    limit = 1e-5 if dtype == "float32" else 2e-2
    for number, (name, routing) in enumerate(cases):
        x, probs, weights, upstream = inputs(number, 4)
        if dtype != "float32":
            x, upstream = (one.to(getattr(torch, dtype)) for one in (x, upstream))
        wanted = definition(x, routing, probs, weights, upstream)
        for rank in range(4):
            mine = found[rank][name][0]
            exact = [*(one[rank] for one in wanted[:3]), wanted[3]]
            for what, one, other in zip(("y", "dx", "dp", "dW"), mine, exact):
                error = (one.double() - other).norm() / (other.norm() + 1e-9)
                assert error <= limit, f"{kind}, {name}, rank {rank}: {what} is {error:.2g} off"
    return found


@pytest.mark.parametrize("per_node", [2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_values_gradients_and_bytes(kind: str, per_node: int) -> None:
    # With a capacity (not exceeded) tokens may have lost experts: their number is asked for.
    found = _compare(kind, per_node, CASES, "float32", "model.moe.capacity_factor=8")
    nodes, row = 4 // per_node, 4 * H
    for name, routing in CASES:
        crossing = 0
        for rank in range(4):
            map_TNE = routing[rank].view(T, nodes, E // nodes)
            away = [n for n in range(nodes) if n != rank // per_node]
            crossing += {
                "alltoall": int(map_TNE[:, away].sum()),
                "deduplicated": int(map_TNE[:, away].any(-1).sum()),
                "hierarchical": (nodes - 1) * T,
            }[kind]
        # there and back, forward and backward; what comes back left another rank
        counted = sum(found[rank][name][1] for rank in range(4))
        assert counted == 4 * crossing * row, name


@pytest.mark.parametrize("kind", KINDS)
def test_dropless_in_bf16(kind: str) -> None:
    _compare(kind, 2, CASES[:-1], "bfloat16", "precision=bf16")


@pytest.mark.parametrize("kind", KINDS)
def test_padded_to_a_capacity(kind: str) -> None:
    # ceil(T K / E) x 1.0 rows of every rank for every expert
    capacity = -(-T * K // E)
    cases = [
        (name, torch.stack([capped(one, capacity) for one in routing])) for name, routing in CASES
    ]
    _compare(
        kind, 2, cases, "float32",
        "model.moe.capacity_factor=1.0", "model.moe.pad_to_capacity=true",
    )  # fmt: skip


def test_experts_inside_a_node_cross_nothing() -> None:
    found = _compare("alltoall", 4, CASES[:2])
    assert all(one[name][1] == 0 for one in found for name, _ in CASES[:2])
