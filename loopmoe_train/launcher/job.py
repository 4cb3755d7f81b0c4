"""The processes of one attempt: the ranks themselves, or one torchrun or mpirun above them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

import psutil

from loopmoe_train.train import heartbeat
from loopmoe_train.train.heartbeat import Sign

_GRACE_S = 2.0  # for ranks that lost a peer to notice it and leave by themselves


class Job:
    """What was started and what the ranks of it say.

    Args:
        processes: the ranks in order, or one launcher above them.
        world: ranks of the job.
        here: those of them on this machine; None: mpirun places them, and of those elsewhere all
            that is seen is what it tells and they leave in the run folder.
        told_by: for a launcher above the ranks: (rank, pid if known) -> its exit code, if it is
            told (negative: signal); None if the processes are the ranks.
    """

    def __init__(
        self,
        processes: List[subprocess.Popen[bytes]],
        world: int,
        here: Optional[int],
        scratch: Path,
        told_by: Optional[Callable[[int, Optional[int]], Optional[int]]] = None,
    ) -> None:
        self.processes = processes
        self.world, self.here = world, here
        self.scratch = scratch
        self.told_by = told_by

    def signs(self) -> Dict[int, Sign]:
        """The last sign of every rank of this machine that has given one, in their order."""
        found = {r: heartbeat.read(path) for r, path in heartbeat.beat_files(self.scratch).items()}
        return {rank: sign for rank, sign in sorted(found.items()) if sign is not None}

    def endings(self) -> Dict[int, Optional[int]]:
        """Exit codes (negative: signal) of the ranks that have ended; None where it is unknown."""
        if self.told_by is None:
            codes = {rank: process.poll() for rank, process in enumerate(self.processes)}
            return {rank: code for rank, code in codes.items() if code is not None}
        signs, over = self.signs(), self.processes[0].poll()
        ended: Dict[int, Optional[int]] = {}
        for rank, sign in signs.items():
            if over is not None or not runs(sign.pid):
                ended[rank] = 0 if sign.done else self.told_by(rank, sign.pid)
        if over is not None:
            ended |= self._unseen(signs, over)
        return ended

    def _unseen(self, signs: Dict[int, Sign], over: int) -> Dict[int, Optional[int]]:
        """Ends of ranks without a sign, now that the launcher has ended with code ``over``."""
        unseen = [rank for rank in range(self.world) if rank not in signs]
        if self.here is not None:
            # They ended before their first sign; on one node of several, which they are is a guess.
            return dict.fromkeys(unseen[: max(0, self.here - len(signs))], over)
        assert self.told_by is not None
        told = {rank: self.told_by(rank, None) for rank in unseen}
        return {rank: code for rank, code in told.items() if code is not None}

    def over(self) -> bool:
        """Whether everything that was started has ended."""
        return all(process.poll() is not None for process in self.processes)

    def send(self, number: int) -> None:
        """Send a signal to every rank that runs; to the launcher above while none is known."""
        if self.told_by is not None and not self.signs():
            self.processes[0].send_signal(number)
        for rank in range(self.world):
            self.send_to(rank, number)

    def send_to(self, rank: int, number: int) -> None:
        """Send a signal to one rank if it runs."""
        if self.told_by is None:
            self.processes[rank].send_signal(number)  # does nothing once it has ended
            return
        sign = self.signs().get(rank)
        if sign is not None and runs(sign.pid):
            try:
                os.kill(sign.pid, number)
            except ProcessLookupError:
                pass

    def end(self) -> None:
        """End all that still runs: ranks are asked, then killed; nothing is left behind."""
        if self.over():
            return
        self.send(signal.SIGTERM)
        self._wait(_GRACE_S)
        self.send(signal.SIGKILL)
        self._wait(_GRACE_S if self.told_by else 0.0)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.over() and time.monotonic() < deadline:
            time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be buried."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
