"""The commands of a job on several nodes: they meet, tell each other of faults and decide alike.

The same command is typed on every node and watches the ranks there. The one whose machine has the
address ``launcher.endpoint`` keeps a TCP store there, on that address alone, as long as the job
lasts. Its content: ``node/<k>`` who takes part, ``beat/<k>`` signs of life, ``left/<k>``; of
attempt n ``<n>/fault`` (the first fault: all end their ranks), ``<n>/end/<k>`` how it ended on node
k; ``lost`` a node that is gone, which ends the job. Only JSON and numbers are read from it here.

torchrun's agents meet in the same store, and what they read there they unpickle; the store has no
authentication: use it inside a trusted network.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.config.launcher_rules import endpoint_of
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import RankLost, Refused
from loopmoe_train.launcher.cause import AGAIN, KINDS, Fault
from loopmoe_train.parallel.addresses import address_towards
from loopmoe_train.train.heartbeat import Sign

_MEET_S = 600.0  # for the command to be typed on all nodes
_LOST_S = 30.0  # without a sign of a node, or of the store
_ANSWER_S = 20.0  # for the store to say that it is one
_PERIOD_S = 0.2
_STORE_ERRORS = (RuntimeError, ValueError, OSError)


@dataclass
class Ending:
    """How an attempt ended, here or on all nodes.

    Attributes:
        asked: signals that a user sent.
        steps_here: steps done in this attempt.
    """

    fault: Optional[Fault]
    asked: List[int]
    steps_here: int


class Nodes:
    """This node among the others.

    Args:
        store: a client of the store, or the one that holds it.
        index: number of this node, by arrival.
        address: of this machine on the network that leads to the endpoint.
    """

    def __init__(
        self, store: Any, endpoint: str, count: int, index: int, address: str, holds: bool
    ) -> None:
        self.store, self.endpoint, self.count = store, endpoint, count
        self.index, self.address, self.holds = index, address, holds
        self.names = [address]
        self._attempt = 0
        self._news: Optional[Fault] = None  # a fault of another node in this attempt
        self._lost = ""  # a node that gives no sign
        self._answered = time.monotonic()
        self._beats: Dict[int, Tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._exchange, name="nodes", daemon=True)

    def begin(self, attempt: int) -> None:
        """From now on it is about this attempt."""
        self._attempt, self._news = attempt, None
        if not self._thread.is_alive():
            self._thread.start()

    def news(self) -> Optional[Fault]:
        """A fault of another node, if there is one.

        Raises:
            RankLost: a node is gone, or the store.
        """
        if self._lost:
            raise _lost(self._lost)
        if time.monotonic() - self._answered > _LOST_S or self._over.is_set():
            raise self._gone()
        return self._news

    def agree(self, mine: Ending) -> Ending:
        """Tell how the attempt ended here, wait for the others; the same answer on all nodes.

        Raises:
            RankLost: a node is gone, or the store.
        """
        number = self._attempt
        try:
            self.store.set(f"{number}/end/{self.index}", json.dumps(_packed(mine)))
            if mine.fault is not None:
                self._tell(mine.fault)
            keys = [f"{number}/end/{k}" for k in range(self.count)]
            deadline: Optional[float] = None
            while not self.store.check(keys):
                if self.news() is not None or mine.fault is not None:
                    deadline = deadline or time.monotonic() + _LOST_S
                if deadline is not None and time.monotonic() > deadline:
                    late = [k for k, key in enumerate(keys) if not self.store.check([key])]
                    raise _lost(self.names[late[0]]) if late else self._gone()
                time.sleep(_PERIOD_S / 2)
            ends = [_unpacked(json.loads(self.store.get(key))) for key in keys]
        except _STORE_ERRORS as error:
            raise self._gone() from error
        return _together(ends, self.names)

    def leave(self) -> None:
        """Part from the others; who holds the store stays until they have."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LOST_S)
        try:
            if not self.store.check([f"{self._attempt}/end/{self.index}"]):
                self.store.set("lost", self.address)  # before all have ended
            self.store.set(f"left/{self.index}", "yes")
            deadline = time.monotonic() + _LOST_S
            while self.holds and time.monotonic() < deadline:
                if self.store.check([f"left/{k}" for k in range(self.count)]):
                    break
                time.sleep(_PERIOD_S / 2)
        except _STORE_ERRORS:
            pass  # its holder has gone first

    def _exchange(self) -> None:
        """Beat, listen, and, where the store is held, look after the others."""
        number = 0
        while not self._over.wait(_PERIOD_S):
            number += 1
            attempt = self._attempt
            try:
                self.store.set(f"beat/{self.index}", str(number))
                if self.holds:
                    self._look_after(attempt)
                if self.store.check(["lost"]):
                    self._lost = self.store.get("lost").decode()
                news = None
                if self.store.check([f"{attempt}/fault"]):
                    news = _unpacked(json.loads(self.store.get(f"{attempt}/fault"))).fault
            except _STORE_ERRORS:
                self._over.set()
                return
            self._answered = time.monotonic()
            if news is not None and attempt == self._attempt:
                # What it was is decided when all have ended.
                self._news = replace(news, follows=True)

    def _look_after(self, attempt: int) -> None:
        for k in range(self.count):
            if k == self.index or self.store.check([f"{attempt}/end/{k}"]):
                continue
            beat = self.store.get(f"beat/{k}") if self.store.check([f"beat/{k}"]) else b""
            known, since = self._beats.get(k, (None, 0.0))
            if beat != known:
                self._beats[k] = (beat, time.monotonic())
            elif time.monotonic() - since > _LOST_S or self.store.check([f"left/{k}"]):
                self.store.set("lost", self.names[k])

    def _tell(self, fault: Fault) -> None:
        if not self.store.check([f"{self._attempt}/fault"]):
            told = _packed(Ending(fault, [], 0))
            self.store.set(f"{self._attempt}/fault", json.dumps(told))

    def _gone(self) -> RankLost:
        return RankLost(
            f"node {self.address}: the node at launcher.endpoint={self.endpoint} is gone",
            f"start the same command on all nodes again; {AGAIN}",
        )


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
    except _STORE_ERRORS as error:
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
    limit = timedelta(seconds=_LOST_S)
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
            time.sleep(_PERIOD_S)
        except _STORE_ERRORS as error:
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
            limit = timedelta(seconds=_LOST_S)
            found.append(TCPStore(host, port, wait_for_workers=False, timeout=limit))
        except _STORE_ERRORS as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if not found or isinstance(found[0], Exception):
        raise ValueError(f"no store answers: {found}")
    return found[0]


def _store_class() -> Any:
    """torch's TCPStore; it shall not write stack traces of what is told in a line here."""
    level = "TORCH_CPP_LOG_LEVEL"  # read when torch is imported
    given = level in os.environ
    os.environ.setdefault(level, "ERROR")
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
        time.sleep(_PERIOD_S)


def _lost(name: str) -> RankLost:
    return RankLost(
        f"node {name} gives no sign of life; the others were stopped",
        f"see to that machine, then start the same command on all nodes again; {AGAIN}",
    )


def _together(ends: Sequence[Ending], names: Sequence[str]) -> Ending:
    """What the endings of all nodes come to: the same wherever it is worked out."""
    asked = [number for end in ends for number in end.asked]
    steps = max(end.steps_here for end in ends)
    faults = []
    for end, name in zip(ends, names):
        if end.fault is not None:
            error = end.fault.error
            if not end.fault.follows:
                error = type(error)(f"node {name}: {error.what}", error.fix)
            faults.append(replace(end.fault, error=error))
    # A cause before what came of it, then the earliest.
    faults.sort(key=lambda fault: (fault.follows, fault.last_sign_at + fault.detection_s))
    return Ending(faults[0] if faults else None, asked, steps)


def _packed(end: Ending) -> Dict[str, Any]:
    """JSON of an ending. Clocks of nodes differ: moments travel as time of day."""
    fault, told = end.fault, None
    if fault is not None:
        told = dict(
            code=fault.error.exit_code, what=fault.error.what, fix=fault.error.fix, rank=fault.rank,
            sign=asdict(fault.sign) if fault.sign else None, signal=fault.signal, hang=fault.hang,
            at=fault.last_sign_at + time.time() - time.monotonic(),
            detection_s=fault.detection_s, follows=fault.follows,
        )  # fmt: skip
    return dict(fault=told, asked=end.asked, steps_here=end.steps_here)


def _unpacked(told: Dict[str, Any]) -> Ending:
    fault, about = None, told["fault"]
    if about is not None:
        fault = Fault(
            KINDS[about["code"]](about["what"], about["fix"]),
            rank=about["rank"],
            sign=Sign(**about["sign"]) if about["sign"] else None,
            signal=about["signal"],
            last_sign_at=about["at"] - time.time() + time.monotonic(),
            detection_s=about["detection_s"],
            hang=about["hang"],
            follows=about["follows"],
        )
    return Ending(fault, told["asked"], told["steps_here"])
