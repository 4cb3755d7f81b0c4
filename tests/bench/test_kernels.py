"""`loopmoe bench kernels`: what it counts, that only equals are timed, its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from loopmoe_train.cli import main
from loopmoe_train.device.accelerator import select

SIZE = (48, 32, 3)


@pytest.fixture
def found() -> Dict[str, Any]:
    from loopmoe_train.bench.kernels_calls import problems

    select("cpu")
    return {one.op: one for one in problems(SIZE, torch.bfloat16)}


def test_bytes_are_those_of_what_is_read_and_written(found: Dict[str, Any]) -> None:
    rows = SIZE[0] * SIZE[2]
    for op, problem in found.items():
        if not problem.inputs:
            continue
        out = problem.call(*problem.inputs)
        grads = torch.autograd.grad(out, problem.inputs, torch.ones_like(out))
        read = sum(x.nbytes for x in problem.inputs)
        # beside it: slots, and the numbers of a row that are kept for backward
        assert 0 <= problem.forward - read - out.nbytes <= 8 * rows, op
        kept = 0 if op in ("permute", "reorder") else read
        if op == "adaln":
            # The gradient of beta is the output's own: nobody reads beta or writes it.
            kept -= problem.inputs[2].nbytes
            grads = grads[:2]
        if op == "router_topk":
            kept += 4 * rows  # which were chosen
        wanted = kept + out.nbytes + sum(x.nbytes for x in grads)
        assert 0 <= problem.backward - wanted + 4 * rows <= 8 * rows, op


def test_a_peer_that_computes_something_else_is_not_timed(found: Dict[str, Any]) -> None:
    from loopmoe_train.bench.kernels import Clock, _measure

    problem = found["adaln"]
    problem.peers = {
        "right": problem.definition,
        "wrong": lambda *x: problem.definition(*x) * 1.1,
        "broken": lambda *x: x[0].no_such_thing,
    }
    forward, backward = _measure(problem, SIZE, Clock(2**16), 2, compiled=False)
    for row in (forward, backward):
        assert list(row["sides"]) == ["ours", "definition", "right"]
        assert row["left_out"]["wrong"] == "its result differs from ours"
        assert "no_such_thing" in row["left_out"]["broken"]
    # A gradient alone that is wrong is found too.
    problem.peers = {"wrong": lambda *x: problem.call(x[0].detach() + 0 * x[0], *x[1:])}
    assert "wrong" in _measure(problem, SIZE, Clock(2**16), 1, compiled=False)[0]["left_out"]


def test_it_prints_a_table_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--quick", "--json", str(out), f"runs_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1]
    assert last.startswith("headline: permute=") and "fastest_peer=" in last
    table = json.loads(out.read_text())
    ops = [row["op"] for row in table["rows"]]
    assert len(ops) == 13 and {"combine_backward", "dispatch_index"} < set(ops)
    for row in table["rows"]:
        assert {"ours", "definition"} == set(row["sides"]) and row["left_out"] == {}
        for side in row["sides"].values():
            assert 0 < side["low_ms"] <= side["ms"] <= side["high_ms"]
            rate = row["bytes"] / side["ms"] / 1e6
            assert side["gbytes_per_s"] == pytest.approx(rate)
            assert side["copy_share"] == pytest.approx(rate / row["copy_gbytes_per_s"])
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_goes_nowhere_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["bench", "kernels", "--json", f"{tmp_path}/no/t.json", f"runs_dir={tmp_path}"]
    assert main(words) == 2
    assert "no/t.json" in capsys.readouterr().err
