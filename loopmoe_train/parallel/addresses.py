"""Addresses, interfaces and ports of this machine; no torch, so that a command can ask too."""

from __future__ import annotations

import socket
from typing import List, Mapping, Optional

import psutil

from loopmoe_train.device.problem import Problem

#: Variables that name network interfaces for collectives.
INTERFACES = ("GLOO_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def address_towards(host: str, port: int) -> str:
    """The address of this machine from which it reaches another; nothing is sent.

    Raises:
        OSError: the name is unknown, or there is no way there.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> Optional[str]:
    """Name of the network interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def interface_problems(environment: Mapping[str, str], several: bool) -> List[Problem]:
    """Interfaces that :data:`INTERFACES` name and that cannot be used here.

    A value may be a list, after = (exactly) or ^ (none of these); HCCL and NCCL take prefixes.

    Args:
        several: the ranks are on more than one machine.
    """
    there = psutil.net_if_stats()
    up = [name for name, about in there.items() if about.isup]
    outward = next((name for name in up if name != "lo"), next(iter(up), "INTERFACE"))
    found = []
    for variable in INTERFACES:
        value = environment.get(variable, "")
        exact = value.startswith("=") or variable == "GLOO_SOCKET_IFNAME"
        words = [] if value.startswith("^") else value.lstrip("=").split(",")
        for word in filter(None, words):
            fits = [n for n in there if (n == word if exact else n.startswith(word))]
            fix = f"export {variable}={outward}"
            if not fits:
                what = f"no interface {word!r}; there are {', '.join(there)}"
            elif not any(there[name].isup for name in fits):
                what, fix = f"{fits[0]} is down", f"sudo ip link set {fits[0]} up"
            elif several and set(fits) == {"lo"}:
                what = "other machines cannot be reached over it"
            else:
                continue
            found.append(Problem(variable, "FAIL", f"{variable}={value}: {what}", fix))
    return found
