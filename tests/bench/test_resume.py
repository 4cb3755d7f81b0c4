"""`loopmoe bench resume`: its figures, and kills of a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopmoe_train.bench.resume import spread
from loopmoe_train.cli import main
from tests.launcher.tiny_run import make_place, settings


def test_the_95th_percentile_is_a_value_that_was_measured() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": 3.0}
    assert spread(list(range(1, 101))) == {"median": 50.5, "p95": 95}


def test_only_ranks_of_its_own_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "resume", "launcher=torchrun", f"runs_dir={tmp_path}"]) == 2
    assert "measure with launcher=local" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.chaos
def test_every_kill_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = settings(make_place(tmp_path), "name=killed", "steps=100000")
    assert main(["bench", "resume", "--kills", "3", "--json", f"{tmp_path}/out", *words]) == 0
    table = json.loads((tmp_path / "out").read_text())
    assert len(table["faults"]) == 3
    for fault in table["faults"]:
        assert 0 < fault["detect_s"] < 2 < fault["restart_s"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("headline: detect_s=")
