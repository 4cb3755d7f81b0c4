"""After a crash: real runs that were killed, stopped, hung; and what is told of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.run_file import run_dir, save
from loopmoe_train.doctor import checkpoint, postmortem
from loopmoe_train.errors import LoopMoEError, Refused
from loopmoe_train.launcher import supervise
from tests.doctor.found import assert_finds, assert_passes, one
from tests.launcher.tiny_run import make_place, settings

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))
ROOT = Path(__file__).parents[2]
FAKE = "tests.launcher.fake_rank"
LIMITS = ("launcher.heartbeat_seconds=2", "launcher.hang_seconds=2")


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rank 1 was killed in step 6 and that was not started again. Not to be changed."""
    place = make_place(tmp_path_factory.mktemp("place"))
    words = settings(place, "name=dead", "launcher.max_restarts=0")
    done = subprocess.run(
        [LOOPMOE, "train", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "LOOPMOE_FAULT": "kill@rank1@step6@step"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    return place / "runs" / "dead"


@pytest.fixture
def copy(dead: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(dead, tmp_path / "dead"))


def test_a_killed_rank(dead: Path) -> None:
    host = os.uname().nodename
    checks = postmortem.examine(dead)
    assert_finds(checks, "postmortem/end", "FAIL", "rank 1 was ended by SIGKILL", "rank-1.log")
    who = f"rank 1 on {host}: ended by SIGKILL in step 6"
    assert_finds(checks, "postmortem/suspect", "FAIL", who, f"'oom|killed process' on {host}")
    assert_finds(checks, "postmortem/first-error", "WARN", f"rank 0 on {host} at 20", "logs/")
    assert "it only lost another rank" in one(checks, "postmortem/first-error").reason
    assert f"ranks 0-1 ({host}) in step 6 at 20" in one(checks, "postmortem/spans").reason
    assert "5 steps recorded, last loss" in one(checks, "postmortem/metrics").reason
    whole = one(checks, "postmortem/checkpoint").reason
    assert "step-4 is whole: step 4; 1 later steps are made again" in whole


def test_a_corrupted_checkpoint(copy: Path) -> None:
    run = compose([*settings(copy), "name=dead", f"runs_dir={copy.parent}"])
    assert_passes(checkpoint.checkpoint(run), "run/checkpoint")
    newest, older = copy / "checkpoints" / "step-4", copy / "checkpoints" / "step-2"
    flip(newest)
    damaged = list(checkpoint.checkpoint(run))
    assert [check.status for check in damaged] == ["WARN", "PASS"]
    assert str(newest) in damaged[0].reason and "the whole one below" in damaged[0].fix
    assert f"{older}: step 2" in damaged[1].reason
    flip(older)
    assert_finds(checkpoint.checkpoint(run), "run/checkpoint", "FAIL", "step-2", "rm -r")
    found = postmortem.checkpoint(copy)
    assert_finds(found, "postmortem/checkpoint", "FAIL", "none of 2 is whole", "from a copy")
    shutil.rmtree(copy / "checkpoints")
    found = postmortem.checkpoint(copy)
    assert_finds(found, "postmortem/checkpoint", "WARN", "there is none", "checkpoint.interval=N")


def flip(folder: Path) -> None:
    """Change one bit of a tensor file."""
    file = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_of_other_settings(copy: Path, dead: Path) -> None:
    words = [*settings(dead.parents[1]), "name=dead", f"runs_dir={copy.parent}"]
    assert_passes(checkpoint.checkpoint(compose(words)), "run/checkpoint")
    other = compose([*words, "seed=99"])
    found = checkpoint.checkpoint(other)
    assert_finds(
        found,
        "run/checkpoint",
        "FAIL",
        "seed was 1234 when it was saved, is 99 now",
        "name=ANOTHER",
    )


def test_a_loss_that_is_no_number(copy: Path) -> None:
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 6, "loss": None, "grad_norm": None}) + "\n")
    found = postmortem.metrics(copy)
    assert_finds(found, "postmortem/metrics", "FAIL", "step 6", "lower optim.lr")


@pytest.mark.parametrize(
    ("line", "means", "fix"),
    [
        ("[ERROR] EI0006: Getting socket times out. Reason: ...", "could not connect",
         "HCCL_CONNECT_TIMEOUT=900"),
        ("RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB", "memory is full",
         "loopmoe plan"),
        ("OSError: [Errno 28] No space left on device", "a disk is full", "df -h"),
        ("E19999: Inner Error!", "nothing", ""),
        ("EZ9903: rtKernelLaunch failed", "EZ9903 of Ascend's libraries", "look EZ9903 up"),
    ],
)  # fmt: skip
def test_a_message_in_a_log(copy: Path, line: str, means: str, fix: str) -> None:
    assert_passes(postmortem.examine(copy), "postmortem/logs")
    with open(copy / "logs" / "rank-1.log", "a") as file:
        file.write(f"{line}\n")
    found = postmortem.examine(copy)
    if not fix:
        assert_passes(found, "postmortem/logs")
        return
    assert_finds(found, "postmortem/logs", "WARN", "rank-1.log: ", fix)
    assert means in one(found, "postmortem/logs").reason


def fails(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, *words: str) -> Path:
    """Launch two fake ranks, of which rank 1 goes wrong in step 4; the run folder."""
    monkeypatch.setattr(supervise, "TRAIN", FAKE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FAKE_FAULT", fault)
    run = compose([f"runs_dir={folder}", "name=fake", *LIMITS, *words])
    save(run, run_dir(run) / "run.yaml")
    if "launcher.max_restarts=0" in words:
        with pytest.raises(LoopMoEError):
            supervise.launch(run, module=FAKE)
    else:
        supervise.launch(run, module=FAKE)
    return folder / "fake"


SUSPECTS: Dict[str, List[str]] = {
    "stop": ["ended by SIGSTOP in step 4", "who stopped it"],
    "hang": ["in step 4", "it stood at _dig_a_hole (fake_rank.py:"],
    "exit": ["in step 4", "rank-1.log"],
    "raise": ["in step 4", "the traceback is in logs/"],
}


@pytest.mark.parametrize("fault", SUSPECTS)
def test_who_is_suspected(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fails(tmp_path, monkeypatch, fault, "launcher.max_restarts=0")
    checks = postmortem.examine(folder)
    reason, fix = SUSPECTS[fault]
    check = one(checks, "postmortem/suspect")
    assert check.reason.startswith(f"rank 1 on {os.uname().nodename}: ")
    assert_finds(checks, "postmortem/suspect", "FAIL", reason, fix)
    first = one(checks, "postmortem/first-error")
    told = "ValueError: seven is not a token" in first.reason
    assert told == (fault == "raise") and first.status == ("FAIL" if told else "PASS")


def test_a_fault_that_was_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fails(tmp_path, monkeypatch, "kill")
    checks = postmortem.examine(folder)
    assert_passes(checks, "postmortem/end")
    assert "after 2 attempts" in one(checks, "postmortem/end").reason
    assert_finds(checks, "postmortem/suspect", "WARN", "rank 1 on ", "oom")
    clean = fails(tmp_path / "clean", monkeypatch, "none")
    assert all(
        check.status == "PASS" for check in postmortem.examine(clean)
        if check.name in ("postmortem/end", "postmortem/spans", "postmortem/suspect")
    )  # fmt: skip


def test_a_launcher_that_was_killed(tmp_path: Path) -> None:
    """Its ranks die with it, and nobody is left to write how."""
    run = compose([f"runs_dir={tmp_path}", "name=fake"])
    save(run, run_dir(run) / "run.yaml")
    code = (
        "from pathlib import Path; from loopmoe_train.config.run_file import load\n"
        "from loopmoe_train.launcher import supervise\n"
        f"supervise.TRAIN = {FAKE!r}\n"
        f"supervise.launch(load(Path({str(tmp_path / 'fake' / 'run.yaml')!r})), {FAKE!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_FAULT": "hang-always"}
    front = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
    report = tmp_path / "fake" / "logs" / "attempt-0.json"
    deadline = time.monotonic() + 60
    try:
        while not any(span.step == 3 for span in _spans(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.05)
        running = postmortem.examine(tmp_path / "fake")
        assert "still runs it" in one(running, "postmortem/end").reason
    finally:
        front.send_signal(signal.SIGKILL)
        front.wait()
    checks = postmortem.examine(tmp_path / "fake")
    told: Dict[str, Any] = json.loads(report.read_text())
    killed = f"the launcher (process {told['pid']} on {told['host']}) was killed"
    assert_finds(checks, "postmortem/end", "FAIL", killed, "dmesg")
    assert_finds(checks, "postmortem/suspect", "WARN", "the launcher itself", "dmesg")
    assert "rank 1 (" in one(checks, "postmortem/spans").reason
    shutil.rmtree(told["scratch"])


def _spans(folder: Path) -> List[Any]:
    from loopmoe_train.doctor.attempts import read

    return [span for attempt in read(folder / "fake") for span in attempt.spans()]


def test_ranks_of_several_nodes(tmp_path: Path) -> None:
    """Every node reports on its own ranks; the guilty one is looked for on all of them."""
    cause = {"cause": "rank 2 was ended by SIGKILL -> see its log", "rank": 2, "signal": "SIGKILL"}
    for node, ranks in ((0, (0, 1)), (1, (2, 3))):
        seen = [
            {"rank": rank, "step": 6 if rank == 2 else 7, "phase": "step", "phase_since": 1e9}
            for rank in ranks
        ]
        told = [
            {"rank": rank, "what": "lost", "fix": "", "lost_peer": True, "time": 2e9 + rank}
            for rank in ranks if rank != 2
        ]  # fmt: skip
        report = {"host": f"node-{node}", "outcome": "failed", "ranks": seen, "failures": told}
        logs = tmp_path / "logs" / f"node-{node}"
        logs.mkdir(parents=True)
        (logs / "attempt-0.json").write_text(json.dumps(report | cause))
    save(compose([]), tmp_path / "run.yaml")
    checks = postmortem.examine(tmp_path)
    who = "rank 2 on node-1: ended by SIGKILL in step 7"
    assert_finds(checks, "postmortem/suspect", "FAIL", who, "on node-1")
    assert_finds(checks, "postmortem/spans", "WARN", "behind: rank 2", "look at node-1")
    assert "ranks 0-1, 3 (node-0, node-1) in step 8" in one(checks, "postmortem/spans").reason
    assert "rank 0 on node-0" in one(checks, "postmortem/first-error").reason


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no run folder"):
        postmortem.examine(tmp_path)
