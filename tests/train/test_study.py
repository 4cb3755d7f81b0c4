"""`loopmoe study` and `loopmoe train -m` as a user starts them, and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.small_run import LOOPMOE, SMALL, loopmoe, one_line

STUDY = [LOOPMOE, "study", "smoke", "data.path=data", *SMALL[1:], "study.name=pair"]


def test_a_study_compares_and_continues_with_another_seed(place: Path, run: Path) -> None:
    words = [*STUDY, f"data.source={place}/texts"]
    done = loopmoe(place, *words, "study.seeds=[1]")
    assert done.returncode == 0, done.stderr
    assert "2 runs (2 arms x 1 seeds), 0 done, 2 at a time" in done.stdout
    assert "loop: one pair" in done.stdout
    folder = place / "runs" / "pair"
    first = (folder / "loop-1" / "metrics.jsonl").read_bytes()
    done = loopmoe(place, *words, "study.seeds=[1,2]")
    assert done.returncode == 0, done.stderr
    assert "2 done" in done.stdout and (folder / "loop-1" / "metrics.jsonl").read_bytes() == first
    record = json.loads((folder / "study.json").read_text())
    assert record["missing"] == [] and record["step"] == 6
    assert record["against_reference"]["loop"]["difference"]["n"] == 2
    losses = {
        name: json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("loop-1", "loop-2")
    }
    assert losses["loop-1"] != losses["loop-2"]
    assert all((folder / name).stat().st_size > 10_000 for name in ("study.png", "loop.png"))


@pytest.mark.parity
def test_a_run_that_fails_is_named_and_the_others_go_on(place: Path, run: Path) -> None:
    words = [*STUDY, f"data.source={place}/texts", "study.seeds=[1]", "study.name=broken"]
    folder = place / "runs" / "broken"
    (folder / "loop-1").mkdir(parents=True)
    (folder / "loop-1" / "checkpoints").write_text("in the way")
    done = loopmoe(place, *words)
    assert done.returncode == 1
    assert "1 of 2 runs failed (loop-1); loop-1 said: loopmoe train:" in one_line(done)
    assert "no run of loop was validated yet" in done.stdout
    assert (folder / "vanilla-1" / "summary.json").is_file()


@pytest.mark.parity
def test_a_sweep_trains_every_combination_and_compares(place: Path, run: Path) -> None:
    words = [LOOPMOE, "train", "-m", *SMALL, f"data.source={place}/texts", "data.path=data"]
    words += ["name=rates", "optim.lr=1e-3,4e-3"]
    done = loopmoe(place, *words)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (place / "runs" / "rates").iterdir() if path.is_dir()} == {
        "lr-0.001", "lr-0.004"
    }  # fmt: skip
    assert (place / "runs" / "rates" / "report.html").is_file()
    again = loopmoe(place, *words)
    assert again.returncode == 0 and "2 runs, 2 done" in again.stdout
