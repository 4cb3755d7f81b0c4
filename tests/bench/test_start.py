"""`loopmoe bench start`: every way is measured by what the run itself says, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

import pytest

from loopmoe_train.bench import start
from loopmoe_train.cli import main
from loopmoe_train.errors import Refused, RunFailed


def test_ways_take_turns_and_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: List[str] = []

    def fake(words: List[str], more: List[str]) -> float:
        started.append(more[0] + str(len(more)))
        return float(len(started))

    monkeypatch.setattr(start, "_start", fake)
    table = start.measure(["launcher.hosts=[a,b]", "cluster.devices_per_node=1"], 2)
    first = ["launcher=local1", "launcher=torchrun1", "launcher=mpirun1", "launcher=torchrun4",
             "launcher=mpirun2"]  # fmt: skip
    assert started == ["launcher=local1", *first, *first]
    assert table["first_step_s"]["local"]["all"] == [2.0, 7.0]
    start.show(table)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("headline: local_s=4.50 torchrun_s=5.50 mpirun_s=6.50 torchrun_2_nodes")
    assert "mpirun_hosts_s=8.50" in line


def test_a_start_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match="launcher=local: loopmoe train: .*nowhere"):
        start._start([*start._SETTINGS, "data.source=nowhere"], ["launcher=local"])
    with pytest.raises(Refused, match="steps=0"):
        start.measure(["steps=0"], 1)
    assert main(["bench", "start", "--rounds", "none"]) == 2


@pytest.mark.parity
def test_real_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tokenizer.vocab_size=420", "sequence_length=32"]
    assert main(["bench", "start", "--rounds", "1", "--json", "out.json", *words]) == 0
    table = json.loads((tmp_path / "out.json").read_text())["first_step_s"]
    assert set(table) == {"local", "torchrun", "mpirun", "torchrun 2 nodes"}
    assert all(1 < row["median"] < 120 for row in table.values())
