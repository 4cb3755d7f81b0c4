"""The index of a dispatch and of the re-order after an exchange, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loopmoe_kernels.combine import combine
from loopmoe_kernels.dispatch_index import dispatch_index
from loopmoe_kernels.dispatch_index.cases import CASES, LONG, experts_of
from loopmoe_kernels.expert_major_index import expert_major_index
from loopmoe_kernels.expert_major_index.cases import CASES as SEGMENTS
from loopmoe_kernels.permute import permute
from tests.kernels.native import DEVICE, Run

ALL = {**CASES, **LONG}


def check_dispatch(case: str, implementation: str, device: str, dtype: torch.dtype) -> None:
    kind, tokens, top_k, experts = ALL[case]
    chosen = experts_of(kind, tokens, top_k, experts).to(device, dtype)
    slots, counts = dispatch_index(chosen, experts, implementation=implementation)
    wanted = [-1] * (tokens * top_k)
    flat, place, sizes = chosen.flatten().tolist(), 0, [0] * experts
    for expert in range(experts):
        for pair, named in enumerate(flat):
            if named == expert:
                wanted[pair] = place
                place, sizes[expert] = place + 1, sizes[expert] + 1
    assert slots.dtype == torch.int32 and counts.dtype == torch.int64
    assert slots.shape == chosen.shape and slots.flatten().tolist() == wanted
    assert counts.tolist() == sizes


def check_segments(case: str, implementation: str, device: str, known: bool) -> None:
    table, behind = SEGMENTS[case]
    counts = torch.tensor(table, device=device)
    rows = int(counts.sum()) + (behind if known else 0)
    slots = expert_major_index(counts, rows if known else None, implementation=implementation)
    source = [(e, r, i) for r, row in enumerate(table) for e, n in enumerate(row) for i in range(n)]
    order = {one: place for place, one in enumerate(sorted(source))}
    wanted = [order[one] for one in source] + [-1] * (behind if known else 0)
    assert slots.dtype == torch.int32 and slots.tolist() == wanted


def check_there_and_back(device: str, implementation: str) -> None:
    counts = torch.tensor(SEGMENTS["many"][0], device=device)
    rows, named = int(counts.sum()), dict(implementation=implementation)
    slots = expert_major_index(counts, rows, **named).unsqueeze(1)
    x = torch.randn(rows, 24, device=device)
    moved = permute(x, slots, rows, dropless=True, **named)
    flat = counts.flatten().tolist()
    parts = list(x.split(flat))
    ranks, experts = counts.shape
    by_expert = [parts[r * experts + e] for e in range(experts) for r in range(ranks)]
    assert torch.equal(moved, torch.cat(by_expert))
    assert torch.equal(combine(moved, slots, dropless=True, **named), x)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("case", ALL)
def test_dispatch_in_torch(case: str, dtype: torch.dtype, device: str) -> None:
    check_dispatch(case, "eager", device, dtype)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("case", ALL)
def test_dispatch_in_triton(case: str, dtype: torch.dtype, run_triton: Run) -> None:
    run_triton(check_dispatch, case, "triton", DEVICE, dtype)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", SEGMENTS)
def test_segments_in_torch(case: str, known: bool, device: str) -> None:
    check_segments(case, "eager", device, known)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", SEGMENTS)
def test_segments_in_triton(case: str, known: bool, run_triton: Run) -> None:
    run_triton(check_segments, case, "triton", DEVICE, known)


def test_there_and_back(device: str, run_triton: Run) -> None:
    check_there_and_back(device, "eager")
    run_triton(check_there_and_back, DEVICE, "triton")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dispatch_index(torch.zeros(3, dtype=torch.int32), 2), "not .T, K. integer"),
        (lambda: dispatch_index(torch.zeros(3, 2), 2), "integer"),
        (lambda: dispatch_index(torch.zeros(3, 2, dtype=torch.int32), 0), "0 experts"),
        (lambda: expert_major_index(torch.zeros(3, dtype=torch.int64)), "local experts"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
