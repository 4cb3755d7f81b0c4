"""A profile is what was asked for, and whatever goes wrong with it is one line and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest
import torch

from loopmoe_train.config.compose import compose
from loopmoe_train.config.profile_rules import profiled_steps
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.cpu import CpuBackend
from loopmoe_train.errors import Refused
from loopmoe_train.observe.trace import found_profiles
from loopmoe_train.train.profile import Capture


def run_in(folder: Path, *words: str) -> RunConfig:
    return compose([f"runs_dir={folder}", "name=run", "steps=30", *words])


def work(capture: Capture, steps: int = 5) -> None:
    """Some steps of a matrix product, numbered from 1."""
    x = torch.ones(32, 32)
    for number in range(1, steps + 1):
        with capture.step(number):
            x = (x @ x).tanh()
    capture.finish()


def profiled(run: RunConfig, rank: int = 0) -> List[str]:
    said: List[str] = []
    work(Capture(run, rank, said.append))
    return said


def test_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    assert profiled(run_in(tmp_path, "profile.steps=2-4")) == []
    folder = tmp_path / "run/profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "rank-0.json", "rank-0.trace.json", "rank-0.txt"
    ]  # fmt: skip
    profile = found_profiles(tmp_path / "run")[0]
    assert profile.steps == [2, 3, 4] and profile.where == "host"
    assert {"aten::mm", "aten::tanh"} <= {one.name for one in profile.operators}
    calls = {one.name: one.calls for one in profile.operators}
    assert calls["aten::tanh"] == 3
    assert 0 < sum(one.share for one in profile.operators) <= 1 - profile.idle_share + 1e-6
    assert "aten::mm" in (folder / "rank-0.txt").read_text()


def test_off_or_for_another_rank_it_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any) -> None:
        raise AssertionError("a profiler was made")

    monkeypatch.setattr(CpuBackend, "profiler", never)
    assert profiled(run_in(tmp_path)) == []
    assert profiled(run_in(tmp_path, "profile.steps=2", "profile.ranks=[1]")) == []
    assert not (tmp_path / "run").exists()
    capture = Capture(run_in(tmp_path), 0, print)
    assert not hasattr(capture.step(1), "gen")  # no generator of ours: contextlib.nullcontext


def test_a_run_that_stops_in_between_leaves_what_it_has(tmp_path: Path) -> None:
    said: List[str] = []
    capture = Capture(run_in(tmp_path, "profile.steps=2-9"), 0, said.append)
    work(capture, steps=3)
    assert said == [] and found_profiles(tmp_path / "run")[0].steps == [2, 3]


class Failing:
    """A profiler that fails at one of its calls."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if name == self.at:
                raise RuntimeError(f"broken {name}\nsecond line")

        return call


@pytest.mark.parametrize(
    ("at", "says"),
    [("start", "could not start"), ("stop", "could not stop"),
     ("export_chrome_trace", "could not write"), ("nothing", "could not write")],
)  # fmt: skip
def test_a_failing_profiler_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, says: str
) -> None:
    monkeypatch.setattr(CpuBackend, "profiler", lambda self: Failing(at))
    said = profiled(run_in(tmp_path, "profile.steps=2-3"))
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith("warning: profile of rank 0") and says in said[0]
    assert said[0].endswith("training goes on")  # "nothing": there is no trace where it should be
    assert found_profiles(tmp_path / "run") == {}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in its place")
    said = profiled(run_in(tmp_path, "profile.steps=2-3"))
    assert len(said) == 1 and "could not start: NotADirectoryError" in said[0]


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.train.test_profile import run_in, work
from loopmoe_train.train.profile import Capture
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
work(Capture(run_in(Path(sys.argv[1]), "profile.steps=2-3"), 0, print))
print("trained")
"""


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], text=True,
        capture_output=True, cwd=Path(__file__).parents[2], timeout=60, check=False,
    )  # fmt: skip
    warning, last = done.stdout.splitlines()
    assert done.returncode == 0 and last == "trained"
    assert "could not write" in warning and "training goes on" in warning


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["profile.steps=29-31"], "1 to 30"),
        (["profile.steps=0-3"], "1 to 30"),
        (["profile.steps=5-3"], "in order"),
        (["profile.steps=ten"], "write 10-12, or one step"),
        (["profile.steps=2", "profile.ranks=[0,2]"], "ranks 0 to 1"),
        (["profile.steps=2", "profile.ranks=[]"], "needs a rank"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path: Path, words: List[str], says: str) -> None:
    with pytest.raises(Refused, match=says):
        run_in(tmp_path, *words)


def test_one_step_is_a_number() -> None:
    assert profiled_steps(compose(["profile.steps=7"]).profile.steps) == range(7, 8)
    assert profiled_steps(None) is None


def test_damaged_profiles_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    for name, text in (("rank-0.json", "{"), ("rank-1.json", json.dumps({"operators": []}))):
        (tmp_path / "profile" / name).write_text(text)
    assert found_profiles(tmp_path) == {}
