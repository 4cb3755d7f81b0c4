"""A run goes on: bitwise, from a damaged folder, from an older step, on another layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.train.small_run import NO_DROPOUT, one_line, records, train


def _continued(place: Path, run: Path, name: str) -> Path:
    """A copy of the run that has got as far as step 3."""
    copy = place / "runs" / name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-6")
    return copy


def test_a_continued_run_is_bitwise_the_same(place: Path, run: Path) -> None:
    copy = _continued(place, run, "second")
    shutil.copytree(place / "data", place / "moved")
    # Places, words and workers are not the run.
    done = train(place, "name=second", f"runs_dir={place}/runs", f"data.path={place}/moved",
                 "data.workers=2", "model.name=second")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "continues from" in done.stdout
    first, second = records(run, "loss"), records(copy, "loss")
    assert sorted(second) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        for key in ("loss", "grad_norm", "lr", "tokens"):
            assert second[step][key] == first[step][key], (step, key)
    assert records(copy, "val_loss")[6]["val_loss"] == records(run, "val_loss")[6]["val_loss"]
    assert second[6]["elapsed_s"] > first[3]["elapsed_s"]


def _damage(checkpoint: Path) -> None:
    file = checkpoint / "rank-1.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.mark.parity
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(place: Path, run: Path) -> None:
    copy = place / "runs" / "damaged"
    shutil.copytree(run, copy)
    _damage(copy / "checkpoints" / "step-6")
    done = train(place, "name=damaged", "steps=7", "optim.lr=1e-3", "optim.min_lr=1e-3")
    assert done.returncode == 0, done.stderr
    assert "step-6/rank-1.safetensors: damaged, tensor" in done.stdout
    assert "continues from runs/damaged/checkpoints/step-3" in done.stdout
    lines = records(copy, "loss")
    assert sorted(lines) == [1, 2, 3, 4, 5, 6, 7]
    # The schedule is the one asked for now, not the one in the checkpoint.
    assert lines[7]["lr"] == pytest.approx(1e-3) and lines[3]["lr"] > 1.1e-3
    # Of the two that are kept, none is the damaged one.
    kept = {path.name for path in (copy / "checkpoints").glob("step-*")}
    assert kept == {"step-6", "step-6.retired", "step-7"}


@pytest.mark.parity
def test_a_run_that_goes_back_gives_up_what_came_after(place: Path, run: Path) -> None:
    copy = place / "runs" / "back"
    shutil.copytree(run, copy)
    step_3 = copy / "checkpoints" / "step-3"
    words = ("name=back", "steps=5", "optim.lr=1e-3", "checkpoint.interval=0")
    done = train(place, *words, f"checkpoint.resume={step_3}")
    assert done.returncode == 0, done.stderr
    assert "step-6 is kept as runs/back/checkpoints/step-6.retired" in done.stdout
    assert sorted(records(copy, "loss")) == [1, 2, 3, 4, 5]
    assert (step_3 / "manifest.json").exists()  # step-6 is not one of the two that are kept
    again = train(place, *words[:1], "steps=6", *words[2:])
    assert again.returncode == 0, again.stderr
    assert "continues from runs/back/checkpoints/step-5" in again.stdout


def test_no_whole_checkpoint_is_refused_by_name(place: Path, run: Path) -> None:
    copy = _continued(place, run, "ruined")
    _damage(copy / "checkpoints" / "step-3")
    done = train(place, "name=ruined")
    assert done.returncode == 2
    assert "rank-1.safetensors: damaged, tensor" in one_line(done)


@pytest.mark.parity  # the command; tests/checkpoint/test_reshard.py has every pair of layouts
def test_a_run_continues_on_another_layout(place: Path, run: Path) -> None:
    copy = _continued(place, run, "alone")
    done = train(place, "name=alone", "parallel=data", "cluster.devices=1", *NO_DROPOUT)
    assert done.returncode == 2 and "hidden_dropout" in one_line(done)  # not the same model
    done = train(place, "name=alone", "parallel=data", "cluster.devices=1")
    assert done.returncode == 0, done.stderr
    found, wanted = records(copy, "loss"), records(run, "loss")
    for step in (4, 5, 6):
        assert found[step]["tokens"] == wanted[step]["tokens"]
        # other dropout masks, the same samples
        assert found[step]["loss"] == pytest.approx(wanted[step]["loss"], rel=2e-2)
