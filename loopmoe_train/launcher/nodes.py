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

import json
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from loopmoe_train.errors import RankLost
from loopmoe_train.launcher.cause import AGAIN, KINDS, Fault
from loopmoe_train.train.heartbeat import Sign

LOST_S = 30.0  # without a sign of a node, or of the store
PERIOD_S = 0.2
_LAST_LOOK_S = 5.0
STORE_ERRORS = (RuntimeError, ValueError, OSError)


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
        if time.monotonic() - self._answered > LOST_S or self._over.is_set():
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
                    deadline = deadline or time.monotonic() + LOST_S
                if deadline is not None and time.monotonic() > deadline:
                    late = [k for k, key in enumerate(keys) if not self.store.check([key])]
                    raise _lost(self.names[late[0]]) if late else self._gone()
                time.sleep(PERIOD_S / 2)
            ends = [_unpacked(json.loads(self.store.get(key))) for key in keys]
        except STORE_ERRORS as error:
            raise self._gone() from error
        return _together(ends, self.names)

    def leave(self) -> None:
        """Part from the others; who holds the store stays until they have."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(2 * LOST_S)
        try:
            if not self.store.check([f"{self._attempt}/end/{self.index}"]):
                self.store.set("lost", self.address)  # before all have ended
            self.store.set(f"left/{self.index}", "yes")
            # A node that is lost says nothing more; the others shall still read that it is.
            patience_s = _LAST_LOOK_S if self._lost else LOST_S
            deadline = time.monotonic() + patience_s
            while self.holds and time.monotonic() < deadline:
                if self.store.check([f"left/{k}" for k in range(self.count)]):
                    break
                time.sleep(PERIOD_S / 2)
        except STORE_ERRORS:
            pass  # its holder has gone first

    def _exchange(self) -> None:
        """Beat, listen, and, where the store is held, look after the others."""
        number = 0
        while not self._over.wait(PERIOD_S):
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
            except STORE_ERRORS:
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
            elif time.monotonic() - since > LOST_S or self.store.check([f"left/{k}"]):
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
