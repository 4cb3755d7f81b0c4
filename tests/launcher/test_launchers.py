"""Every way to start two real ranks, three of them with a fault: all train the same, bitwise."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from loopmoe_train.cli import main
from loopmoe_train.config.compose import compose
from loopmoe_train.config.run_file import load
from loopmoe_train.errors import Refused
from loopmoe_train.launcher import wrapped
from tests.launcher.tiny_run import STEPS, attempts, losses, make_place, settings

# Eight launches: too long for every day.
pytestmark = pytest.mark.parity

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
    "loopmoe_train.train",
]  # fmt: skip


def mpirun() -> List[str]:
    program = wrapped.find_mpirun()
    extra = ["--oversubscribe", "--allow-run-as-root"] if wrapped.is_open_mpi(program) else []
    return [program, *extra, "-np", "2", sys.executable, "-m", "loopmoe_train.train"]


def start(words: List[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, timeout=250, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, **variables},
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("launchers"))


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Dict[int, float]:
    """Losses of a run that bare torchrun started."""
    done = start([*TORCHRUN, *settings(place, "name=torchrun")])
    assert done.returncode == 0, done.stderr
    folder = place / "runs" / "torchrun"
    assert load(folder / "run.yaml").cluster.devices == 2
    assert (folder / "checkpoints" / f"step-{STEPS}" / "manifest.json").exists()
    found = losses(folder)
    assert sorted(found) == list(range(1, STEPS + 1)) and found[STEPS] < found[1]
    return found


def test_bare_mpirun_trains_the_same(place: Path, undisturbed: Dict[int, float]) -> None:
    done = start([*mpirun(), *settings(place, "name=mpirun")])
    assert done.returncode == 0, done.stderr
    assert losses(place / "runs" / "mpirun") == undisturbed


@pytest.mark.parametrize("starter", ["torchrun", "mpirun"])
def test_a_bare_refusal_is_told_once_by_rank_zero(place: Path, starter: str) -> None:
    words = TORCHRUN if starter == "torchrun" else mpirun()
    done = start([*words, *settings(place, f"name=refused-{starter}", "cluster.devices=4")])
    # torchrun makes 1 of every failure of a worker; mpirun hands the code on.
    assert done.returncode == (1 if starter == "torchrun" else 2), done.stderr
    told = [line for line in done.stderr.splitlines() if "loopmoe train:" in line]
    assert len(told) == 1
    assert "cluster.devices=4 but 2 processes were started -> start 4, or leave" in told[0]
    assert not (place / "runs" / f"refused-{starter}").exists()


# Launcher, fault, and what the report says; so that each launcher and each fault is seen once.
SURVIVED = {
    "local": ("kill@rank1@step4@step", "rank 1 was ended by SIGKILL"),
    "torchrun": ("stop@rank1@step4@step", "rank 1 was stopped by SIGSTOP in step 4"),
    "mpirun": ("raise@rank0@step4@step", "rank 0: RuntimeError: injected"),
}


@pytest.mark.parametrize("launcher", SURVIVED)
def test_a_fault_is_survived_bitwise(
    place: Path, undisturbed: Dict[int, float], launcher: str
) -> None:
    fault, says = SURVIVED[launcher]
    words = settings(place, f"name=survived-{launcher}", f"launcher={launcher}")
    done = start([sys.executable, "-c", MAIN, "train", *words], LOOPMOE_FAULT=fault)
    assert done.returncode == 0, done.stderr
    folder = place / "runs" / f"survived-{launcher}"
    first, second = attempts(folder)
    assert says in str(first["cause"]) and second["outcome"] == "ended"
    assert f"continues from {folder}/checkpoints/step-2" in done.stdout
    assert losses(folder) == undisturbed
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and says in lines[0] and "restart 1 of 3" in lines[0]


MAIN = "import sys; from loopmoe_train.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("launcher", SURVIVED)
def test_a_dry_run_prints_the_command(
    place: Path, undisturbed: Dict[int, float], launcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = settings(place, "name=dry", f"launcher={launcher}", "launcher.dry_run=true")
    if launcher != "local":
        words.append("launcher.arguments=--example-argument")
    assert main(["train", *words]) == 0
    lines = capsys.readouterr().out.strip().splitlines()[-2 if launcher == "local" else -1 :]
    assert len(lines) == (2 if launcher == "local" else 1)
    for rank, line in enumerate(lines):
        parts = shlex.split(line.removesuffix("&"))
        given = [word for word in words if word != "launcher.dry_run=true"]
        assert parts[-2 - len(given) :] == ["-m", "loopmoe_train.train", *given]
        assert (f"RANK={rank}" in parts) == (launcher == "local")
        assert ("--example-argument" in parts) == (launcher != "local")
    assert not (place / "runs" / "dry").exists()


def test_without_mpirun_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="there is no mpirun on PATH -> install one"):
        wrapped.command(compose(["launcher=mpirun"]), ["python", "-m", "x"], {})
