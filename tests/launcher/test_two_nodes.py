"""Jobs on two machines: real ranks over a network between namespaces, with faults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from tests.launcher.machines import MAIN, Machine, ends, need_machines, two_machines
from tests.launcher.test_launchers import start
from tests.launcher.tiny_run import attempts, losses, make_place, settings

pytestmark = need_machines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def machines(place: Path) -> Iterator[List[Machine]]:
    with two_machines(place) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Dict[int, float]:
    """Losses of the same ranks on one machine."""
    done = start([sys.executable, "-c", MAIN, "train", *settings(place, "name=one-machine")])
    assert done.returncode == 0, done.stderr
    return losses(place / "runs" / "one-machine")


def torchrun(place: Path, machines: List[Machine], name: str, *more: str) -> List[str]:
    return settings(
        place, f"name={name}", "launcher=torchrun", "launcher.nodes=2",
        "cluster.devices_per_node=1", f"launcher.endpoint={machines[0].address}:29500", *more,
    )  # fmt: skip


def test_a_rank_killed_on_the_second_node_restarts_both(
    place: Path, machines: List[Machine], undisturbed: Dict[int, float]
) -> None:
    words = torchrun(place, machines, "torchrun")
    fault = dict(LOOPMOE_FAULT="kill@rank1@step4@step")
    done = ends([machine.loopmoe("train", *words, **fault) for machine in machines])
    assert [end["code"] for end in done] == [0, 0], done
    for end in done:
        (line,) = [line for line in str(end["err"]).splitlines() if line.strip()]
        assert "node 10.77.0.2: rank 1 was ended by SIGKILL" in line and "restart 1 of 3" in line
    folder = place / "runs" / "torchrun"
    assert losses(folder) == undisturbed  # bitwise
    assert f"continues from {folder}/checkpoints/step-2" in str(done[0]["out"])
    # The picture is drawn once, where rank 0 was.
    assert "report:" in str(done[0]["out"]) and "report:" not in str(done[1]["out"])
    for node in range(2):
        first, second = attempts(folder, f"logs/node-{node}")
        assert first["rank"] == 1 and first["signal"] == "SIGKILL", first
        assert second["outcome"] == "ended" and float(str(first["fault_to_next_step_s"])) > 0
