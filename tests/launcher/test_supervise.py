"""Supervision with ranks that have no model: what is noticed, how fast, and what is done then."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import psutil
import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.run_file import run_dir, save
from loopmoe_train.errors import LoopMoEError, RankLost, Refused, RunFailed, TrainingStopped
from loopmoe_train.launcher import supervise
from loopmoe_train.launcher.cause import Fault
from loopmoe_train.launcher.supervise import History, launch
from loopmoe_train.launcher.watch import hang_limit, waits
from loopmoe_train.train.heartbeat import Sign
from tests.launcher.tiny_run import attempts

ROOT = Path(__file__).parents[2]
FAKE = "tests.launcher.fake_rank"


class Job:
    """Launches fake ranks in one run folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.set = monkeypatch.setenv
        monkeypatch.setattr(supervise, "TRAIN", FAKE)
        self.set("PYTHONPATH", str(ROOT))

    def run(self, fault: str, *words: str) -> List[Dict[str, Any]]:
        """Launch; the reports of its attempts."""
        self.set("FAKE_FAULT", fault)
        run = compose([f"runs_dir={self.folder}", "name=fake", *words])
        save(run, run_dir(run) / "run.yaml")
        launch(run, module=FAKE)
        return self.reports()

    def fails(self, fault: str, *words: str) -> LoopMoEError:
        """Launch, and the failure."""
        with pytest.raises(LoopMoEError) as caught:
            self.run(fault, *words)
        assert "\n" not in str(caught.value)
        return caught.value

    def reports(self) -> List[Dict[str, Any]]:
        return attempts(self.folder / "fake")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


# What rank 1 does in step 4, what is said of it, and within how many seconds it is noticed.
NOTICED = {
    "kill": ("rank 1 was ended by SIGKILL (out of memory?) in step 4", 2.0),
    "exit": ("rank 1 left with exit code 0 in step 4, before the run was over", 2.0),
    "stop": ("rank 1 was stopped by SIGSTOP in step 4", 6.0),
    "hang": ("rank 1 hangs in step 4", 6.0),
    "raise": ("rank 1: ValueError: seven is not a token", 2.0),
    "code": ("rank 1 ended with exit code 7 and said nothing", 2.0),
}
LIMITS = ("launcher.heartbeat_seconds=1", "launcher.hang_seconds=1")


@pytest.mark.parametrize("fault", NOTICED)
def test_a_fault_is_noticed_named_and_survived(
    job: Job, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    said, within_s = NOTICED[fault]
    first, second = job.run(fault, *LIMITS)
    assert first["outcome"] == "restarted" and second["outcome"] == "ended"
    assert said in first["cause"]
    assert (first["rank"], first["step"], first["phase"]) == (1, 3, "step")
    assert 0 <= first["detection_s"] < within_s
    assert first["fault_to_next_step_s"] > first["detection_s"]
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0] and "restart 1 of 3" in lines[0]
    stacks = job.folder / "fake" / "logs" / "stacks-rank-1.txt"
    assert stacks.exists() == (fault == "hang")
    if fault == "hang":
        assert "_dig_a_hole" in stacks.read_text()


@pytest.mark.parametrize("fault", ["kill", "stop", "hang", "raise"])
def test_without_restarts_it_ends_in_one_line(job: Job, fault: str) -> None:
    error = job.fails(fault, "launcher.max_restarts=0", *LIMITS)
    assert NOTICED[fault][0] in str(error)
    assert error.exit_code == (1 if fault == "raise" else 4)
    (report,) = job.reports()
    assert report["outcome"] == "failed" and report["exit_code"] == error.exit_code
    assert not [p for p in psutil.process_iter(["cmdline"]) if FAKE in (p.info["cmdline"] or [])]


def test_the_same_step_twice_stops_the_job(job: Job) -> None:
    error = job.fails("kill-always", "launcher.max_restarts=9")
    assert error.exit_code == 4 and "twice in a row in step 4: suspect data or step" in str(error)
    assert len(job.reports()) == 2


def test_a_rank_that_computes_without_beating_is_left_alone(job: Job) -> None:
    started = time.process_time()
    sum(range(10_000_000))
    for_seconds = 2.5 / (time.process_time() - started)
    job.set("FAKE_LOCK", str(for_seconds * 10_000_000))
    (report,) = job.run("lock", "launcher.heartbeat_seconds=1")
    assert report["outcome"] == "ended"


def test_a_request_to_stop_is_passed_on_and_not_retried(job: Job) -> None:
    def ask() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.05)
            ranks = [p for p in psutil.Process().children() if FAKE in p.cmdline()]
            if len(ranks) == 2 and (job.folder / "fake" / "logs" / "rank-1.log").exists():
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    # A fake rank has no handler: SIGTERM ends it.
    error = job.fails("none")
    asking.join()
    assert "SIGTERM" in str(error) and len(job.reports()) == 1


def _sign(step: int, phase: str = "step", here: int = 2, longest: float = 0.5) -> Sign:
    return Sign(1.0, 1, step, here, 1.0, 1.0, longest, phase, False)


def _lost(step: int, phase: str = "step") -> Fault:
    return Fault(RankLost("rank 1 was lost", "look"), 1, _sign(step, phase))


def test_restarts_count_only_while_nothing_is_gained() -> None:
    history = History(limit=2)
    reached = [5, 9, 8, 20, 19]
    assert [history.add(_lost(step), [], 2) for step in reached] == [None] * len(reached)
    assert history.in_a_row == 2
    refusal = history.add(_lost(18), [], 2)
    assert refusal is not None and "2 restarts got no further" in str(refusal)


@pytest.mark.parametrize(
    "error",
    [Refused("no"), TrainingStopped("not finite"), RunFailed("failed before its first step")],
)
def test_some_failures_are_never_retried(error: LoopMoEError) -> None:
    assert History(limit=3).add(Fault(error, 0, _sign(0)), [], 0) is error


@pytest.mark.parametrize(
    "asked, ended_by, steps_here, exit_code, said",
    [
        ([2], "SIGINT", 0, 130, "interrupted by SIGINT -> it had not made a step yet"),
        ([15], "SIGTERM", 0, 143, "interrupted by SIGTERM -> it had not made a step yet"),
        ([2, 2], "SIGKILL", 3, 1, "killed at the second SIGINT in step 5"),
        ([2], "SIGKILL", 3, 4, "rank 1 was lost"),
        ([2], "SIGINT", 3, 4, "rank 1 was lost"),
    ],
)
def test_what_was_asked_for_is_not_a_loss(
    asked: List[int], ended_by: str, steps_here: int, exit_code: int, said: str
) -> None:
    fault = _lost(4)
    fault.signal = ended_by
    error = History(limit=3).add(fault, asked, steps_here)
    assert error is not None and error.exit_code == exit_code and said in str(error)


def test_an_error_after_a_step_is_retried_once() -> None:
    history = History(limit=3)
    fault = Fault(RunFailed("index out of range"), 0, _sign(4))
    assert history.add(fault, [], 4) is None
    assert "suspect data or step" in str(history.add(fault, [], 4))


def test_hang_limits() -> None:
    limits = compose([]).launcher
    assert hang_limit(_sign(5, longest=20.0), limits) == 200.0
    assert hang_limit(_sign(5, longest=0.1), limits) == 60.0
    assert hang_limit(_sign(5, here=1), limits) is None  # the first step may compile
    assert hang_limit(_sign(5, "evaluate"), limits) is None
    own = compose(["launcher.hang_seconds=7"]).launcher
    assert hang_limit(_sign(5, "evaluate"), own) == 7.0
    assert hang_limit(_sign(5, here=0), own) is None


def test_who_waits_is_told_from_the_stack() -> None:
    beat = 'Thread 0x01 (most recent call first):\n  File "heartbeat.py", line 9 in _beat'
    stuck = 'Thread 0x02:\n  File "a.py", line 3 in step\n  File "m.py", line 1 in <module>'
    inside = stuck.replace("a.py", "torch/distributed/distributed_c10d.py")
    assert not waits(f"{beat}\n\n{stuck}") and waits(f"{beat}\n\n{inside}")


def test_a_restart_takes_only_what_the_run_itself_saved(tmp_path: Path) -> None:
    run = compose([f"runs_dir={tmp_path}", "name=r", "checkpoint.resume=none"])
    old, new = (tmp_path / "r/checkpoints" / f"step-{n}" / "manifest.json" for n in (100, 2))
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    now = time.time()
    os.utime(old, (now - 60, now - 60))
    assert supervise._resume(run, now - 30) == str(new.parent)
    new.unlink()
    assert supervise._resume(run, now - 30) == "none"
    run.checkpoint.resume = "auto"
    assert supervise._resume(run, now - 30) == "auto"
