"""Run a function on real gloo ranks, one process each, and collect what every rank returns.

A launch costs seconds, so a function should do many cases. Arguments and results are passed as
files of this test run's own temporary folder.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, List

ROOT = Path(__file__).parents[2]


def run(function: str, ranks: int, *arguments: Any, timeout_s: float = 240) -> List[Any]:
    """Call ``function`` ("module:name") with ``arguments`` on every rank; results by rank.

    Raises:
        AssertionError: a rank failed or took too long; it carries that rank's last words.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        (folder / "arguments").write_bytes(pickle.dumps(arguments))
        processes = [_start(function, rank, ranks, folder) for rank in range(ranks)]
        try:
            for rank, process in enumerate(processes):
                code = process.wait(timeout_s)
                assert code == 0, f"rank {rank} of {ranks}: {(folder / f'log-{rank}').read_text()}"
        except subprocess.TimeoutExpired:
            logs = [(folder / f"log-{rank}").read_text()[-2000:] for rank in range(ranks)]
            raise AssertionError(f"{function} took longer than {timeout_s} s: {logs}") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def _start(function: str, rank: int, ranks: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = dict(
        os.environ,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOOPMOE_RENDEZVOUS=f"file://{folder}/rendezvous",
        LOOPMOE_DEVICE="cpu",
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
    )
    command = [sys.executable, "-W", "ignore", "-m", "tests.dist.ranks", function, str(folder)]
    with open(folder / f"log-{rank}", "wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def main(function: str, folder: Path) -> None:
    module, _, name = function.partition(":")
    arguments = pickle.loads((folder / "arguments").read_bytes())
    result = getattr(importlib.import_module(module), name)(*arguments)
    (folder / f"result-{os.environ['RANK']}").write_bytes(pickle.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo must not hold back a rank that is done


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
