"""Names that do not resolve, ports that are taken, interfaces that are down: real ones."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import Iterator

import psutil
import pytest

from loopmoe_train.doctor import network
from tests.doctor.found import assert_finds, assert_passes


def test_a_name_that_does_not_resolve() -> None:
    bad = network.host_name("no-such-host.invalid", True)
    assert_finds(bad, "network/host-name", "FAIL", "does not resolve", "/etc/hosts")
    alone = network.host_name("no-such-host.invalid", False)
    assert_finds(alone, "network/host-name", "WARN", "does not resolve", "/etc/hosts")


def test_a_name_that_others_cannot_use() -> None:
    assert_passes(network.host_name("localhost", False), "network/host-name")
    bad = network.host_name("localhost", True)
    assert_finds(bad, "network/host-name", "FAIL", "a loopback address", "/etc/hosts")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(number)}
        found = network.port(variables)
        owner = f"taken by process {os.getpid()}"
        assert_finds(found, "network/port", "FAIL", owner, "export MASTER_PORT=")
    assert_passes(network.port(variables), "network/port")


def test_ports_and_addresses_that_are_none() -> None:
    assert_passes(network.port({}), "network/port")
    odd = network.port({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500a"})
    assert_finds(odd, "network/port", "FAIL", "not a port", "export MASTER_PORT=")
    gone = network.port({"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "29500"})
    assert_finds(gone, "network/port", "FAIL", "does not resolve", "export MASTER_ADDR=")
    other = network.port({"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "29500"})
    assert_passes(other, "network/port")


def test_an_interface_that_is_not_there() -> None:
    assert_passes(network.interfaces({"GLOO_SOCKET_IFNAME": "lo"}, False), "network/interface")
    bad = network.interfaces({"HCCL_SOCKET_IFNAME": "=enp67s0f5"}, True)
    fix = "export HCCL_SOCKET_IFNAME="
    assert_finds(bad, "network/interface", "FAIL", "no interface 'enp67s0f5'", fix)
    prefix = network.interfaces({"GLOO_SOCKET_IFNAME": "l"}, False)
    assert_finds(prefix, "network/interface", "FAIL", "no interface 'l'", "export GLOO_")
    assert_passes(network.interfaces({"NCCL_SOCKET_IFNAME": "l"}, False), "network/interface")
    assert_passes(network.interfaces({"NCCL_SOCKET_IFNAME": "^docker"}, True), "network/interface")


def test_loopback_between_machines() -> None:
    bad = network.interfaces({"GLOO_SOCKET_IFNAME": "lo"}, True)
    assert_finds(
        bad, "network/interface", "FAIL", "cannot be reached", "export GLOO_SOCKET_IFNAME="
    )


@pytest.fixture
def down() -> Iterator[str]:
    """An interface that is down."""
    name = f"dr{os.getpid()}a"
    done = subprocess.run(
        ["ip", "link", "add", name, "type", "veth", "peer", "name", f"dr{os.getpid()}b"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no interface can be made here: {done.stderr.strip()}")
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def test_an_interface_that_is_down(down: str) -> None:
    bad = network.interfaces({"GLOO_SOCKET_IFNAME": down}, True)
    assert_finds(bad, "network/interface", "FAIL", f"{down} is down", f"ip link set {down} up")
    for name in (down, f"{down[:-1]}b"):  # a pair is up when both ends are
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    deadline = time.monotonic() + 20
    while not psutil.net_if_stats()[down].isup and time.monotonic() < deadline:
        time.sleep(0.05)
    assert_passes(network.interfaces({"GLOO_SOCKET_IFNAME": down}, True), "network/interface")
