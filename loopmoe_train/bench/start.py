"""From `loopmoe train` to the end of the first step, by launcher: what starting costs.

Each start is the real command in a process of its own, on a very small model, so that nearly all of
the time is starting: Python, torch, megatron-core, the rendezvous, the first step. The launchers
take turns. Two nodes are two commands on this machine; with ``launcher.hosts`` or
``launcher.hostfile`` mpirun over those machines is measured as well.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

from loopmoe_train.config.compose import compose
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.errors import RunFailed
from loopmoe_train.parallel.addresses import free_port

_SETTINGS = ["experiment=smoke", "name=bench-start", "steps=2", "optim.warmup_steps=1",
             "eval_interval=0", "eval_batches=1", "observe.sample_tokens=1",
             "cluster.peak_tflops_fp32=1"]  # fmt: skip
_HOSTS = ("launcher.hosts=", "launcher.hostfile=", "launcher.arguments=", "launcher.endpoint=")


def measure(overrides: Sequence[str], rounds: int, mpirun: bool) -> Dict[str, Any]:
    """Seconds to the end of the first step of every start; medians and ranges by way.

    Args:
        mpirun: whether there is one.

    Raises:
        Refused: a setting is wrong.
        RunFailed: a start failed.
    """
    afar = [word for word in overrides if word.startswith(_HOSTS)]
    words = [*_SETTINGS, *(word for word in overrides if word not in afar)]
    ranks = compose(words).cluster.devices
    ways = _ways(ranks, afar, mpirun)
    for more in ways.values():
        compose([*words, *more])
    _start(words, ways["local"])  # prepares the data and fills the page cache
    seconds: Dict[str, List[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, more in ways.items():
            seconds[way].append(_start(words, more))
    rows = {way: dict(median=statistics.median(found), low=min(found), high=max(found), all=found)
            for way, found in seconds.items()}  # fmt: skip
    return dict(ranks=ranks, rounds=rounds, first_step_s=rows)


def show(table: Dict[str, Any]) -> None:
    """Print the table and the headline."""
    print(f"\n{table['ranks']} ranks, command to end of first step, {table['rounds']} rounds")
    print(f"{'':26}{'median s':>10}{'lowest':>10}{'highest':>10}")
    for way, row in table["first_step_s"].items():
        print(f"{way:26}{row['median']:10.2f}{row['low']:10.2f}{row['high']:10.2f}")
    named = [f"{way.replace(' ', '_')}_s={row['median']:.2f}"
             for way, row in table["first_step_s"].items()]  # fmt: skip
    print(f"headline: {' '.join(named)}")


def _ways(ranks: int, afar: List[str], mpirun: bool) -> Dict[str, List[str]]:
    ways = {"local": ["launcher=local"], "torchrun": ["launcher=torchrun"]}
    if mpirun:
        ways["mpirun"] = ["launcher=mpirun"]
    if ranks % 2 == 0:
        ways["torchrun 2 nodes"] = ["launcher=torchrun", "launcher.nodes=2",
                                    f"cluster.devices_per_node={ranks // 2}"]  # fmt: skip
        ways["torchrun 2 nodes"].append(f"launcher.endpoint=127.0.0.1:{free_port()}")
    if afar:
        ways["mpirun hosts"] = ["launcher=mpirun", *afar]
    return ways


def _start(words: List[str], more: List[str]) -> float:
    """Start a run afresh; seconds from the command to the end of its first step.

    Raises:
        RunFailed: it failed; what it said.
    """
    folder = run_dir(compose([*words, *more]))
    shutil.rmtree(folder, ignore_errors=True)
    commands = 2 if "launcher.nodes=2" in more else 1
    line = [sys.executable, "-m", "loopmoe_train.cli", "train", *words, *more]
    env = {key: value for key, value in os.environ.items() if key != "LOOPMOE_STARTED"}
    started = [subprocess.Popen(line, env=env, stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(commands)]  # fmt: skip
    said = [process.communicate() for process in started]
    for process, (_, err) in zip(started, said):
        if process.returncode:
            last = (err.strip().splitlines() or ["it said nothing"])[-1]
            raise RunFailed(f"{' '.join(more)}: {last}", f"see {folder}/logs")
    summary = json.loads(Path(folder / "summary.json").read_text())
    return float(summary["first_step_s"])
