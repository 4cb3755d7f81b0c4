"""Rank tables: good ones of both versions pass, and every fault is named."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.device.problem import Problem
from loopmoe_train.device.rank_table import problems
from loopmoe_train.errors import Refused
from loopmoe_train.train.preflight import check_environment

Table = Dict[str, Any]


def words(cluster: str) -> List[str]:
    devices = {"ascend_a2": 16, "ascend_a3": 32}[cluster]
    return [f"cluster={cluster}", f"cluster.devices={devices}", "parallel=data",
            f"global_batch_size={4 * devices}", "precision=bf16"]  # fmt: skip


def table(cluster: str) -> Table:
    """Two whole nodes, as an operator writes them: numbers as text."""
    per_node, three = {"ascend_a2": (8, False), "ascend_a3": (16, True)}[cluster]
    servers = [
        {
            "server_id": f"10.0.0.{node}",
            "device": [
                {"device_id": str(k), "device_ip": f"192.168.{node}.{k + 1}",
                 "rank_id": str(node * per_node + k)}
                | ({"super_device_id": str(1000 * node + k)} if three else {})
                for k in range(per_node)
            ],
        }
        for node in range(2)
    ]  # fmt: skip
    whole: Table = {"version": "1.2" if three else "1.0", "server_count": "2",
                    "server_list": servers, "status": "completed"}  # fmt: skip
    if three:
        ids = [{"server_id": server["server_id"]} for server in servers]
        whole["super_pod_list"] = [{"super_pod_id": "0", "server_list": ids}]
    return whole


def found(folder: Path, content: Any, cluster: str = "ascend_a2") -> List[Problem]:
    path = folder / "hccl.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o640)
    return problems(path, compose(words(cluster)).cluster)


@pytest.mark.parametrize("cluster", ["ascend_a2", "ascend_a3"])
def test_a_good_table_has_no_problem(cluster: str, tmp_path: Path) -> None:
    assert found(tmp_path, table(cluster), cluster) == []


def at(*path: Any, value: Any) -> Callable[[Table], None]:
    """A change of one entry."""

    def change(whole: Table) -> None:
        node: Any = whole
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


def device(server: int, number: int, key: str, value: Any) -> Callable[[Table], None]:
    return at("server_list", server, "device", number, key, value=value)


def drop_last(whole: Table) -> None:
    whole["server_list"][1]["device"].pop()


WRONG = {
    "status is 'initializing', not 'completed'": at("status", value="initializing"),
    "version is '1.2', cluster ascend_a2 needs '1.0'": at("version", value="1.2"),
    "version is None": at("version", value=None),
    "server_count is '3' but server_list has 2": at("server_count", value="3"),
    "server 10.0.0.0 is there 2 times": at("server_list", 1, "server_id", value="10.0.0.0"),
    "a server has no server_id": at("server_list", 1, "server_id", value=""),
    "server_list names no server": at("server_list", value=[]),
    "server 1 of server_list has no list of devices": at("server_list", 1, "device", value=None),
    "15 devices, but cluster.devices=16": drop_last,
    "server 10.0.0.1 has 7 devices, 8 are started on each node": drop_last,
    "rank_id 3 is there 2 times": device(1, 0, "rank_id", "3"),
    "rank_id 8 of 0 to 15 is missing": device(1, 0, "rank_id", "16"),
    "1 devices have no whole number as rank_id": device(0, 0, "rank_id", "x"),
    "server 10.0.0.0 has a device_id twice: [0, 0,": device(0, 1, "device_id", "0"),
    "server 10.0.0.0 has a device without a whole number": device(0, 1, "device_id", "-1"),
    "rank_id 1: device_ip '192.168.0.256' is no IP": device(0, 1, "device_ip", "192.168.0.256"),
    "device_ip 192.168.1.1 is there 2 times": device(0, 1, "device_ip", "192.168.1.1"),
    "rank_id 1 has no device_ip": device(0, 1, "device_ip", ""),
}


@pytest.mark.parametrize("says", WRONG)
def test_a_fault_is_named(says: str, tmp_path: Path) -> None:
    whole = table("ascend_a2")
    WRONG[says](whole)
    told = [problem for problem in found(tmp_path, whole) if says in problem.what]
    assert len(told) == 1 and told[0].status == "FAIL" and told[0].name == "rank_table"
    assert told[0].what.startswith(f"{tmp_path}/hccl.json: ") and told[0].fix


def test_a_super_pod_table_places_every_device_once(tmp_path: Path) -> None:
    whole = table("ascend_a3")
    broken = copy.deepcopy(whole)
    device(1, 5, "super_device_id", "")(broken)
    broken["super_pod_list"][0]["server_list"].pop()
    told = [problem.what for problem in found(tmp_path, broken, "ascend_a3")]
    assert any("1 of 32 devices have no super_device_id" in what for what in told)
    assert any("super_pod_list has server 10.0.0.1 0 times, not once" in what for what in told)
    device(0, 0, "device_ip", "")(whole)  # none is needed inside a super pod
    assert found(tmp_path, whole, "ascend_a3") == []
    (old,) = found(tmp_path, {**whole, "version": "1.0"}, "ascend_a3")[:1]
    assert "version is '1.0', cluster ascend_a3 needs '1.2'" in old.what


def test_ranks_of_a_server_that_are_no_neighbours_are_warned_of(tmp_path: Path) -> None:
    whole = table("ascend_a2")
    device(0, 0, "rank_id", "8")(whole)
    device(1, 0, "rank_id", "0")(whole)
    (problem,) = found(tmp_path, whole)
    assert problem.status == "WARN" and "are no neighbours" in problem.what


@pytest.mark.parametrize("text", ["", "[]", "{", '{"group_list": []}', "\x00"])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (problem,) = found(tmp_path, text)
    assert problem.status == "FAIL"
    assert ("old form" in problem.what) == ("group_list" in text)


def test_links_and_rights_are_looked_at(tmp_path: Path) -> None:
    cluster = compose(words("ascend_a2")).cluster
    assert found(tmp_path, table("ascend_a2")) == []
    (tmp_path / "link").symlink_to(tmp_path / "hccl.json")
    (tmp_path / "hccl.json").chmod(0o666)
    linked, writable = problems(tmp_path / "link", cluster)
    assert linked.status == writable.status == "WARN"
    assert "symbolic link" in linked.what and str(tmp_path / "hccl.json") in linked.fix
    assert "written by others" in writable.what
    (missing,) = problems(tmp_path / "none", cluster)
    assert missing.status == "FAIL" and "cannot be read (No such file" in missing.what


def test_a_launch_on_npu_reads_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose(words("ascend_a2"))
    whole = table("ascend_a2")
    at("status", value="initializing")(whole)
    device(0, 1, "device_ip", "")(whole)
    assert len(found(tmp_path, whole)) == 2
    monkeypatch.setenv("RANK_TABLE_FILE", str(tmp_path / "hccl.json"))
    with pytest.raises(Refused, match="status is 'initializing'.* -> let .*; .* -> let"):
        check_environment(run, here=True)
    check_environment(run, here=False)  # ranks elsewhere: the table is there
    run.cluster.device = "cpu"
    check_environment(run, here=True)  # nobody reads it


def test_no_torch_is_needed() -> None:
    code = "import sys, loopmoe_train.device.rank_table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
