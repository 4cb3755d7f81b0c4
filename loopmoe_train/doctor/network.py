"""The network as one machine sees it: its name, the store's port, its interfaces."""

from __future__ import annotations

import errno
import socket
from typing import List, Mapping

import psutil

from loopmoe_train.doctor.check import FAIL, WARN, Check, failed, of_problem, passed
from loopmoe_train.parallel import addresses
from loopmoe_train.parallel.addresses import INTERFACES, free_port


def host_name(name: str, several: bool) -> Check:
    """Whether others can be told this name.

    Args:
        several: the run is on more than one machine.
    """
    status = FAIL if several else WARN
    fix = f"add it to /etc/hosts of every node: echo 'ADDRESS {name}' | sudo tee -a /etc/hosts"
    try:
        found = sorted({str(one[4][0]) for one in socket.getaddrinfo(name, None)})
    except OSError as error:
        return Check("network/host-name", status, f"{name} does not resolve: {error.strerror}", fix)
    loopback = all(one.startswith("127.") or one == "::1" for one in found)
    what = f"{name} is {', '.join(found)}"
    if loopback and several:
        return failed("network/host-name", f"{what}: a loopback address, of no use to others", fix)
    return passed("network/host-name", what)


def port(environment: Mapping[str, str]) -> Check:
    """Whether the store of ranks that torchrun or mpirun start can listen here."""
    address, number = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if not address or not number:
        return passed("network/port", "no MASTER_ADDR and MASTER_PORT: no port is asked for")
    if not number.isdigit() or not 0 < int(number) < 65536:
        return failed("network/port", f"MASTER_PORT={number}: not a port",
                      f"export MASTER_PORT={free_port()}")  # fmt: skip
    try:
        here = _is_here(address)
    except OSError as error:
        return failed(
            "network/port", f"MASTER_ADDR={address} does not resolve: {error.strerror}",
            "export MASTER_ADDR=the address of the node of rank 0",
        )  # fmt: skip
    if not here:
        return passed("network/port", f"{address}:{number} is another machine's")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(number)))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = f"taken{_owner(int(number))}" if taken else str(error.strerror)
            return failed("network/port", f"MASTER_PORT={number} is {why}",
                          f"export MASTER_PORT={free_port()}")  # fmt: skip
    return passed("network/port", f"{address}:{number} is free")


def interfaces(environment: Mapping[str, str], several: bool) -> List[Check]:
    """Interfaces that the environment names for collectives."""
    found = addresses.interface_problems(environment, several)
    if found:
        return [of_problem("network/interface", one) for one in found]
    named = [f"{name}={environment[name]}" for name in INTERFACES if environment.get(name)]
    up = [name for name, about in psutil.net_if_stats().items() if about.isup]
    what = ", ".join(named) or f"none is named; up: {', '.join(up)}"
    return [passed("network/interface", what)]


def _is_here(address: str) -> bool:
    wanted = {one[4][0] for one in socket.getaddrinfo(address, None)}
    own = {a.address.partition("%")[0] for them in psutil.net_if_addrs().values() for a in them}
    return bool(wanted & own) or any(str(one).startswith("127.") for one in wanted)


def _owner(number: int) -> str:
    """Who listens, if this user may know."""
    try:
        for one in psutil.net_connections("inet"):
            if (
                one.status == psutil.CONN_LISTEN
                and getattr(one.laddr, "port", None) == number
                and one.pid
            ):
                return f" by process {one.pid} ({psutil.Process(one.pid).name()})"
    except psutil.Error:
        pass
    return ""
