"""Tables and pictures of made-up runs, with differences that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

import pytest

from loopmoe_train.cli import study as cli
from loopmoe_train.config.compose import compose_study
from loopmoe_train.errors import Refused
from loopmoe_train.study.plan import ArmRun, plan
from loopmoe_train.study.results import Results, collect, gap
from loopmoe_train.study.table import table
from tests.observe.synthetic import make_run

WORDS = ["cpu", "study.seeds=[1,2,3]", "steps=60"]
LEVELS = {"vanilla": 3.0, "loop": 3.2, "iter_adaln": 3.0, "balanced": 2.0}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> List[ArmRun]:
    """Every run done. make_run's bits are 0.62 times a loss with noise."""
    monkeypatch.chdir(tmp_path)
    planned = plan(*compose_study(WORDS))
    for one in planned:
        looped = 0 if one.arm == "vanilla" else 1
        make_run(one.folder, looped=looped, level=LEVELS[one.arm], seed=one.seed)
    return planned


def cut(one: ArmRun, step: int) -> None:
    """Let it have been stopped after ``step``."""
    metrics = one.folder / "metrics.jsonl"
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
    metrics.write_text("\n".join(lines) + "\n")


def collected(runs: List[ArmRun]) -> Results:
    return collect(compose_study(WORDS)[0], runs)


def test_the_differences_put_in_come_out(runs: List[ArmRun]) -> None:
    results = collected(runs)
    assert results.step == results.steps == 60 and not results.missing
    better = results.against_reference["balanced"]
    assert better.difference.mean == pytest.approx(0.62 * -1.0, abs=0.1)
    assert better.below == 3 and results.adjusted_p["balanced"] < 0.05
    assert results.against_previous["loop"].difference.mean == pytest.approx(0.62 * 0.2, abs=0.1)
    assert gap(results.arm("balanced"), results.arm("vanilla")).shape == (3, 4)
    assert results.arm("vanilla").jaccard is None and 0 < results.arm("loop").jaccard < 1
    assert "balanced is better than vanilla by 0." in table(results)


def test_what_is_not_done_is_left_out_and_named(runs: List[ArmRun]) -> None:
    cut(runs[-1], 50)  # balanced, seed 3
    results = collected(runs)
    assert results.missing == ["balanced-3"] and results.arm("balanced").seeds == [1, 2]
    assert results.against_reference["balanced"].difference.n == 2
    assert "Not done: balanced-3." in table(results)


def test_without_a_finished_run_an_arm_is_compared_where_it_got_to(runs: List[ArmRun]) -> None:
    for one in runs:
        if one.arm == "loop":
            cut(one, 40)
    results = collected(runs)
    assert results.step == 30 and [len(arm.bits) for arm in results.arms] == [3, 3, 3, 3]
    assert "step 30 of 60" in table(results)
    for one in runs:
        if one.arm == "loop":
            (one.folder / "metrics.jsonl").unlink()
    with pytest.raises(Refused, match="no run of loop was validated yet"):
        collected(runs)


def test_what_was_seen_later_than_the_comparison_is_left_out(runs: List[ArmRun]) -> None:
    for one in runs:
        if one.arm == "vanilla":
            cut(one, 40)
    early = collected(runs)
    (run, *_) = early.arm("loop").runs
    assert early.step == 30 and max(probe.step for probe in run.routing) == 30
    assert {s.step[-1] for curves in run.metrics.gates.values() for s in curves.values()} == {30}


def test_runs_on_different_texts_are_not_compared(runs: List[ArmRun]) -> None:
    for one, text in zip(runs, ("a", "a", "b")):
        (one.folder / "summary.json").write_text(json.dumps({"dataset": text}))
    with pytest.raises(Refused, match="were trained on different texts"):
        collected(runs)


def test_compare_writes_everything(runs: List[ArmRun], capsys: pytest.CaptureFixture) -> None:
    assert cli.run([*WORDS, "--compare"]) == 0
    folder = Path("runs/study-cpu")
    record = json.loads((folder / "study.json").read_text())
    assert record["against_reference"]["balanced"]["below"] == 3
    for name in ("study.png", "loop.png"):
        assert (folder / name).stat().st_size > 10_000
    assert (folder / "study.md").read_text() in capsys.readouterr().out
