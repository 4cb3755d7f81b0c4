"""How long a fault costs: kill random ranks of a real run, again and again.

Runs in the process of the verb. A thread sends SIGKILL to a random rank at a random moment after
the run has got further than ever; the supervisor restarts it. ``detect_s`` is from the signal to
the supervisor's notice, ``restart_s`` from the signal to the end of the first step afterwards.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Set

import psutil

from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.observe.jsonl import read_jsonl
from loopmoe_train.train.claim import claim
from loopmoe_train.train.preflight import prepare

_PATIENCE_S = 300.0  # for the run to get further


def measure(
    overrides: Sequence[str], kills: int, launch: Callable[[RunConfig], object]
) -> Dict[str, Any]:
    """Kill a rank ``kills`` times; seconds of every fault, their medians and 95th percentiles.

    The run folder is made afresh.

    Args:
        launch: runs the job to its end, restarting it (launcher.supervise.launch).

    Raises:
        Refused: another launcher than the local one.
        RunFailed: the run did not get further, or was not restarted.
    """
    words = ["experiment=bench_resume", f"launcher.max_restarts={kills}", *overrides]
    from loopmoe_train.config.compose import compose

    wanted = compose(words)
    if wanted.launcher.kind != "local":
        raise Refused(
            f"launcher={wanted.launcher.kind}: its ranks are no children of this process",
            "measure with launcher=local",
        )
    claim(wanted)  # before it is emptied
    shutil.rmtree(run_dir(wanted), ignore_errors=True)
    run, _ = prepare(words, print)
    killer = _Killer(run, kills)
    killer.start()
    try:
        launch(run)
    finally:
        killer.over.set()
        killer.join()
    faults = _faults(run, killer.killed_at)
    if len(faults) < kills:
        raise RunFailed(f"only {len(faults)} of {kills} faults were survived: {killer.problem}")
    return dict(
        ranks=run.cluster.devices,
        kills=kills,
        faults=faults,
        detect_s=spread([fault["detect_s"] for fault in faults]),
        restart_s=spread([fault["restart_s"] for fault in faults]),
    )


def spread(values: Sequence[float]) -> Dict[str, float]:
    """Median and 95th percentile (nearest rank)."""
    ordered = sorted(values)
    index = max(0, -(-95 * len(ordered) // 100) - 1)
    return dict(median=statistics.median(ordered), p95=ordered[index])


def show(table: Dict[str, Any]) -> None:
    """Print the table and the headline."""
    print(f"\n{table['kills']} kills of a run on {table['ranks']} ranks")
    print(f"{'':26}{'median s':>10}{'p95 s':>10}")
    rows = {"kill to notice": "detect_s", "kill to next step done": "restart_s"}
    for label, key in rows.items():
        print(f"{label:26}{table[key]['median']:10.2f}{table[key]['p95']:10.2f}")
    print(
        f"headline: detect_s={table['detect_s']['median']:.2f} "
        f"restart_p95_s={table['restart_s']['p95']:.2f}"
    )


class _Killer(threading.Thread):
    """Kills a rank whenever the run has got further, then asks it to stop.

    Attributes:
        killed_at: times of the kills, CLOCK_MONOTONIC.
    """

    def __init__(self, run: RunConfig, kills: int) -> None:
        super().__init__(daemon=True)
        self.metrics, self.kills, self.rng = run_dir(run) / "metrics.jsonl", kills, random.Random(0)
        self.killed_at: List[float] = []
        self.over = threading.Event()
        self.problem = ""

    def run(self) -> None:
        furthest, killed = 0, set[int]()
        for _ in range(self.kills):
            self._wait_past(furthest, killed)
            if self.over.wait(self.rng.uniform(0.0, 0.5)):
                return
            ranks = _ranks()
            if not ranks:
                self._give_up("no rank was found to kill")
                return
            furthest = self._last_step() + 1  # one more may be recorded before the signal arrives
            killed = {rank.pid for rank in ranks}
            self.killed_at.append(time.monotonic())
            self.rng.choice(ranks).kill()
        self._wait_past(furthest, killed)
        if not self.over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)  # the supervisor passes it on

    def _wait_past(self, step: int, killed: Set[int]) -> None:
        """Wait until the processes ``killed`` are gone and ``step`` is passed, or give up."""
        deadline = time.monotonic() + _PATIENCE_S
        while not self.over.wait(0.05):
            if self._last_step() > step and not killed & {rank.pid for rank in _ranks()}:
                return
            if time.monotonic() > deadline:
                self._give_up(f"it did not get past step {step} in {_PATIENCE_S:.0f} s")

    def _give_up(self, problem: str) -> None:
        self.problem = problem
        self.over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def _last_step(self) -> int:
        try:
            return max((line["step"] for line in read_jsonl(self.metrics)), default=0)
        except Refused:
            return 0  # not there yet, or a kill has torn a line and the restart will mend it


def _ranks() -> List[psutil.Process]:
    """The ranks that run."""
    found = []
    for child in psutil.Process().children():
        try:
            if "loopmoe_train.train" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.Error:
            pass  # it has just ended
    return found


def _faults(run: RunConfig, killed_at: Sequence[float]) -> List[Dict[str, float]]:
    """Kill by kill: noticed after, next step done after."""
    logs = run_dir(run) / "logs"
    found = []
    for number, moment in enumerate(killed_at):
        path = logs / f"attempt-{number}.json"
        report = json.loads(path.read_text()) if Path(path).exists() else {}
        if report.get("fault_to_next_step_s") is None:
            break
        last_sign = report["last_sign_at"]
        found.append(
            dict(
                detect_s=last_sign + report["detection_s"] - moment,
                restart_s=last_sign + report["fault_to_next_step_s"] - moment,
            )
        )
    return found
