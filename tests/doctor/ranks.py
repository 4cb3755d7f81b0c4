"""Real ranks of an examination, started as torchrun starts them, each with faults of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Sequence

from loopmoe_train.parallel.addresses import free_port

ROOT = Path(__file__).parents[2]
_SECONDS = 150.0


@dataclass
class Rank:
    """One rank.

    Attributes:
        words: more settings, for it alone.
        variables: more environment, for it alone.
        host: name of the machine that it believes to be on, if it is to be another.
    """

    number: int
    words: Sequence[str] = ()
    variables: Dict[str, str] = field(default_factory=dict)
    host: str = ""


class Examined:
    """Starts ``ranks`` of ``world``; the report is in ``folder``."""

    def __init__(
        self, folder: Path, ranks: Sequence[Rank], world: int, *words: str, minutes: float = 0.3
    ) -> None:
        self.report = folder / "found.json"
        self.logs = {rank.number: folder / f"log-{rank.number}" for rank in ranks}
        common = [
            f"runs_dir={folder}/runs", f"data.path={folder}/data",
            f"launcher.timeout_minutes={minutes}", *words,
        ]  # fmt: skip
        port = free_port()
        self.processes = {}
        for rank in ranks:
            command = [sys.executable, "-m", "loopmoe_train.doctor", "--json", str(self.report),
                       *common, *rank.words]  # fmt: skip
            if rank.host:
                named = f'hostname {rank.host}; exec "$@"'
                command = ["unshare", "--uts", "sh", "-c", named, "sh", *command]
            environment = dict(
                os.environ,
                RANK=str(rank.number), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                LOCAL_RANK="0" if rank.host else str(rank.number),
                LOCAL_WORLD_SIZE="1" if rank.host else str(world),
                MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1",
                **rank.variables,
            )  # fmt: skip
            with open(self.logs[rank.number], "wb") as log:
                self.processes[rank.number] = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log,
                )  # fmt: skip

    def when(self, stage: str) -> None:
        """Wait until rank 0 has passed ``stage``."""
        deadline = time.monotonic() + _SECONDS
        while f"doctor: {stage}\n" not in self.logs[0].read_text():
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.said()
            time.sleep(0.01)

    def send(self, rank: int, number: signal.Signals) -> None:
        self.processes[rank].send_signal(number)

    def codes(self, *ranks: int) -> List[int]:
        """Exit codes of ``ranks``; the others are killed."""
        try:
            return [self.processes[rank].wait(_SECONDS) for rank in ranks]
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()

    def checks(self) -> List[Any]:
        """The report."""
        from loopmoe_train.doctor.check import parse

        assert self.report.is_file(), self.said()
        return parse(json.loads(self.report.read_text()))

    def said(self) -> str:
        return "\n".join(f"rank {r}: {log.read_text()[-1500:]}" for r, log in self.logs.items())
