"""Loss and bits per byte of trained runs on the whole of their held-out text, and tasks.

usage: loopmoe evaluate RUN [RUN ...] [loop.iterations=1..6] [--json FILE]
                        [--tasks NAME[,NAME] [--task-folder DIR] [--shots N] [--limit N]]

  loopmoe evaluate runs/loopmoe_tiny runs/vanilla_tiny
  loopmoe evaluate runs/loopmoe_tiny loop.iterations=1..6   the loop run so often instead, and
                                                            how many tokens keep their prediction
  loopmoe evaluate runs/loopmoe_tiny --tasks my_task --task-folder tasks

Reads the newest checkpoint of each run folder on the layout it was trained on. gzip -9 of the
same text stands beside it as a yardstick. Where a run has several validation sets (data.mixture,
data.validation) each stands below. Tasks are those of lm-evaluation-harness (the extra `eval`), or
described in YAML files of a folder; --shots and --limit are its examples before a question and its
questions per task. The figures also go to RUN/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from loopmoe_train.cli.arguments import Parser
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.evaluation.wish import TaskRequest


def run(argv: List[str]) -> int:
    """Evaluate every run named, print a table; returns the exit code."""
    from loopmoe_train.config.run_file import load, run_dir
    from loopmoe_train.data.mixture import open_mixture
    from loopmoe_train.evaluation.wish import Wish, task_manager
    from loopmoe_train.launcher.supervise import launch
    from loopmoe_train.train.preflight import check_machine, check_text, newest_manifest

    given = _parser().parse_intermixed_args(argv)
    words, out = list(given.runs), None if given.json is None else Path(given.json)
    asked = _iterations(words)
    wrong = [w for w in words if "=" in w and not Path(w).is_dir()]
    if wrong or not words:
        raise Refused(
            f"{wrong[0]}: not a run folder" if wrong else "no run folder was given",
            "loopmoe evaluate RUN [RUN ...] [--json FILE]",
        )
    wish = Wish(asked, _tasks(given))
    configs = [load(Path(word) / "run.yaml") for word in words]
    for config in configs:
        check_machine(config, config.cluster.devices)
        if newest_manifest(config) is None:
            raise Refused(f"{run_dir(config)} has no checkpoint", "train it, or let it save")
        check_text(config, open_mixture(config))
        _check_loop(config, asked)
    if wish.tasks is not None:
        task_manager(wish.tasks)
    wish.to_environment()
    results: Dict[str, Any] = {}
    for word, config in zip(words, configs):
        # Logs of its own: the run may be training meanwhile.
        launch(config, module="loopmoe_train.train.evaluate", logs="logs/evaluate")
        results[word] = json.loads((Path(word) / "evaluation.json").read_text())
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    _show(results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="loopmoe evaluate", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="*")
    add("--json", metavar="FILE")
    add("--tasks", metavar="NAME[,NAME]")
    add("--task-folder", metavar="DIR")
    add("--shots", type=int, metavar="N")
    add("--limit", type=int, metavar="N")
    return parser


def _tasks(given: argparse.Namespace) -> Optional[TaskRequest]:
    if given.tasks is None:
        for name in ("task_folder", "shots", "limit"):
            if getattr(given, name) is not None:
                raise Refused(
                    f"--{name.replace('_', '-')} is for --tasks", "name tasks, or drop it"
                )
        return None
    names = [name for name in given.tasks.split(",") if name]
    if not names:
        raise Refused("--tasks names none", "e.g. --tasks hellaswag,piqa")
    if given.task_folder is not None and not Path(given.task_folder).is_dir():
        raise Refused(
            f"--task-folder {given.task_folder}: no such folder", "name one that is there"
        )
    for name, least in (("shots", 0), ("limit", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise Refused(f"--{name} {value}: it must be at least {least}", "give a larger number")
    return TaskRequest(names, given.task_folder, given.shots, given.limit)


def _iterations(words: List[str]) -> List[int]:
    """Take ``loop.iterations=...`` out of ``words``: 1..4, or 1,2,8."""
    found = [w for w in words if w.startswith("loop.iterations=") and not Path(w).is_dir()]
    counts: List[int] = []
    for word in found:
        words.remove(word)
        match = re.fullmatch(r"(\d+)\.\.(\d+)|\d+(,\d+)*", word.partition("=")[2])
        if match is None:
            raise Refused(f"{word}: not numbers of iterations", "loop.iterations=1..6, or =1,2,8")
        if match[1]:
            counts += range(int(match[1]), int(match[2]) + 1)
        else:
            counts += map(int, match[0].split(","))
        if not counts or min(counts) < 1:
            raise Refused(f"{word}: there is nothing below 1", "loop.iterations=1..6, or =1,2,8")
    return sorted(set(counts))


def _check_loop(config: RunConfig, asked: List[int]) -> None:
    loop, moe = config.model.loop, config.model.moe
    if asked and loop.iterations == 1:
        raise Refused(
            f"{config.name} has no loop (model.loop.iterations=1)", "leave out loop.iterations="
        )
    if asked and max(asked) > loop.iterations and moe.balance_over == "visit":
        raise Refused(
            f"{config.name} has a selection bias for each of its {loop.iterations} iterations and "
            f"none for iteration {max(asked)}",
            f"use loop.iterations=1..{loop.iterations}",
        )
    if asked and max(asked) > loop.iterations and config.parallel.pipeline_layout is not None:
        raise Refused(
            f"{config.name} has its parallel.pipeline_layout by hand: for {loop.iterations} "
            "iterations",
            f"use loop.iterations=1..{loop.iterations}",
        )


def _show(results: Dict[str, Any]) -> None:
    rows = []
    for name, result in results.items():
        rows.append((name, result))
        rows += [(f"  {part}", {"step": result["step"], **figures})
                 for part, figures in result.get("sets", {}).items()]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    print(f"{'':{width}}{'step':>8}{'tokens':>10}{'loss':>9}{'bits/byte':>11}{'gzip -9':>9}")
    for name, row in rows:
        print(
            f"{name:{width}}{row['step']:8,}{row['tokens']:10,}{row['loss']:9.4f}"
            f"{row['bits_per_byte']:11.4f}{row['gzip9_bits_per_byte']:9.4f}"
        )
    for name, result in results.items():
        if result.get("tasks"):
            _show_tasks(name, result)
    for name, result in results.items():
        counts = result.get("by_iterations", [])
        if counts:
            print(f"\n{name}, the loop run")
            print(f"{'times':>8}{'loss':>9}{'bits/byte':>11}{'same token':>12}")
        for row in counts:
            print(
                f"{row['iterations']:8}{row['loss']:9.4f}{row['bits_per_byte']:11.4f}"
                f"{row['agreement']:12.1%}"
            )


def _show_tasks(name: str, result: Dict[str, Any]) -> None:
    """A line for each metric of each task; a column for each number of iterations."""
    counts = result.get("by_iterations", [])
    columns: List[Tuple[str, Dict[str, Any]]] = [("", result["tasks"])]
    columns += [(f"x{row['iterations']}", row["tasks"]) for row in counts]
    width = max(len(label) for label, _ in _metrics(result["tasks"])) + 2
    print(
        f"\n{name}, tasks" + (" (as trained; the loop run 1 time, 2 times ...)" if counts else "")
    )
    if counts:
        print((" " * width + "".join(f"{head:>10}" for head, _ in columns)).rstrip())
    for label, key in _metrics(result["tasks"]):
        values = [tasks[key[0]][key[1]] for _, tasks in columns]
        print(f"{label:{width}}" + "".join(f"{value:10.4f}" for value in values))


def _metrics(tasks: Dict[str, Any]) -> Iterator[Tuple[str, Tuple[str, str]]]:
    for task, figures in tasks.items():
        for metric in figures:
            if metric.split(",")[0] != "sample_len":
                yield f"  {task} {metric.replace(',none', '')}", (task, metric)
