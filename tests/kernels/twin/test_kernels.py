"""Every Ascend C kernel on the twin over all cases.

Stated exactness: `permute`, `combine` and the rows of `combine_grad` equal their fp32 order bit for
bit; every output is within one ulp of bf16 (four of fp32) of its float64 definition, beside 16
roundings of fp32 relative to the magnitude of its terms, which cancellation can make larger.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from loopmoe_kernels import twin
from loopmoe_kernels.adaln_norm.cases import CASES as ADALN_CASES
from loopmoe_kernels.twin import launches, library
from loopmoe_kernels.twin.__main__ import main
from loopmoe_kernels.twin.launches import Launch
from loopmoe_kernels.weighted_swiglu.cases import CASES as SWIGLU_CASES

TYPES = (torch.bfloat16, torch.float32)
# Tokens, hidden size, top_k, routing, blocks.
ROUTED = [
    (0, 16, 2, "random", 1),
    (1, 1, 1, "random", 48),
    (1, 129, 8, "dropped", 1),
    (5, 7, 2, "one", 3),
    (7, 16, 8, "dropped", 3),
    (33, 129, 2, "dropped", 48),
    (50, 16, 8, "random", 48),
    (9, 129, 1, "none", 3),
    (70, 64, 8, "random", 1),
    (3, 2048, 8, "dropped", 3),
    (49, 2048, 2, "random", 48),
    (2, 7168, 2, "one", 3),
]
# Rows, width, blocks, beside the cases of the operations.
ROWS = [
    (0, 16, 1),
    (1, 1, 48),
    (5, 7, 3),
    (33, 129, 48),
    (130, 16, 1),
    (49, 2048, 48),
    (2, 7168, 3),
]
SMALL_UB = 16384  # cuts rows of 1500 elements into pieces, and most of 700


def check(launch: Launch, blocks: int, ub_bytes: int = 196608) -> twin.Report:
    report = launch.run(cores=blocks, ub_bytes=ub_bytes)
    assert report.ub_peak <= ub_bytes
    assert not any(report.unwritten.values()), report.unwritten
    for name, exact in launch.exact.items():
        assert torch.equal(launch.outputs[name], exact), name
    for name in launch.wanted:
        assert launch.error(name) <= 1.0, (name, launch.error(name))
    return report


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens, hidden, top_k, kind, blocks", ROUTED)
def test_routed_rows(
    tokens: int, hidden: int, top_k: int, kind: str, blocks: int, dtype: torch.dtype
) -> None:
    for make in (launches.permute, launches.combine, launches.combine_grad):
        launch = make(tokens, hidden, top_k, dtype, kind)
        report = check(launch, blocks)
        assert report.blocks == max(1, min(tokens, blocks))
    check(launches.combine(tokens, hidden, top_k, dtype, kind, weighted=False), blocks)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows, width, blocks", ROWS)
def test_rows(rows: int, width: int, blocks: int, dtype: torch.dtype) -> None:
    for name in ("weighted_swiglu", "weighted_swiglu_grad", "adaln_norm", "adaln_norm_grad"):
        check(getattr(launches, name)(rows, width, dtype), blocks)


@pytest.mark.parametrize("name", twin.kernels())
def test_blocks_without_rows_do_nothing(name: str) -> None:
    routed = name in ("permute", "combine", "combine_grad")
    launch = getattr(launches, name)(
        5, 33, *([2] if routed else []), torch.bfloat16, *["one"] * routed
    )
    kernel = twin.build(name)
    _, tiling = twin.plan(kernel, launch.shape, cores=48)
    twin.run(kernel, launch.inputs, launch.outputs, tiling, 48)
    assert all(launch.error(output) <= 1.0 for output in launch.wanted)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [700, 1500])
def test_long_rows_are_cut(width: int, dtype: torch.dtype) -> None:
    made = [
        getattr(launches, name)(5, width, dtype)
        for name in ("weighted_swiglu", "weighted_swiglu_grad", "adaln_norm", "adaln_norm_grad")
    ]
    made += [
        make(5, width, 2, dtype, "dropped") for make in (launches.combine, launches.combine_grad)
    ]
    for launch in made:
        whole = check(launch, 2)
        assert check(launch, 2, SMALL_UB).dma > whole.dma or width == 700
    moved = launches.permute(5, 5000, 2, dtype, "dropped")
    assert check(moved, 2, SMALL_UB).dma > check(moved, 2).dma


@pytest.mark.parametrize("case", SWIGLU_CASES)
def test_cases_of_weighted_swiglu(case: str) -> None:
    rows, width, dtype = SWIGLU_CASES[case]
    for make in (launches.weighted_swiglu, launches.weighted_swiglu_grad):
        check(make(min(rows, 192), width, getattr(torch, dtype)), 48)


@pytest.mark.parametrize("case", ADALN_CASES)
def test_cases_of_adaln_norm(case: str) -> None:
    shape, dtype = ADALN_CASES[case]
    rows = min(math.prod(shape[:-1]), 192)
    scale = 1e3 if case == "large values" else 1.0
    for make in (launches.adaln_norm, launches.adaln_norm_grad):
        check(make(rows, shape[-1], getattr(torch, dtype), scale), 48)


@pytest.mark.parametrize("dtype", TYPES)
def test_gates_at_both_ends_stay_finite(dtype: torch.dtype) -> None:
    for make in (launches.weighted_swiglu, launches.weighted_swiglu_grad):
        launch = make(9, 65, dtype, large=True)  # exp overflows: the sigmoid is 0, not NaN
        check(launch, 3)
        assert all(torch.isfinite(out).all() for out in launch.outputs.values())


def test_a_zero_token_is_finite() -> None:
    launch = launches.adaln_norm(3, 16, torch.bfloat16, scale=0.0)
    check(launch, 1)
    assert torch.isfinite(launch.outputs["out"]).all()


def test_the_largest_plan_fits_for_every_width() -> None:
    """UB is sized by arithmetic: what a kernel takes never exceeds what its plan was given."""
    for width, ub_bytes in itertools.product((1, 63, 64, 65, 1000, 4097), (16384, 65536, 196608)):
        for name in ("weighted_swiglu", "weighted_swiglu_grad", "adaln_norm", "adaln_norm_grad"):
            check(getattr(launches, name)(2, width, torch.float32), 1, ub_bytes)
        for make in (launches.combine, launches.combine_grad):
            check(make(2, width, 2, torch.float32, "random"), 1, ub_bytes)


def test_two_tokens_in_one_row_are_found() -> None:
    launch = launches.permute(4, 64, 2, torch.float32, "random")
    launch.inputs["slots"][3, 1] = launch.inputs["slots"][0, 0]
    with pytest.raises(twin.TwinFault, match="loopmoe_permute: block 3: .*blocks overlap"):
        launch.run()


def test_rows_that_no_slot_names_are_counted() -> None:
    launch = launches.permute(4, 64, 2, torch.float32, "random")
    launch.shape = (*launch.shape[:3], 10)
    launch.outputs["out"] = torch.zeros(10, 64)
    assert launch.run().unwritten == {"out": 2 * 64 * 4}
    assert launch.outputs["out"][8:].isnan().all()  # what the kernel left: the twin's pattern


def test_a_slot_beyond_the_rows_is_found() -> None:
    launch = launches.combine(4, 64, 2, torch.float32, "random")
    launch.inputs["slots"][2, 0] = 8
    with pytest.raises(
        twin.TwinFault, match="loopmoe_combine: block 2: .*out of bounds: reads GM y"
    ):
        launch.run()


def test_too_small_a_buffer_is_refused_by_the_plan() -> None:
    with pytest.raises(twin.TwinError, match="has no tiling in 9000 bytes"):
        launches.combine(4, 64, 2, torch.float32, "random").run(ub_bytes=9000)


def test_all_kernels_are_run_here() -> None:
    assert all(callable(getattr(launches, name)) for name in twin.kernels())
    assert len(twin.kernels()) == 7


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["permute"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "kernel" and row.split()[:2] == ["permute", "48"]


def test_without_a_compiler_the_twin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    library._compiler.cache_clear()
    with pytest.raises(twin.TwinError, match=r"install g\+\+"):
        twin.build("permute")
    monkeypatch.undo()
    library._compiler.cache_clear()
