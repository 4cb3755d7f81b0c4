"""Start the ranks of a run on this machine and watch over them.

When one rank ends badly the others are ended and the cause is told in one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, Dict, List, Optional

from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import LoopMoEError, RankLost, Refused, RunFailed, TrainingStopped

_POLL_S = 0.1
_GRACE_S = 5.0  # between asking the other ranks to end and killing them
_KINDS = {kind.exit_code: kind for kind in (RunFailed, Refused, TrainingStopped, RankLost)}


def launch(run: RunConfig, module: str = "loopmoe_train.train") -> None:
    """Run ``python -m module --run <run folder>/run.yaml`` once per rank; return when all are done.

    The output of rank 0 is this process's; everything else goes to ``logs/rank-<r>.log``.

    Raises:
        RankLost: a rank was killed.
        LoopMoEError: what the first failing rank said.
    """
    logs = run_dir(run) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loopmoe-") as scratch:
        ranks = [_start(run, module, rank, logs, Path(scratch)) for rank in range(_world(run))]
        previous = _forward_signals(ranks)
        try:
            _watch(ranks, logs, Path(scratch))
        finally:
            _end(ranks)
            for number, handler in previous.items():
                signal.signal(number, handler)


def _world(run: RunConfig) -> int:
    return run.cluster.devices


def _start(
    run: RunConfig, module: str, rank: int, logs: Path, scratch: Path
) -> subprocess.Popen[bytes]:
    env = dict(
        os.environ,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(_world(run)),
        # megatron.core is ported to a device when it is imported, before run.yaml is read.
        LOOPMOE_DEVICE=run.cluster.device,
        # A file, not a port: nothing to collide with and nothing to reach from outside.
        LOOPMOE_RENDEZVOUS=f"file://{scratch}/rendezvous",
        LOOPMOE_FAILURE_FILE=str(failure_file(scratch, rank)),
        OMP_NUM_THREADS=str(run.launcher.threads_per_rank),
        PYTHONUNBUFFERED="1",
    )
    if sys.platform.startswith("linux"):
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", module, "--run", str(run_dir(run) / "run.yaml")]
    with open(logs / f"rank-{rank}.log", "ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        return subprocess.Popen(
            command,
            env=env,
            stdout=None if rank == 0 else log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def failure_file(scratch: Path, rank: int) -> Path:
    """Where a rank leaves its one line."""
    return scratch / f"failure-{rank}.json"


def _forward_signals(ranks: List[subprocess.Popen[bytes]]) -> Dict[int, Any]:
    """First SIGINT or SIGTERM: passed on to the ranks, which finish the step. Second: kill."""
    asked: List[int] = []

    def forward(number: int, frame: Optional[FrameType]) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL if asked else number)
        asked.append(number)

    return {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}


def _watch(ranks: List[subprocess.Popen[bytes]], logs: Path, scratch: Path) -> None:
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            time.sleep(2 * _POLL_S)  # let a rank that failed first write its line
            raise _cause([rank.poll() for rank in ranks], logs, scratch)
        if all(code == 0 for code in codes):
            return
        time.sleep(_POLL_S)


def _cause(codes: List[Optional[int]], logs: Path, scratch: Path) -> LoopMoEError:
    """The failure to tell: a killed rank, else what the earliest failing rank said."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return RankLost(
                f"rank {rank} was ended by {name}{hint}; the other ranks were stopped",
                f"see {logs}/rank-{rank}.log; the same command resumes from the last checkpoint",
            )
    said = [json.loads(p.read_text()) for p in scratch.glob("failure-*.json")]
    # A rank that loses its peer fails too, a moment later: the first one knows the cause.
    said.sort(key=lambda entry: (entry["lost_peer"], entry["time"]))
    if said:
        first = said[0]
        return _KINDS.get(first["exit_code"], RunFailed)(
            f"rank {first['rank']}: {first['what']}", first["fix"]
        )
    rank, code = next((r, c) for r, c in enumerate(codes) if c)
    return RunFailed(
        f"rank {rank} ended with exit code {code} and said nothing", f"see {logs}/rank-{rank}.log"
    )


def _end(ranks: List[subprocess.Popen[bytes]]) -> None:
    """Terminate what still runs, then kill it."""
    running = [rank for rank in ranks if rank.poll() is None]
    for rank in running:
        rank.terminate()
    deadline = time.monotonic() + _GRACE_S
    for rank in running:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
