"""`loopmoe bench moe` end to end on a small model, and its formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loopmoe_train.bench.exchange import _routing, copies, leaving
from loopmoe_train.cli import main


def test_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bench", "moe", "--json", "moe.json", "steps=2", "sequence_length=32",
             "model.hidden_size=32", "model.moe.num_experts=16"]  # fmt: skip
    assert main(words) == 0
    table = json.loads((tmp_path / "moe.json").read_text())
    sides = table["layer"]["sides"]
    assert len(sides) == 3 and all(0 < side["seconds"] for side in sides.values())
    assert all(side["error"] < 1e-5 for side in sides.values())  # of the same weights
    rows = table["exchange"]["rows"]
    assert [row["nodes"] for row in rows] == [2] * 3 + [4] * 3 + [8] * 3
    for row in rows:
        assert row["sent"] == pytest.approx(row["formula"], rel=0.1)
        assert row["nodes"] == 8 or (row["counted"] == row["sent"] and row["seconds"] > 0)
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("headline: over_sequential=") and last.endswith("miscounted=0")


def test_the_formula_is_what_a_large_routing_has() -> None:
    routing = _routing(0, 4000, 256, 8)
    for nodes in (2, 4, 8):
        for kind in ("alltoall", "hierarchical", "deduplicated"):
            found = leaving(kind, routing, nodes, 1) / len(routing)
            assert found == pytest.approx(copies(kind, nodes, 256, 8), rel=0.02)
    assert torch.equal(routing.sum(1), torch.full((4000,), 8))
