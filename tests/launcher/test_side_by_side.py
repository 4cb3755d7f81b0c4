"""Several commands, a few at a time: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

from loopmoe_train.launcher.side_by_side import Command, run_side_by_side

# Ends with 0 on SIGTERM after "saving"; says when it begins and ends.
PATIENT = """
import signal, sys, time
def stop(*_):
    time.sleep(0.5); print("saved", flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(float(sys.argv[1]))
"""


def python(tmp_path: Path, name: str, code: str, *words: str) -> Command:
    return Command(name, [sys.executable, "-c", code, *words], tmp_path / "logs" / f"{name}.log")


def test_never_more_than_asked_and_all_codes(tmp_path: Path) -> None:
    seen: List[int] = []
    names = ["a", "b", "c", "d", "e"]
    commands = [
        python(tmp_path, n, f"import time,sys; time.sleep(0.7); sys.exit({i})")
        for i, n in zip((0, 3, 1, 0, 4), names)
    ]
    codes = run_side_by_side(commands, 2, lambda running, codes: seen.append(len(running)))
    assert codes == dict(zip(names, (0, 3, 1, 0, 4)))
    assert max(seen) == 2


def test_nothing_is_started_after_a_refusal(tmp_path: Path) -> None:
    commands = [python(tmp_path, n, "import sys; print('no'); sys.exit(2)") for n in "abc"]
    assert run_side_by_side(commands, 1, lambda *_: None) == {"a": 2}
    assert (tmp_path / "logs" / "a.log").read_text() == "no\n"


def test_when_the_time_is_over_they_save_and_leave(tmp_path: Path) -> None:
    commands = [python(tmp_path, n, PATIENT, "60") for n in "abc"]
    began = time.monotonic()
    codes = run_side_by_side(commands, 2, lambda *_: None, seconds=1.5)
    assert codes == {"a": 0, "b": 0} and time.monotonic() - began < 30
    assert (tmp_path / "logs" / "a.log").read_text() == "begun\nsaved\n"


def test_an_interrupt_waits_until_they_have_saved(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from loopmoe_train.launcher.side_by_side import Command, run_side_by_side
command = [sys.executable, "-c", {PATIENT!r}, "60"]
run_side_by_side([Command("a", command, Path({str(tmp_path)!r}) / "a.log")], 1, lambda *_: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    log = tmp_path / "a.log"
    _until(lambda: log.is_file() and "begun" in log.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert log.read_text() == "begun\nsaved\n"


def test_they_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from loopmoe_train.launcher.side_by_side import Command, run_side_by_side
command = [sys.executable, "-c", {PATIENT!r}, "60"]
run_side_by_side([Command("a", command, Path({str(tmp_path)!r}) / "a.log")], 1, lambda *_: None)
"""
    process = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
    log = tmp_path / "a.log"
    _until(lambda: log.is_file() and "begun" in log.read_text())
    process.kill()
    process.wait()
    _until(lambda: "saved" in log.read_text())


def _until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_poll_is_told_names_and_codes(tmp_path: Path) -> None:
    told: List[Dict[str, int]] = []
    command = python(tmp_path, "a", "pass")
    run_side_by_side([command], 1, lambda running, codes: told.append(dict(codes)))
    assert told[-1] == {"a": 0}
