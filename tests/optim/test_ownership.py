"""Every parameter has one owner, the owners share the work, and all get the result."""

from __future__ import annotations

import os
import random
from typing import Any, Dict

import pytest

from loopmoe_train.optim import ownership
from loopmoe_train.optim.ownership import assign
from tests.dist import ranks


def test_the_largest_go_first_to_the_least_loaded() -> None:
    assert assign([1, 5, 4, 3, 2], 2) == [0, 0, 1, 1, 0]
    assert assign([], 3) == []
    assert assign([7, 7], 4) == [0, 1]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_loads_are_even(count: int) -> None:
    costs = [random.Random(index).uniform(1, 30) for index in range(60)]
    loads = [0.0] * count
    for cost, owner in zip(costs, assign(costs, count)):
        loads[owner] += cost
    assert max(loads) - sum(loads) / count < max(costs) / 4


def exchange(bucket: int) -> Dict[str, Any]:
    """On each rank: own parameters hold the rank's values, then all are shared."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=os.environ["LOOPMOE_RENDEZVOUS"],
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
    )  # fmt: skip
    ownership.BUCKET = bucket
    shapes = [(3, 4), (5,), (2, 2, 2), (40, 3), (1,), (6, 5)]
    dtypes = [torch.float32, torch.float32, torch.bfloat16] * 2
    parameters = [
        torch.full(shape, float(dist.get_rank() * 100 + index), dtype=dtype)
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes))
    ]
    # A strided view, as a parameter may be one.
    parameters.append(torch.full((4, 6), float(dist.get_rank() * 100 + 6)).t())
    owned = ownership.Owned(parameters, [p.numel() for p in parameters], dist.group.WORLD)
    owned.share()
    values = [sorted(set(p.reshape(-1).tolist())) for p in parameters]
    return dict(owners=owned.owners, values=values, mine=len(owned.mine))


@pytest.mark.parametrize("bucket", [1, 1 << 24])
def test_all_ranks_get_what_the_owners_hold(bucket: int) -> None:
    first, second = ranks.run("tests.optim.test_ownership:exchange", 2, bucket)
    assert first == {**second, "mine": first["mine"]}
    assert first["mine"] + second["mine"] == 7 and set(first["owners"]) == {0, 1}
    for index, (owner, values) in enumerate(zip(first["owners"], first["values"])):
        assert values == [owner * 100.0 + index]
