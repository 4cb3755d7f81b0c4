"""Two machines whose network is slow, or cut while they work: namespaces and a real link."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from loopmoe_train.doctor.check import parse
from tests.doctor.found import assert_finds, assert_passes, one
from tests.launcher.machines import INTERFACE, Machine, ends, need_machines, two_machines

pytestmark = need_machines


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[List[Machine]]:
    with two_machines(tmp_path) as made:
        yield made


def start(machines: List[Machine], folder: Path, minutes: float) -> List[subprocess.Popen[str]]:
    """One rank on each."""
    words = [sys.executable, "-m", "loopmoe_train.doctor", "--json", str(folder / "found.json"),
             f"runs_dir={folder}/runs", f"data.path={folder}/data", "cluster.devices_per_node=1",
             f"launcher.timeout_minutes={minutes}"]  # fmt: skip
    return [
        machine.start(
            words, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1",
            MASTER_ADDR=machines[0].address, MASTER_PORT="29511", GLOO_SOCKET_IFNAME=INTERFACE,
        )
        for rank, machine in enumerate(machines)
    ]  # fmt: skip


def found(folder: Path) -> List[Any]:
    return parse(json.loads((folder / "found.json").read_text()))


@pytest.mark.skipif(shutil.which("tc") is None, reason="no `tc` to make a link slow")
def test_a_link_that_is_slow(machines: List[Machine], tmp_path: Path) -> None:
    for machine in machines:
        slow = "tbf rate 200mbit burst 64kb latency 50ms".split()
        subprocess.run(
            ["tc", "-n", machine.space, "qdisc", "add", "dev", INTERFACE, "root", *slow], check=True
        )
    told = ends(start(machines, tmp_path, 1))
    checks = found(tmp_path)
    assert told[0]["code"] == 1, told  # names that nobody can resolve
    slowest = "slowest: ranks [0, 1] on machine-0, machine-1"
    assert_finds(checks, "cluster/links", "WARN", slowest, "GLOO_")
    assert_passes(checks, "cluster/groups")
    assert "2 ranks of 2 hosts came" in one(checks, "cluster/meeting").reason
    nobody = "machine-0 does not resolve"
    assert_finds(checks, "network/host-name", "FAIL", nobody, "/etc/hosts")


def test_a_link_that_is_cut(machines: List[Machine], tmp_path: Path) -> None:
    started = start(machines, tmp_path, 0.2)
    seen = ""
    while "doctor: cluster/software" not in seen:
        assert started[0].poll() is None, started[0].communicate()
        seen = started[0].stderr.readline()  # type: ignore[union-attr]
        time.sleep(0.01)
    down = ["ip", "-n", machines[1].space, "link", "set", INTERFACE, "down"]
    subprocess.run(down, check=True)
    told = ends(started[:1])
    started[1].kill()
    assert told[0]["code"] == 1, told
    reason = "rank 1 (host machine-1) did not come"
    checks = found(tmp_path)
    assert_finds(checks, checks[-1].name, "FAIL", reason, "look on machine-1")
