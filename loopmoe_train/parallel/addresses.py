"""Addresses of this machine; no torch, so that the command that starts ranks can ask too."""

from __future__ import annotations

import socket
from typing import Optional

import psutil


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
