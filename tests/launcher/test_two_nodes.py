"""Jobs on two machines: real ranks over a network between namespaces, with faults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from tests.launcher.machines import MAIN, Machine, ends, need_machines, remote_shell, two_machines
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


def torchrun(machines: List[Machine], ranks: int = 1) -> List[str]:
    where = f"launcher.endpoint={machines[0].address}:29500"
    return ["launcher=torchrun", "launcher.nodes=2", where, f"cluster.devices={2 * ranks}",
            f"cluster.devices_per_node={ranks}"]  # fmt: skip


def mpirun(place: Path, machines: List[Machine], ranks: int = 1) -> List[str]:
    """Open MPI starts its daemon on the other machine by a stand-in for ssh."""
    shell = remote_shell(machines, place / "remote-shell")
    both = ",".join(machine.address for machine in machines)
    return ["launcher=mpirun", f"launcher.hosts=[{both}]", f"cluster.devices_per_node={ranks}",
            f"cluster.devices={2 * ranks}",
            f"launcher.arguments=[--prtemca,plm_ssh_agent,{shell}]"]  # fmt: skip


def test_torchrun_restarts_both_when_a_rank_on_the_second_is_killed(
    place: Path, machines: List[Machine], undisturbed: Dict[int, float]
) -> None:
    words = settings(place, "name=torchrun", *torchrun(machines))
    fault = dict(LOOPMOE_FAULT="kill@rank1@step4@step")
    done = ends([machine.loopmoe("train", *words, **fault) for machine in machines])
    assert [end["code"] for end in done] == [0, 0], done
    for end in done:
        lines = [line for line in str(end["err"]).splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert "node 10.77.0.2: rank 1 was ended by SIGKILL" in lines[0]
        assert "restart 1 of 3" in lines[0]
    folder = place / "runs" / "torchrun"
    assert losses(folder) == undisturbed  # bitwise
    assert f"continues from {folder}/checkpoints/step-2" in str(done[0]["out"])
    # The picture is drawn once, where rank 0 was.
    assert "report:" in str(done[0]["out"]) and "report:" not in str(done[1]["out"])
    for node in range(2):
        first, second = attempts(folder, f"logs/node-{node}")
        assert first["rank"] == 1 and first["signal"] == "SIGKILL", first
        assert second["outcome"] == "ended" and float(str(first["fault_to_next_step_s"])) > 0


def test_mpirun_trains_on_both_and_names_a_rank_killed_on_the_second(
    place: Path, machines: List[Machine], undisturbed: Dict[int, float]
) -> None:
    words = settings(place, "name=mpirun", *mpirun(place, machines))
    fault = dict(LOOPMOE_FAULT="kill@rank1@step4@step")
    (done,) = ends([machines[0].loopmoe("train", *words, **fault)])
    assert done["code"] == 0, done
    folder = place / "runs" / "mpirun"
    assert losses(folder) == undisturbed  # bitwise
    first, second = attempts(folder)
    assert first["rank"] == 1 and first["signal"] == "SIGKILL" and first["step"] == 3, first
    assert "rank 1 was ended by SIGKILL (out of memory?) in step 4" in str(first["cause"])
    assert second["outcome"] == "ended"


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_a_disk_of_its_own_on_each_machine_is_refused(
    place: Path, machines: List[Machine], launcher: str, undisturbed: Dict[int, float]
) -> None:
    """The run folder is in what each machine has for itself; the data are on the common disk."""
    assert undisturbed  # the data are there
    runs = f"runs_dir={machines[0].own}/runs"
    how = torchrun(machines) if launcher == "torchrun" else mpirun(place, machines)
    words = settings(place, f"name=apart-{launcher}", *how, runs)
    typed = machines if launcher == "torchrun" else machines[:1]
    for end in ends([machine.loopmoe("train", *words) for machine in typed]):
        says = str(end["err"])
        assert end["code"] == 2, end
        assert "rank 1 on machine-1 does not see what rank 0 has written into" in says
        assert "checkpoints need one run folder for all nodes -> put it on a disk" in says


@pytest.mark.parity
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_two_ranks_on_each(place: Path, machines: List[Machine], launcher: str) -> None:
    more = ["cluster.devices=4", "parallel=expert", "global_batch_size=8"]
    done = start([sys.executable, "-c", MAIN, "train",
                  *settings(place, f"name=four-{launcher}", *more)])  # fmt: skip
    assert done.returncode == 0, done.stderr
    how = torchrun(machines, 2) if launcher == "torchrun" else mpirun(place, machines, 2)
    typed = machines if launcher == "torchrun" else machines[:1]
    words = settings(place, f"name=two-by-two-{launcher}", *how)
    for end in ends([machine.loopmoe("train", *words) for machine in typed]):
        assert end["code"] == 0, end
    two_by_two = losses(place / "runs" / f"two-by-two-{launcher}")
    assert two_by_two == losses(place / "runs" / f"four-{launcher}")  # bitwise
    names = {path.name for path in (place / f"runs/two-by-two-{launcher}/logs").rglob("rank-*.log")}
    assert names == {"rank-0.log", "rank-1.log", "rank-2.log", "rank-3.log"}
