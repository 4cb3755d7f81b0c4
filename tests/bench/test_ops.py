"""`loopmoe bench ops`: what it calls has the size that it says, and its table is used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loopmoe_train.bench.ops_grid import PASSES, grid_of, size_of
from loopmoe_train.cli import main
from loopmoe_train.config.compose import compose
from loopmoe_train.sim.machine import machine_of
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.table import LAYOUTS, NAMES, Size, load, work
from loopmoe_train.sim.workload import workload_of

ODD = {"matmul": (48, 32, 16), "grouped": (3, 40, 32, 16), "attention": (80, 3, 24, 16),
       "vector": (2**16,)}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_call_makes_what_its_size_says(name: str) -> None:
    import torch

    from loopmoe_train.bench.ops_calls import Pool, call_of
    from loopmoe_train.device.accelerator import select

    select("cpu")
    kind, _, layout = name.partition("/")
    problem: Size = ODD[kind]
    size = size_of(kind, layout, problem, 4)
    pool = Pool([(kind, layout, problem)], torch.float32)
    made = call_of(kind, layout, problem, pool)()
    operands = pool.operands(kind, layout, problem)
    if kind in ("matmul", "grouped"):
        assert work(kind, layout, size) == work(kind, "forward", problem)
        assert made.numel() == math.prod(size[:-1])  # the last one is summed over
    elif kind == "attention":
        sequence, heads, _, v = size
        grads = list(made) if layout == "backward" else [made]
        shapes = [one.shape for one in (operands[:3] if layout == "backward" else operands[3:])]
        assert [one.shape for one in grads] == shapes
        assert operands[3].shape == (sequence, 1, heads * v)
    else:
        row = 4 * made[0].numel() if isinstance(made, tuple) else 4 * made.numel()
        row /= 2 if layout == "activation_backward" else 1  # gate and up
        assert size[0] == PASSES[layout] * row == pytest.approx(problem[0], rel=0.1)


@pytest.mark.parametrize("device", ["cpu", "another"])
def test_the_grids_have_every_kind_within_their_limit(device: str) -> None:
    grid = grid_of(device, quick=False)
    for kind, problems in grid.problems().items():
        assert len(problems) >= 5 and kind in LAYOUTS
        for layout in LAYOUTS[kind]:
            sizes = [size_of(kind, layout, problem, 2) for problem in problems]
            assert len(set(sizes)) == len(sizes)
            if kind != "vector":
                assert all(work(kind, layout, size) <= 2.5 * grid.most for size in sizes)


def test_a_quick_one_makes_a_table_that_the_simulator_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    words = ["--quick", "--json", str(out), f"runs_dir={tmp_path}"]
    assert main(["bench", "ops", *words]) == 0
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1]
    assert last.startswith("headline: matmul_tflops=") and last.endswith("points=21")
    assert "64 x 64 x 128" in printed and "grouped in TFLOP/s" in printed
    table = load(str(out))
    assert set(table.points) == set(NAMES) and table.header.precision == "fp32"
    assert "torch" in table.header.software and table.header.threads == 1
    for name, found in table.points.items():
        kind, _, layout = name.partition("/")
        for size, point in found.items():
            rate = work(kind, layout, size) / point.seconds
            assert 1e6 < rate < 1e13 and point.spread >= 0, (name, size)
    run = compose([f"cluster.efficiency.table={out}"])
    machine = machine_of(run.cluster)
    assert machine.peak["fp32"] == table.best("matmul")
    found_in = estimate(workload_of(run), machine).coverage
    assert found_in is not None and found_in.share > 0.0


def test_the_table_goes_nowhere_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "ops", "--json", f"{tmp_path}/no/t.json", f"runs_dir={tmp_path}"]) == 2
    assert "no/t.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
