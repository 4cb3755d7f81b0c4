"""Every dispatcher on four gloo ranks, as two nodes of two or four of one, against one process."""

from __future__ import annotations

from typing import Any, List, Sequence, Tuple

import pytest
import torch
from torch import Tensor

from tests.dist import ranks
from tests.moe.exchanges import E, H, K, T, capped, definition, inputs, routings

KINDS = ["alltoall", "hierarchical", "deduplicated"]
Cases = List[Tuple[str, Tensor]]
CASES: Cases = list(routings(3, 4).items())


def _compare(
    per_node: int, cases: Cases, dtype: str, *more: str, kinds: Sequence[str] = KINDS
) -> Any:
    """Exchange with every dispatcher in one launch; what each rank found."""
    settings = [f"cluster.devices_per_node={per_node}", *more]
    found = ranks.run("tests.moe.exchanges:exchange", 4, list(kinds), settings, cases, dtype)
    limit = 1e-5 if dtype == "float32" else 2e-2
    for number, (name, routing) in enumerate(cases):
        x, probs, weights, upstream = inputs(number, 4)
        if dtype != "float32":
            x, upstream = (one.to(getattr(torch, dtype)) for one in (x, upstream))
        wanted = definition(x, routing, probs, weights, upstream)
        for kind in kinds:
            for rank in range(4):
                mine = found[rank][kind, name][0]
                exact = [*(one[rank] for one in wanted[:3]), wanted[3]]
                for what, one, other in zip(("y", "dx", "dp", "dW"), mine, exact):
                    error = (one.double() - other).norm() / (other.norm() + 1e-9)
                    assert error <= limit, f"{kind}, {name}, rank {rank}: {what} {error:.2g} off"
    return found


@pytest.mark.parametrize("per_node", [2, 1])
def test_values_gradients_and_bytes(per_node: int) -> None:
    # With a capacity (not exceeded) tokens may have lost experts: their number is asked for.
    found = _compare(per_node, CASES, "float32", "model.moe.capacity_factor=8")
    for name, routing in CASES:
        for kind in KINDS:
            sent = [_leaving(kind, routing[rank], 4 // per_node, rank) for rank in range(4)]
            assert [found[rank][kind, name][1] for rank in range(4)] == sent, (kind, name)
            # What comes back left another rank; then both ways again in backward.
            assert sum(found[rank][kind, name][2] for rank in range(4)) == 3 * sum(sent)


def _leaving(kind: str, routing_TE: Tensor, nodes: int, rank: int) -> int:
    """Bytes that a rank sends to other nodes on the way to the experts."""
    map_TNE = routing_TE.view(T, nodes, E // nodes)
    away = [n for n in range(nodes) if n != rank * nodes // 4]
    rows = {
        "alltoall": int(map_TNE[:, away].sum()),
        "deduplicated": int(map_TNE[:, away].any(-1).sum()),
        "hierarchical": len(away) * T,
    }[kind]
    return rows * H * 4


def test_dropless_in_bf16() -> None:
    _compare(2, CASES[:-1], "bfloat16", "precision=bf16")


def test_padded_to_a_capacity() -> None:
    # ceil(T K / E) x 1.0 rows of every rank for every expert
    capacity = -(-T * K // E)
    cases = [
        (name, torch.stack([capped(one, capacity) for one in routing])) for name, routing in CASES
    ]
    pads = ["model.moe.capacity_factor=1.0", "model.moe.pad_to_capacity=true"]
    found = _compare(2, cases, "float32", *pads)
    for name, _ in cases:
        for rank in range(4):
            for kind in KINDS:
                assert found[rank][kind, name][3] == E // 4 * 4 * capacity
            # half of the experts are on the other node
            assert found[rank]["alltoall", name][1] == E // 2 * capacity * H * 4


def test_experts_inside_a_node_cross_nothing() -> None:
    found = _compare(4, CASES[:2], "float32", kinds=["alltoall"])
    assert all(not any(one["alltoall", name][1:3]) for one in found for name, _ in CASES[:2])


def test_all_ranks_know_whether_any_of_them_spans_nodes() -> None:
    """A collective of the whole job may depend on that, not on the rank's own group."""
    found = ranks.run("tests.moe.exchanges:uneven", 4)
    assert [nodes for nodes, _ in found] == [1, 1, 2, 2]
    assert all(spanning for _, spanning in found)
