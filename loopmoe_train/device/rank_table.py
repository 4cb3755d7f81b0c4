"""HCCL's rank table: which device of which server is which rank, checked before HCCL reads it.

A JSON file that a cluster's operator writes and ``RANK_TABLE_FILE`` names. Version 1.0 is for A2;
1.2, with the place of every device in a super pod, for A3. A table of the wrong version, or one
that is not ``completed``, ends in an HCCL error long after the start. Without a table HCCL finds
the ranks through the job's store, which is what launches of this package rely on.

Sources: MindCluster's description of hccl.json (versions 1.0 and 1.2). No torch is needed. These
checks have been tried on tables made by hand, not on a cluster.
"""

from __future__ import annotations

import ipaddress
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from loopmoe_train.config.schema import ClusterConfig
from loopmoe_train.device.environment_table import two_dies
from loopmoe_train.device.problem import Problem

VARIABLE = "RANK_TABLE_FILE"
NAME = "rank_table"

_MAKE_ANEW = "let the cluster's operator (or hccl_tools) write it anew for this job"


@dataclass(frozen=True)
class Device:
    """One entry; ids are None where they are no number."""

    server: str
    device_id: Optional[int]
    rank: Optional[int]
    ip: Optional[str]
    super_device_id: Optional[int]


def named_in(env: Mapping[str, str], cluster: ClusterConfig) -> List[Problem]:
    """What is wrong with the table that ``env`` names, if HCCL will read one."""
    named = env.get(VARIABLE)
    return problems(Path(named), cluster) if named and cluster.device == "npu" else []


def problems(path: Path, cluster: ClusterConfig) -> List[Problem]:
    """What is wrong with the table at ``path`` for a job on ``cluster``; [] if nothing is."""
    found = list(_of_file(path))
    if any(problem.status == "FAIL" for problem in found):
        return found
    try:
        table = json.loads(path.read_bytes())
    except ValueError as error:
        return [*found, _fail(f"{path}: not JSON ({error})")]
    shape = _misshapen(table)
    if shape:
        return [*found, _fail(f"{path}: {shape}")]
    devices = [_device(server, entry) for server in table["server_list"]
               for entry in server["device"]]  # fmt: skip
    checks = (
        _version(table, devices, cluster), _servers(table), _ranks(devices, cluster),
        _device_ids(devices, cluster), _addresses(table, devices),
    )  # fmt: skip
    told = [_fail(f"{path}: {what}") for check in checks for what in check]
    return [*found, *told, *_order(path, devices)]


def _fail(what: str, fix: str = _MAKE_ANEW) -> Problem:
    return Problem(NAME, "FAIL", what, fix)


def _of_file(path: Path) -> Iterator[Problem]:
    try:
        about = path.stat()
        with open(path, "rb"):
            pass
    except OSError as error:
        fix = f"name the table in {VARIABLE}, or unset it: HCCL then finds the ranks itself"
        yield _fail(f"{path}: cannot be read ({error.strerror})", fix)
        return
    if path.is_symlink():
        yield Problem(
            NAME, "WARN", f"{path} is a symbolic link: it may lead to another job's table, and not "
            "every CANN follows it", f"name {path.resolve()} in {VARIABLE}",
        )  # fmt: skip
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Problem(
            NAME, "WARN", f"{path} can be written by others than its owner", f"chmod 640 {path}"
        )


def _misshapen(table: Any) -> str:
    """What keeps it from being read as a table."""
    if not isinstance(table, dict):
        return "not a table"
    if "server_list" not in table:
        old = "group_list" in table
        return "of the old form (group_list)" if old else "has no server_list"
    servers = table["server_list"]
    if not isinstance(servers, list) or not servers:
        return "server_list names no server"
    for number, server in enumerate(servers):
        devices = server.get("device") if isinstance(server, dict) else None
        if not isinstance(devices, list) or not all(isinstance(one, dict) for one in devices):
            return f"server {number} of server_list has no list of devices"
    return ""


def _device(server: Dict[str, Any], entry: Dict[str, Any]) -> Device:
    return Device(
        server=str(server.get("server_id", "")),
        device_id=_number(entry.get("device_id")),
        rank=_number(entry.get("rank_id")),
        ip=entry.get("device_ip") or None,
        super_device_id=_number(entry.get("super_device_id")),
    )


def _number(value: Any) -> Optional[int]:
    """Numbers are written as text there."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else None


def _version(
    table: Dict[str, Any], devices: Sequence[Device], cluster: ClusterConfig
) -> Iterator[str]:
    status = table.get("status")
    if status != "completed":
        yield f"status is {status!r}, not 'completed': it is still being written, or was given up"
    wanted, version = "1.2" if two_dies(cluster) else "1.0", table.get("version")
    if version != wanted:
        yield f"version is {version!r}, cluster {cluster.name} needs {wanted!r}"
    if version != "1.2":
        return
    lacking = sum(one.super_device_id is None for one in devices)
    if lacking:
        yield f"{lacking} of {len(devices)} devices have no super_device_id"
    placed: List[str] = []
    for pod in table.get("super_pod_list") or []:
        placed += [str(server.get("server_id")) for server in pod.get("server_list", [])]
    for server in dict.fromkeys(one.server for one in devices):
        if placed.count(server) != 1:
            yield f"super_pod_list has server {server} {placed.count(server)} times, not once"


def _servers(table: Dict[str, Any]) -> Iterator[str]:
    servers, count = table["server_list"], table.get("server_count")
    if _number(count) != len(servers):
        yield f"server_count is {count!r} but server_list has {len(servers)}"
    names = [server.get("server_id") for server in servers]
    for name in dict.fromkeys(names):
        if not name:
            yield "a server has no server_id"
        elif names.count(name) > 1:
            yield f"server {name} is there {names.count(name)} times"


def _ranks(devices: Sequence[Device], cluster: ClusterConfig) -> Iterator[str]:
    if len(devices) != cluster.devices:
        yield f"{len(devices)} devices, but cluster.devices={cluster.devices}"
    ranks = [one.rank for one in devices]
    if None in ranks:
        yield f"{ranks.count(None)} devices have no whole number as rank_id"
        return
    twice = sorted({rank for rank in ranks if ranks.count(rank) > 1 and rank is not None})
    if twice:
        yield f"rank_id {twice[0]} is there {ranks.count(twice[0])} times"
    missing = sorted(set(range(len(devices))) - set(ranks))
    if missing:
        yield f"rank_id {missing[0]} of 0 to {len(devices) - 1} is missing"


def _device_ids(devices: Sequence[Device], cluster: ClusterConfig) -> Iterator[str]:
    per_node = min(cluster.devices_per_node, cluster.devices)
    for server in dict.fromkeys(one.server for one in devices):
        ids = [one.device_id for one in devices if one.server == server]
        if len(ids) != per_node:
            yield f"server {server} has {len(ids)} devices, {per_node} are started on each node"
        if None in ids:
            yield f"server {server} has a device without a whole number as device_id"
        elif len(set(ids)) < len(ids):
            yield f"server {server} has a device_id twice: {sorted(ids)}"  # type: ignore[type-var]


def _addresses(table: Dict[str, Any], devices: Sequence[Device]) -> Iterator[str]:
    for one in devices:
        if one.ip is None:
            if table.get("version") != "1.2":  # inside a super pod none is needed
                yield f"rank_id {one.rank} has no device_ip"
        else:
            try:
                ipaddress.ip_address(one.ip)
            except ValueError:
                yield f"rank_id {one.rank}: device_ip {one.ip!r} is no IP address"
    given = [one.ip for one in devices if one.ip is not None]
    for ip in dict.fromkeys(given):
        if given.count(ip) > 1:
            yield f"device_ip {ip} is there {given.count(ip)} times"


def _order(path: Path, devices: Sequence[Device]) -> Iterator[Problem]:
    """Neighbouring ranks belong on one server: the layout counts nodes so."""
    for server in dict.fromkeys(one.server for one in devices):
        ranks = sorted(one.rank for one in devices if one.server == server and one.rank is not None)
        if ranks and ranks[-1] - ranks[0] >= len(ranks):
            yield Problem(
                NAME, "WARN", f"{path}: the ranks of server {server} are no neighbours "
                f"({ranks[0]} to {ranks[-1]}): tensor and expert groups may span nodes", _MAKE_ANEW,
            )  # fmt: skip
            return
