"""Ranks that meet at a store, stage by stage, and can tell who does not come.

A collective that waits for a lost rank says at best that time is over. Here every rank writes down
that it has come to a stage before it enters, so that the others know who has not, and where that
one was seen last. Text only: nothing that is read from the store is unpickled.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any, Dict, List, Sequence

import torch.distributed as dist

from loopmoe_train.errors import RunFailed
from loopmoe_train.parallel.environment import Place

_POLL_S = 0.02
_LAST_WORDS_S = 2.0  # for ranks that a collective has failed to say so
_READ_S = 20.0
_FAILED = "failed"


class Missing(RunFailed):
    """Ranks did not come.

    Attributes:
        ranks: those.
        reporter: the rank that tells it: the first of the others.
    """

    def __init__(self, ranks: Sequence[int], world: int, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.ranks = list(ranks)
        self.reporter = min(set(range(world)) - set(ranks), default=0)


class Meeting:
    """The stages of all ranks.

    Args:
        store: that of the job.
        host: name of this machine.
        patience_s: how long a stage may last.
    """

    def __init__(self, store: dist.Store, here: Place, host: str, patience_s: float) -> None:
        self.here, self.host, self.patience_s = here, host, patience_s
        self.store = store
        self.store.set_timeout(timedelta(seconds=patience_s))

    def come(self, stage: str, ranks: Sequence[int]) -> None:
        """Come to ``stage`` and wait for all of ``ranks``, of which this is one.

        Raises:
            Missing: some have not come in time, here or where other ranks wait.
        """
        counter = f"{stage}/count/{min(ranks)}"
        try:
            self.store.set(f"{stage}/{self.here.rank}", self.host)
            self.store.add(counter, 1)
            deadline = time.monotonic() + self.patience_s
            while self.store.add(counter, 0) < len(ranks):
                if self.store.check([_FAILED]):
                    raise self._told()
                if time.monotonic() > deadline:
                    late = [r for r in ranks if not self.store.check([f"{stage}/{r}"])]
                    raise self._tell(stage, late, f"not within {self.patience_s:.0f} s")
                time.sleep(_POLL_S)
        except RuntimeError as error:
            raise self._no_store(error) from error

    def failed(self, stage: str, ranks: Sequence[int], error: Exception) -> Missing:
        """What to raise when a collective of ``ranks`` ended with ``error``: those that neither got
        through nor failed themselves hold the others up."""
        try:
            self.store.set(f"{stage}/over/{self.here.rank}", "failed")
            time.sleep(_LAST_WORDS_S)
            if self.store.check([_FAILED]):
                return self._told()
            late = [r for r in ranks if not self.store.check([f"{stage}/over/{r}"])]
            words = " ".join(str(error).split())[:200]
            return self._tell(stage, late, f"the collective failed: {words}")
        except RuntimeError as gone:
            return self._no_store(gone)

    def passed(self, stage: str) -> None:
        """This rank is through with the collective of ``stage``."""
        self.store.set(f"{stage}/over/{self.here.rank}", "passed")

    def tell(self, name: str, content: Any) -> None:
        """Let all know ``content``, as JSON."""
        self.store.set(f"{name}/{self.here.rank}", json.dumps(content))

    def told(self, name: str, rank: int) -> Any:
        """What ``rank`` told; it is waited for.

        Raises:
            Missing: it has not told it in time.
        """
        try:
            return json.loads(self.store.get(f"{name}/{rank}"))
        except RuntimeError as error:
            raise self._silent(name, rank, error) from error

    def leave(self, absent: int = 0) -> None:
        """The last call of every rank: rank 0, which may keep the store, goes when all but
        ``absent`` others have read what they need, or after a while."""
        try:
            if self.here.rank:
                self.store.add("left", 1)
                return
            deadline = time.monotonic() + min(self.patience_s, _READ_S)
            while self.store.add("left", 0) < self.here.world - 1 - absent:
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_S)
        except RuntimeError:
            pass  # the store is gone: there is nothing to wait for

    def _silent(self, stage: str, rank: int, error: Exception) -> Missing:
        """Why a rank's word cannot be read: it has said nothing, or the store is gone."""
        try:
            if self.store.check([_FAILED]):
                return self._told()
            return self._tell(stage, [rank], f"not within {self.patience_s:.0f} s")
        except RuntimeError:
            return self._no_store(error)

    def _tell(self, stage: str, late: List[int], why: str) -> Missing:
        """Fix the first failure for all ranks: later ones only follow from it."""
        about = {"stage": stage, "late": late, "why": why}
        kept = self.store.compare_set(_FAILED, "", json.dumps(about))
        return self._missing(json.loads(kept))

    def _told(self) -> Missing:
        return self._missing(json.loads(self.store.get(_FAILED)))

    def _missing(self, about: Dict[str, Any]) -> Missing:
        late, world = about["late"], self.here.world
        if not late:
            return Missing(
                [], world, f"stage {about['stage']}: {about['why']}",
                "see what each rank says of it; the network between them is suspect",
            )  # fmt: skip
        who = ", ".join(f"rank {rank} ({self._where(rank)})" for rank in late[:8])
        more = f" and {len(late) - 8} more" if len(late) > 8 else ""
        what = (
            f"{who}{more} did not come to stage {about['stage']}: {about['why']}; "
            f"{world - len(late)} of {world} ranks did"
        )
        hosts = sorted({self._host(rank) for rank in late} - {""})
        there = f"on {', '.join(hosts)}" if hosts else "on the machine where they should run"
        fix = (
            f"look {there}: ps aux | grep loopmoe_train; then that machine's dmesg, and its network"
        )
        return Missing(late, world, what, fix)

    def _where(self, rank: int) -> str:
        host = self._host(rank)
        if not host:
            return "host unknown: it never came"
        return f"host {host}"

    def _host(self, rank: int) -> str:
        """Of a rank: as it said itself, or as a neighbour on its machine did."""
        each = max(1, self.here.local_world)
        first = rank // each * each
        for one in (rank, *range(first, min(first + each, self.here.world))):
            if self.store.check([f"{START}/{one}"]):
                return self.store.get(f"{START}/{one}").decode()
        return ""

    def _no_store(self, error: Exception) -> Missing:
        words = " ".join(str(error).split())[:200]
        return Missing(
            [0], self.here.world,
            f"the store does not answer: rank 0, which keeps it, is stopped or gone ({words})",
            "look on the machine of rank 0 (MASTER_ADDR): ps aux | grep loopmoe_train",
        )  # fmt: skip


START = "start"  # the first stage, of all ranks
