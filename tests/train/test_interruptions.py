"""A run that is stopped, killed, started twice or meets a bad gradient."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, List

import psutil
import pytest

from tests.train.small_run import LOOPMOE, command, loopmoe, one_line, records, train


def _ranks(launcher: int) -> List[psutil.Process]:
    children = psutil.Process(launcher).children(recursive=True)
    return [p for p in children if "loopmoe_train.train" in p.cmdline()]


def _interrupted(
    place: Path, act: Callable[[subprocess.Popen[str]], None], *words: str
) -> subprocess.CompletedProcess[str]:
    """Start a run that would last, act on it after its second step, and wait for its end."""
    name = next(word for word in words if word.startswith("name=")).removeprefix("name=")
    process = subprocess.Popen(
        command(place, "steps=5000", "checkpoint.interval=0", "eval_interval=0",
                "launcher.max_restarts=0", *words),
        cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    metrics = place / "runs" / name / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        ranks = _ranks(process.pid)
        act(process)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert len(gone) == 2 and not alive, "a rank was left behind"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(place: Path, run: Path, number: int) -> None:
    name = f"stopped-{signal.Signals(number).name}"
    done = _interrupted(place, lambda process: process.send_signal(number), f"name={name}")
    assert done.returncode == 0, done.stderr
    folder = place / "runs" / name
    last = max(records(folder, "loss"))
    assert f"stopped by {signal.Signals(number).name} after step {last}" in done.stdout
    assert (folder / "checkpoints" / f"step-{last}" / "manifest.json").exists()
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    if number == signal.SIGTERM:
        again = train(place, f"name={name}", f"steps={last + 2}", "checkpoint.interval=0")
        assert again.returncode == 0, again.stderr
        assert max(records(folder, "loss")) == last + 2


def test_a_run_folder_is_used_by_one_process_at_a_time(place: Path, run: Path) -> None:
    before = (run / "run.yaml").read_bytes()
    bare = [sys.executable, "-m", "loopmoe_train.train"]
    settings = [*command(place, "name=first", "steps=9", "cluster.devices=1", "parallel=data")[2:]]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        for start in (
            [LOOPMOE, "train", *settings],
            [*bare, *settings],
            [*bare, f"{run}/run.yaml"],
        ):
            done = loopmoe(place, *start)
            assert done.returncode == 2, (done.stdout, done.stderr)
            assert f"runs/first is in use by process {holder.pid} or its ranks ->" in one_line(done)
    finally:
        holder.kill()
        holder.wait()
    assert (run / "run.yaml").read_bytes() == before
    done = train(place, "name=first")  # the kernel has freed it
    assert "already trained for 6 steps" in one_line(done)


@pytest.mark.parity
def test_ranks_that_outlive_the_front_door_keep_the_run_folder(place: Path, run: Path) -> None:
    def orphan(process: subprocess.Popen[str]) -> None:
        ranks = _ranks(process.pid)
        for rank in ranks:
            rank.suspend()
        process.kill()
        process.wait()
        done = train(place, "name=orphaned", "steps=9")
        for rank in ranks:
            rank.resume()
        assert done.returncode == 2
        assert f"in use by process {process.pid} or its ranks" in one_line(done)

    _interrupted(place, orphan, "name=orphaned")


HOLD = """
import sys
from pathlib import Path
from loopmoe_train.config.run_file import load
from loopmoe_train.train.claim import claim
claim(load(Path(sys.argv[1]) / "run.yaml"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_rank_ends_the_run_in_one_line(place: Path, run: Path) -> None:
    def kill_second(process: subprocess.Popen[str]) -> None:
        victim = next(p for p in _ranks(process.pid) if p.environ()["RANK"] == "1")
        victim.kill()

    done = _interrupted(place, kill_second, "name=killed")
    assert done.returncode == 4
    assert "rank 1 was ended by SIGKILL" in one_line(done)


def test_a_stopped_rank_is_noticed_from_outside(place: Path, run: Path) -> None:
    def stop_second(process: subprocess.Popen[str]) -> None:
        victim = next(p for p in _ranks(process.pid) if p.environ()["RANK"] == "1")
        victim.suspend()

    done = _interrupted(place, stop_second, "name=silent")
    assert done.returncode == 4
    assert "rank 1 was stopped by SIGSTOP" in one_line(done)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(place: Path, run: Path) -> None:
    done = train(place, "name=diverged", "optim.lr=1e30", "checkpoint.interval=0", "steps=9")
    assert done.returncode == 3
    line = one_line(done)
    assert "the gradient is not finite" in line and "the weights were not touched" in line
    folder = place / "runs" / "diverged"
    reached = max(records(folder, "loss"))
    assert (folder / "checkpoints" / f"step-{reached}" / "manifest.json").exists()
    assert f"step {reached + 1}:" in line
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("step")


@pytest.mark.parity
def test_after_a_bad_step_the_run_continues_as_if_it_had_not_been(place: Path, run: Path) -> None:
    """The last sound state is saved, bitwise: random states and router biases are put back."""
    words = ("name=bad", "checkpoint.interval=0")
    fault = "nan@rank1@step5@step"
    bad = loopmoe(place, *command(place, *words), LOOPMOE_FAULT=fault)
    assert bad.returncode == 3 and "continues from step 4, which is saved" in one_line(bad)
    assert train(place, *words).returncode == 0
    whole, resumed = records(run, "loss"), records(place / "runs" / "bad", "loss")
    assert {n: r["loss"] for n, r in resumed.items()} == {n: r["loss"] for n, r in whole.items()}
