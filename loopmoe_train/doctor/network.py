"""The network as one machine sees it: its name, the store's port, its interfaces."""

from __future__ import annotations

import errno
import socket
from typing import Iterator, List, Mapping, Tuple

import psutil

from loopmoe_train.doctor.check import FAIL, WARN, Check, failed, passed

INTERFACES = ("GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


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


def interfaces(environment: Mapping[str, str], several: bool) -> Iterator[Check]:
    """Interfaces that the environment names for collectives.

    A name may be a list, after = (exactly) or ^ (none of these); HCCL and NCCL take prefixes.
    """
    there = psutil.net_if_stats()
    up = [name for name, about in there.items() if about.isup]
    outward = [name for name in up if name != "lo"] or up
    chosen: List[Tuple[str, str]] = []
    for variable in INTERFACES:
        value = environment.get(variable, "")
        if not value or value.startswith("^"):
            continue
        exact = value.startswith("=") or variable == "GLOO_SOCKET_IFNAME"
        for word in value.lstrip("=").split(","):
            chosen.append((variable, word))
            fits = [n for n in there if (n == word if exact else n.startswith(word))]
            fix = f"export {variable}={outward[0] if outward else 'INTERFACE'}"
            if not fits:
                what = f"{variable}={value}: no interface {word!r}; there are {', '.join(there)}"
                yield failed("network/interface", what, fix)
            elif not any(there[name].isup for name in fits):
                yield failed("network/interface", f"{variable}={value}: {fits[0]} is down",
                             f"sudo ip link set {fits[0]} up")  # fmt: skip
            elif several and set(fits) == {"lo"}:
                what = f"{variable}={value}: other machines cannot be reached over it"
                yield failed("network/interface", what, fix)
            else:
                continue
            return
    named = ", ".join(f"{variable}={name}" for variable, name in chosen)
    yield passed("network/interface", named or f"none is named; up: {', '.join(up)}")


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


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
