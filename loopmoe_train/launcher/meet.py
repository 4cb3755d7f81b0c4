"""How the commands of a job on several nodes find each other at ``launcher.endpoint``.

The one whose machine has that address opens the store there, the others come to it. All have to be
there, with the same settings, before anything is started.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any, List, Optional, Sequence, Tuple

from loopmoe_train.config.launcher_rules import endpoint_of
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.launcher.nodes import LOST_S, PERIOD_S, STORE_ERRORS, Nodes
from loopmoe_train.parallel.addresses import address_towards

_MEET_S = 600.0  # for the command to be typed on all nodes
_ANSWER_S = 20.0  # for the store to say that it is one


def meet(run: RunConfig, words: Sequence[str], patience_s: float = _MEET_S) -> Nodes:
    """Wait until the command was typed on all nodes.

    Args:
        words: the settings, which are to be the same everywhere.

    Raises:
        Refused: the endpoint cannot be used, other settings elsewhere, or too few or many nodes.
    """
    host, port = endpoint_of(run.launcher)
    where, count = str(run.launcher.endpoint), run.launcher.nodes
    deadline = time.monotonic() + patience_s
    store, holds = _open(host, port, where, deadline)
    try:
        index = store.add("nodes", 1) - 1
        address = address_towards(host, port)
        if index >= count:
            raise Refused(
                f"launcher.endpoint={where}: all launcher.nodes={count} commands have met there",
                "stop that job first, or name another port",
            )
        store.set(f"node/{index}", json.dumps([address, list(words)]))
        _wait_for_all(store, count, where, deadline)
        nodes = [json.loads(store.get(f"node/{k}")) for k in range(count)]
    except STORE_ERRORS as error:
        raise Refused(
            f"launcher.endpoint={where}: {str(error).splitlines()[0][:200]}",
            "see whether that machine and port can be reached and nothing else listens there",
        ) from error
    _check_alike(nodes)
    found = Nodes(store, where, count, index, address, holds)
    found.names = [name for name, _ in nodes]
    return found


def _check_alike(nodes: Sequence[Tuple[str, List[str]]]) -> None:
    """Refuse, on all nodes, a command that was typed otherwise on one of them."""
    name, first = nodes[0]
    for other, words in nodes[1:]:
        apart = [word for word in (*first, *words) if (word in first) != (word in words)]
        if apart:
            keys = ", ".join(dict.fromkeys(word.partition("=")[0] for word in apart))
            raise Refused(
                f"node {other} was started with other settings than node {name}: {keys}",
                "type the same command on every node",
            )


def _open(host: str, port: int, where: str, deadline: float) -> Tuple[Any, bool]:
    """The store: held here if the endpoint is an address of this machine and free."""
    TCPStore = _store_class()
    limit = timedelta(seconds=LOST_S)
    problem = ""
    while time.monotonic() < deadline:
        try:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            _warn_if_public(str(target[0]), where)
            listener = _listen(family, target)
            if listener is not None:
                store = TCPStore(
                    host, port, is_master=True, wait_for_workers=False, timeout=limit,
                    master_listen_fd=listener.detach(),
                )  # fmt: skip
                return store, True
            socket.create_connection((host, port), timeout=2).close()
            return _client(TCPStore, host, port), False
        except OSError as error:  # not there yet: another node holds it, a name is not known yet
            problem = error.strerror or str(error)
            time.sleep(PERIOD_S)
        except STORE_ERRORS as error:
            raise Refused(
                f"launcher.endpoint={where}: something else listens there", "name another port"
            ) from error
    raise Refused(
        f"launcher.endpoint={where} was not reached: {problem}",
        "start the command on the machine with that address too, and open the port between nodes",
    )


def _client(TCPStore: Any, host: str, port: int) -> Any:
    """A client of the store; in a thread, since it would wait for ever for a listener's answer."""
    found: List[Any] = []

    def connect() -> None:
        try:
            limit = timedelta(seconds=_ANSWER_S)
            store = TCPStore(host, port, wait_for_workers=False, timeout=limit)
            store.set_timeout(timedelta(seconds=LOST_S))
            found.append(store)
        except STORE_ERRORS as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_ANSWER_S + 1)
    if not found or isinstance(found[0], Exception):
        raise ValueError(f"no store answers: {found}")
    return found[0]


def _store_class() -> Any:
    """torch's TCPStore; it shall not write stack traces of what is told in a line here."""
    level = "TORCH_CPP_LOG_LEVEL"  # read when torch is imported
    given = level in os.environ
    os.environ.setdefault(level, "FATAL")
    from torch.distributed import TCPStore

    if not given:
        del os.environ[level]  # the ranks write what they like into their logs
    return TCPStore


_warned: List[str] = []


def _warn_if_public(address: str, where: str) -> None:
    if ipaddress.ip_address(address.partition("%")[0]).is_global and where not in _warned:
        _warned.append(where)
        print(
            f"loopmoe train: launcher.endpoint={where} is a public address and the store there has "
            "no authentication -> use an address of a private network, or a firewall",
            file=sys.stderr,
            flush=True,
        )


def _listen(family: int, target: Any) -> Optional[socket.socket]:
    """A socket that listens at the endpoint alone; None: another's address, or taken."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(1024)
        return listener
    except OSError:
        listener.close()
        return None


def _wait_for_all(store: Any, count: int, where: str, deadline: float) -> None:
    said = time.monotonic() + 10
    while not store.check([f"node/{k}" for k in range(count)]):
        came = sum(store.check([f"node/{k}"]) for k in range(count))
        if time.monotonic() > deadline:
            raise Refused(
                f"launcher.endpoint={where}: {came} of launcher.nodes={count} nodes came",
                "start the same command on each of them",
            )
        if said and time.monotonic() > said:
            said = 0.0
            print(f"{where}: waiting for {count - came} of {count} nodes", file=sys.stderr)
        time.sleep(PERIOD_S)
