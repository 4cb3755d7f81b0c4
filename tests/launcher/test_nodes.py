"""Commands on two nodes with ranks that have no model: they decide alike, whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import psutil
import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.config.run_file import run_dir, save
from loopmoe_train.errors import RankLost, Refused, RunFailed
from loopmoe_train.launcher import meet, nodes
from loopmoe_train.launcher.cause import Fault
from loopmoe_train.launcher.nodes import Ending
from loopmoe_train.parallel.addresses import free_port
from tests.launcher.tiny_run import attempts

ROOT = Path(__file__).parents[2]


class Place:
    """Two nodes that share a folder; both are this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = [
            f"runs_dir={folder}", "name=fake", "launcher=torchrun", "launcher.nodes=2",
            "cluster.devices_per_node=1", f"launcher.endpoint=127.0.0.1:{free_port()}",
        ]  # fmt: skip
        run = compose(self.settings)
        save(run, run_dir(run) / "run.yaml")
        (folder / "place.json").write_text(
            json.dumps(dict(settings=self.settings, run=str(run_dir(run) / "run.yaml")))
        )

    def start(self, fault: str, *words: str, lost_s: float = 20) -> List[subprocess.Popen[str]]:
        """Both commands."""
        env = {**os.environ, "FAKE_FAULT": fault, "PYTHONPATH": str(ROOT), "FAKE_LOCK": "1"}
        line = [sys.executable, "-m", "tests.launcher.fake_node", f"{self.folder}/place.json",
                str(lost_s), *words]  # fmt: skip
        return [
            subprocess.Popen(line, env=env, text=True, stderr=subprocess.PIPE, cwd=ROOT)
            for _ in range(2)
        ]

    def run(self, fault: str, *words: str) -> List[Dict[str, Any]]:
        """Exit code and words of both."""
        return ends(self.start(fault, *words))

    def reports(self) -> List[List[Dict[str, Any]]]:
        return [attempts(self.folder / "fake", f"logs/node-{node}") for node in range(2)]


def ends(started: List[subprocess.Popen[str]]) -> List[Dict[str, Any]]:
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        dict(code=process.returncode, lines=[line for line in text.splitlines() if line.strip()])
        for process, text in zip(started, said)
    ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


SURVIVED = {
    "kill": "node 127.0.0.1: rank 1 was ended by SIGKILL (out of memory?) in step 4",
    "stop": "node 127.0.0.1: rank 1 was stopped by SIGSTOP in step 4",
    "hang": "node 127.0.0.1: rank 1 hangs in step 4",
}


LONG = pytest.mark.parity  # one of each kind every day, all of them in make parity


@pytest.mark.parametrize(
    "fault", ["kill", *(pytest.param(f, marks=LONG) for f in ("stop", "hang"))]
)
def test_all_start_again_together(place: Place, fault: str) -> None:
    for end in place.run(fault, "launcher.heartbeat_seconds=1", "launcher.hang_seconds=2"):
        assert end["code"] == 0, end
        assert len(end["lines"]) == 1 and SURVIVED[fault] in end["lines"][0], end["lines"]
        assert "restart 1 of 3" in end["lines"][0]
    for first, second in place.reports():
        assert first["rank"] == 1 and first["outcome"] == "restarted" and first["step"] == 3
        assert second["outcome"] == "ended" and second["attempt"] == 1


ENDED = {"kill-always": (4, "twice in a row in step 4: suspect data or step"),
         "raise-always": (1, "1: ValueError: seven is not a token; twice in a row")}  # fmt: skip


@pytest.mark.parametrize("fault", ["kill-always", pytest.param("raise-always", marks=LONG)])
def test_all_give_up_together(place: Place, fault: str) -> None:
    code, says = ENDED[fault]
    for end in place.run(fault):
        assert end["code"] == code and len(end["lines"]) == 2, end
        assert "restart 1 of 3" in end["lines"][0] and says in end["lines"][1]


def wait_for(happens: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def steps(place: Place) -> bool:
    """Whether the rank that hangs has been started."""
    return len(list((place.folder / "fake/logs").glob("node-*/rank-*.log"))) == 2


def holds(pid: int, port: int) -> bool:
    """Whether a process listens at the port."""
    open_ones = psutil.Process(pid).net_connections()
    return any(one.status == "LISTEN" and one.laddr.port == port for one in open_ones)


@pytest.mark.parametrize("which", ["holder", pytest.param("other", marks=LONG)])
def test_a_command_that_is_killed_ends_the_job(place: Place, which: str) -> None:
    started = place.start("hang-always", "launcher.hang_seconds=100", lost_s=2)
    wait_for(lambda: steps(place))
    port = int(place.settings[-1].rpartition(":")[2])
    listens = [holds(process.pid, port) for process in started]
    assert sorted(listens) == [False, True]
    victim = started[listens.index(which == "holder")]
    left = started[listens.index(which != "holder")]
    ranks = psutil.Process(victim.pid).children(recursive=True)
    victim.kill()
    (end,) = ends([left])
    assert end["code"] == 4 and len(end["lines"]) == 1, end
    says = "the node at launcher.endpoint=" if which == "holder" else "gives no sign of life"
    assert says in end["lines"][0] and "same command on all nodes again" in end["lines"][0]
    attempts = sorted(place.folder.rglob("attempt-0.json"))
    told = {one["pid"]: one for one in map(json.loads, (path.read_text() for path in attempts))}
    assert told[victim.pid]["outcome"] == "running"
    assert told[left.pid]["outcome"] == "failed" and says in told[left.pid]["cause"]
    victim.communicate()
    wait_for(lambda: not any(rank.is_running() for rank in ranks))  # nobody is left behind


def meeting(settings: List[str], words: List[List[str]], patience_s: float = 5) -> List[Any]:
    """What becomes of commands that meet in threads: Nodes or the error."""
    run = compose(settings)
    meet._store_class()  # importing torch is none of the patience
    found: List[Any] = [None] * len(words)

    def go(k: int) -> None:
        time.sleep(0.2 * k)
        try:
            found[k] = meet.meet(run, words[k], patience_s)
        except Refused as error:
            found[k] = str(error)

    threads = [threading.Thread(target=go, args=(k,)) for k in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_other_settings_on_one_node_are_refused_on_all(place: Place) -> None:
    said = meeting(place.settings, [["steps=5", "name=a"], ["steps=6", "name=a"]])
    assert said[0] == said[1] and "with other settings than node 127.0.0.1: steps ->" in said[0]


def test_too_few_and_too_many_nodes_are_refused(place: Place) -> None:
    (said,) = meeting(place.settings, [["a=1"]], patience_s=1)
    assert "1 of launcher.nodes=2 nodes came -> start the same command on each" in said
    place.settings[-1] = f"launcher.endpoint=127.0.0.1:{free_port()}"
    first, second, third = meeting(place.settings, [["a=1"]] * 3)
    assert {first.index, second.index} == {0, 1} and first.names == ["127.0.0.1"] * 2
    assert "all launcher.nodes=2 commands have met there" in third


def test_an_endpoint_that_is_not_reached_or_not_ours(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meet, "_ANSWER_S", 1.0)
    place.settings[-1] = "launcher.endpoint=nowhere.invalid:29500"
    (said,) = meeting(place.settings, [["a=1"]], patience_s=1)
    assert said.startswith("launcher.endpoint=nowhere.invalid:29500 was not reached: ")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        place.settings[-1] = f"launcher.endpoint=127.0.0.1:{other.getsockname()[1]}"
        (said,) = meeting(place.settings, [["a=1"]], patience_s=10)  # it never answers
    assert "something else listens there -> name another port" in said
    assert capsys.readouterr().err == ""


def test_a_public_endpoint_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    meet._warned.clear()
    for host in ("10.0.0.1", "fd00::1", "127.0.0.1", "8.8.8.8", "8.8.8.8"):
        meet._warn_if_public(host, f"{host}:1")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "launcher.endpoint=8.8.8.8:1 is a public address" in said[0]


def test_the_store_listens_at_the_endpoint_alone(place: Place) -> None:
    first, second = meeting(place.settings, [["a=1"], ["a=1"]])
    port = int(place.settings[-1].rpartition(":")[2])
    found = [c.laddr.ip for c in psutil.Process().net_connections()
             if c.status == "LISTEN" and c.laddr.port == port]  # fmt: skip
    assert found == ["127.0.0.1"] and first.holds != second.holds


def fault(what: str, at: float, follows: bool = False) -> Ending:
    error = RunFailed(what, "fix")
    return Ending(Fault(error, rank=0, last_sign_at=at, follows=follows), [], 1)


def test_the_cause_is_told_and_not_what_came_of_it() -> None:
    early, cause, later = fault("lost", 1, follows=True), fault("it", 3), fault("too", 4)
    none = Ending(None, [signal.SIGTERM], 7)
    for order in ([early, cause, later, none], [none, later, cause, early]):
        end = nodes._together(order, list("abcd"))
        name = "abcd"[order.index(cause)]
        assert end.fault is not None and end.fault.error.what == f"node {name}: it"
        assert end.asked == [signal.SIGTERM] and end.steps_here == 7
        back = nodes._unpacked(json.loads(json.dumps(nodes._packed(end))))
        assert back.asked == end.asked and back.fault is not None
        assert abs(back.fault.last_sign_at - 3) < 0.1
        assert str(back.fault.error) == f"node {name}: it -> fix"
    assert nodes._together([none, none], list("ab")).fault is None


@pytest.mark.parametrize("leaver", ["holder", "other"])
def test_a_command_that_leaves_early_says_so(place: Place, leaver: str) -> None:
    both = meeting(place.settings, [["a=1"], ["a=1"]], patience_s=20)
    both.sort(key=lambda node: node.holds == (leaver == "holder"))
    stays, leaves = both
    for node in both:
        node.begin(0)
    time.sleep(1)
    assert stays.news() is None
    thread = threading.Thread(target=leaves.leave)  # the holder waits for the other
    thread.start()
    deadline = time.monotonic() + 10
    with pytest.raises(RankLost, match="node 127.0.0.1 gives no sign of life"):
        while time.monotonic() < deadline:
            assert stays.news() is None
            time.sleep(0.05)
    stays.leave()
    thread.join(20)
    assert not thread.is_alive()
