"""All ranks together: real gloo ranks of which one is missing, killed, stopped, different, slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, List

import pytest
import torch.distributed as dist

from loopmoe_train.config.compose import compose
from loopmoe_train.config.schema import LinkConfig
from loopmoe_train.doctor import alike, links
from loopmoe_train.doctor.check import Check, failed, passed
from loopmoe_train.doctor.cluster import Examination, axes
from loopmoe_train.doctor.meeting import Meeting, Missing
from loopmoe_train.parallel.environment import Place
from loopmoe_train.spec.grid import Grid
from tests.doctor.found import assert_finds, assert_passes, one
from tests.doctor.ranks import Examined, Rank
from tests.doctor.test_versions import plant

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root names a machine anew")


@ROOT_ONLY
def test_ranks_that_differ(tmp_path: Path) -> None:
    """Two hosts, of which one has another version and other settings; both would be trained on."""
    plant(tmp_path / "site", {"deepspeed": "0.16.0"})
    other = Rank(1, ["optim.lr=3e-3"], {"PYTHONPATH": str(tmp_path / "site")}, host="node-b")
    examined = Examined(tmp_path, [Rank(0, host="node-a"), other], 2)
    assert examined.codes(0, 1) == [1, 0], examined.said()
    checks = examined.checks()
    wrong = "node-b: deepspeed 0.16.0 (elsewhere None)"
    assert_finds(checks, "cluster/software", "FAIL", wrong, "from one image")
    assert_finds(checks, "cluster/settings", "FAIL", "node-b: ", "git rev-parse HEAD")
    assert_finds(checks, "versions/matrix", "WARN", "node-b: deepspeed 0.16.0", "pip install")
    assert_passes(checks, "cluster/data")
    assert_passes(checks, "cluster/clocks")
    assert "2 ranks of 2 hosts came" in one(checks, "cluster/meeting").reason
    assert "world 2, data 2" in one(checks, "cluster/groups").reason
    assert "gloo: all-reduce" in one(checks, "cluster/links").reason


def test_a_rank_that_never_came(tmp_path: Path) -> None:
    words = ("parallel=data", "global_batch_size=12")
    examined = Examined(tmp_path, [Rank(0), Rank(1)], 3, *words, minutes=0.2)
    assert examined.codes(0, 1) == [1, 1], examined.said()
    reason = "rank 2 (host "
    assert "rank 1" not in examined.logs[1].read_text()  # one rank tells it, not each
    checks = examined.checks()
    assert_finds(checks, "cluster/meeting", "FAIL", reason, "ps aux | grep loopmoe_train")
    found = one(checks, "cluster/meeting").reason
    assert "did not come to stage start: not within 12 s; 2 of 3 ranks did" in found


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    examined = Examined(tmp_path, [Rank(0), Rank(1)], 2, minutes=0.2)
    examined.when("cluster/meeting")
    examined.send(1, signal.SIGKILL)
    assert examined.codes(0) == [1], examined.said()
    name = examined.checks()[-1].name  # of the stage that is next
    assert_finds(examined.checks(), name, "FAIL", "rank 1 (host ", "dmesg")


def test_a_rank_that_is_stopped(tmp_path: Path) -> None:
    examined = Examined(tmp_path, [Rank(0), Rank(1)], 2, minutes=0.2)
    examined.when("cluster/software")
    examined.send(1, signal.SIGSTOP)
    assert examined.codes(0) == [1], examined.said()
    checks = examined.checks()
    assert_finds(checks, checks[-1].name, "FAIL", "rank 1 (host ", "ps aux")
    assert "did not come" in checks[-1].reason


def test_a_store_that_nobody_keeps(tmp_path: Path) -> None:
    examined = Examined(tmp_path, [Rank(1)], 2, minutes=0.05)
    assert examined.codes(1) == [2], examined.said()
    assert "rank 0 is not there" in examined.said() and "-> start rank 0" in examined.said()


def test_a_slow_rank(tmp_path: Path) -> None:
    """Rank 1 is let run a tenth of the time, as on a machine that is throttled."""
    examined = Examined(tmp_path, [Rank(0), Rank(1)], 2, minutes=1)
    examined.when("cluster/groups")
    while "doctor: cluster/ranks" not in examined.logs[0].read_text():
        for number, seconds in ((signal.SIGSTOP, 0.045), (signal.SIGCONT, 0.005)):
            examined.send(1, number)
            time.sleep(seconds)
        assert examined.processes[0].poll() is None, examined.said()
    assert examined.codes(0, 1) == [0, 0], examined.said()
    assert_finds(examined.checks(), "cluster/ranks", "WARN", "rank 1 on ", "npu-smi info")


def both(function: Any) -> List[Any]:
    """What ``function`` of a rank returns or raises, on two ranks of one store."""
    store = dist.HashStore()
    found: List[Any] = [None, None]

    def run(rank: int) -> None:
        try:
            found[rank] = function(rank, store)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize(("off", "status"), [(0.0, "PASS"), (90.0, "WARN")])
def test_clocks_that_differ(off: float, status: str) -> None:
    run = compose(["launcher.timeout_minutes=0.2"])

    def clocks(rank: int, store: Any) -> List[Check]:
        mine = Examination(
            run, Place(rank, 2, 0, 1), store, [], host="ab"[rank],
            now=lambda: time.time() + off * rank,
        )  # fmt: skip
        mine._meet()
        mine._clocks()
        return mine.checks

    check = one(both(clocks)[0], "cluster/clocks")
    assert check.status == status, check
    if off:
        assert "b is +90.0 s off a" in check.reason and "chronyc makestep on b" in check.fix


def test_the_first_failure_is_told_by_all() -> None:
    """Ranks that wait in another stage tell the same words, and do not wait for their own time."""

    def late(rank: int, store: Any) -> None:
        meeting = Meeting(store, Place(rank, 3, rank, 3), "here", 1.0 if rank == 0 else 60.0)
        meeting.come("start", [0, 1])
        if rank == 0:
            meeting.come("group tensor", [0, 2])
        meeting.come("group data", [1, 2])

    first, second = both(late)
    assert isinstance(first, Missing) and isinstance(second, Missing)
    assert first.what == second.what and first.ranks == [2] and first.reporter == 0
    assert "rank 2 (host here) did not come to stage group tensor" in first.what


def test_a_collective_that_fails_is_blamed_on_who_is_silent() -> None:
    def fails(rank: int, store: Any) -> Any:
        meeting = Meeting(store, Place(rank, 3, rank, 3), "here", 5.0)
        return meeting.failed("join", [0, 1, 2], RuntimeError("Connection closed by peer"))

    first, second = both(fails)
    assert first.ranks == second.ranks == [2] and "Connection closed by peer" in first.what


def test_a_rank_that_falls_silent() -> None:
    meeting = Meeting(dist.HashStore(), Place(0, 2, 0, 2), "here", 0.5)
    meeting.store.set("start/1", "there")
    with pytest.raises(Missing, match=r"rank 1 \(host there\) did not come to stage ping 0"):
        meeting.told("ping 0", 1)


def test_a_store_that_dies() -> None:
    store = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=5))
    client = dist.TCPStore("127.0.0.1", store.port, 1, False, timedelta(seconds=5))
    meeting = Meeting(client, Place(1, 2, 1, 2), "here", 2.0)
    del store
    with pytest.raises(Missing, match="the store does not answer: rank 0"):
        meeting.come("start", [0, 1])


def test_a_sum_over_other_ranks_than_meant(one_rank: None) -> None:
    mine = Examination(compose([]), Place(), dist.HashStore(), [])
    mine._sum(None, [0])
    with pytest.raises(RuntimeError, match="add up to 1, not 3"):
        mine._sum(None, [0, 1])


def test_axes_of_a_layout() -> None:
    grid = Grid.of(8, tensor=2, pipeline=2, expert=4)
    assert axes(grid) == [("tensor", 2), ("data", 2), ("pipeline", 2), ("expert", 4)]
    assert axes(Grid.of(2)) == [("data", 2)]  # expert data has the same group


def test_tiers_of_a_network() -> None:
    cluster = compose(["cluster=ascend_a2", "cluster.devices=32", "micro_batch_size=1",
                       "global_batch_size=32"]).cluster  # fmt: skip
    inside, between = links.tiers(cluster, 32)
    assert inside.name == "hccs" and inside.ranks[1] == tuple(range(8, 16))
    assert inside.expected == pytest.approx(0.7 * 196e9)
    assert between.name == "roce" and between.ranks[3] == (3, 11, 19, 27)
    assert [tier.name for tier in links.tiers(cluster, 8)] == ["hccs"]
    (half,) = links.tiers(cluster, 4)  # four of eight have three of seven wires
    assert half.expected == pytest.approx(0.7 * 196e9 * 3 / 7)
    cluster.links = [LinkConfig("node", 8), LinkConfig("all", 0)]
    assert [tier.name for tier in links.tiers(cluster, 12)] == ["node", "all"]


def test_a_slow_link() -> None:
    cluster = compose(["cluster=ascend_a2", "cluster.devices=16", "micro_batch_size=1",
                       "global_batch_size=16"]).cluster  # fmt: skip
    tier, hosts = links.tiers(cluster, 16)[0], ["a"] * 8 + ["b"] * 8
    rates = {rank: (100e9, 90e9) for rank in range(16)}
    assert_passes(links.judged(tier, rates, hosts, "ascend_a2"), "cluster/links")
    rates[11] = (9e9, 8e9)
    found = links.judged(tier, rates, hosts, "ascend_a2")
    slowest = "slowest: ranks [8, 9, 10, 11, 12, 13, 14, 15] on b"
    assert_finds(found, "cluster/links", "WARN", slowest, "hccn_tool")


def test_findings_of_many_hosts_are_told_once() -> None:
    bad = failed("host/shm", "too small", "--shm-size=16g")
    good = passed("host/shm", "large")
    fine = passed("host/memory", "much")
    found = alike.folded([("a", bad), ("b", bad), ("c", good), ("a", fine), ("b", fine)])
    assert [check.reason for check in found] == ["a, b: too small", "much (and on 2 more)"]


def test_a_dataset_that_differs() -> None:
    facts = {"software": {"torch": "2.13.0"}, "settings": "1"}
    told = [facts | {"data": [name]} for name in ("aa", "bb", "aa")]
    found = alike.compared(told, ["x", "y", "z"])
    assert_finds(found, "cluster/data", "FAIL", "y: bb (elsewhere aa)", "rsync -a")
    assert_passes(found, "cluster/software")
