"""``loopmoe doctor``: what is wrong with this machine, cluster or run; and the fix."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, List, Optional

from loopmoe_train.cli.arguments import Parser
from loopmoe_train.errors import LoopMoEError, Refused

OWN_HELP = True  # argparse prints it

_DESCRIPTION = """\
What is wrong with this machine, this cluster or this run; every finding with the command that
puts it right. Settings are those of `loopmoe train`: the same command with another verb.

  loopmoe doctor --quick                          seconds; no device, no torch
  loopmoe doctor model=... cluster=ascend_a2 ...  this machine, from one process: the above with
                                                  every byte of data and checkpoint, then the device
  loopmoe doctor --cluster cluster.devices=2      all ranks of this machine together
  torchrun --nnodes 4 --nproc-per-node 8 ... -m loopmoe_train.doctor [setting=value ...]
                                                  all ranks of several machines
  loopmoe doctor --postmortem runs/NAME           why a run ended, and which rank it was

Every check is PASS, WARN (it may hurt) or FAIL (it will). docs/doctor.md lists them. Exit codes:
0 no FAIL, 1 any FAIL, 2 the command line was refused.
"""
_CLUSTER = ["name=doctor", "launcher.timeout_minutes=1"]


def run(argv: List[str]) -> int:
    """Examine, print; returns the exit code."""
    given = parser("loopmoe doctor").parse_intermixed_args(argv)
    to_json, settings = json_target(given)
    if sum(map(bool, (given.quick, given.cluster, given.postmortem))) > 1:
        raise Refused(
            "--quick, --cluster and --postmortem are several examinations", "ask for one of them"
        )
    from loopmoe_train.doctor.check import FAIL, Check, report, verdict
    from loopmoe_train.doctor.show import show

    checks: List[Check]
    # What is composed and measured on the way says so; stdout is the report's.
    with contextlib.redirect_stdout(sys.stderr):
        if given.postmortem:
            if settings:
                raise Refused(
                    f"{settings[0]}: --postmortem takes a run folder and no settings",
                    "loopmoe doctor --postmortem runs/NAME",
                )
            from loopmoe_train.doctor import postmortem

            checks = postmortem.examine(Path(given.postmortem))
        elif given.cluster:
            checks = _cluster(settings)
        else:
            checks = _node(settings, given.quick)
    write(report(checks), to_json)
    if to_json != "-":
        try:
            show(checks, sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has read enough; Python flushes once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if verdict(checks) == FAIL else 0


def parser(prog: str) -> argparse.ArgumentParser:
    """Of the verb."""
    found = Parser(
        prog=prog,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = found.add_argument
    add("settings", metavar="setting=value", nargs="*", help="Hydra overrides, as for train")
    add("--quick", action="store_true", help="leave out the device and all that reads much")
    add("--cluster", action="store_true", help="start ranks here and examine them together")
    add("--postmortem", metavar="RUN", help="a run folder that a crash has left")
    add("--json", metavar="FILE", nargs="?", const="-",
        help="write the results as JSON; without FILE to stdout, instead of the table")  # fmt: skip
    return found


def json_target(given: argparse.Namespace) -> tuple[Optional[str], List[str]]:
    """Where JSON goes ("-": stdout, None: nowhere), and the settings.

    ``--json steps=3`` names no file: the word is a setting.

    Raises:
        Refused: the file cannot be written, or a word is no setting.
    """
    target, settings = given.json, list(given.settings)
    if target is not None and "=" in target:
        target, settings = "-", [target, *settings]
    if target not in (None, "-"):
        if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
            raise Refused(f"--json {target}: no file can be there", "name another file")
    return target, settings


def write(content: Any, target: Optional[str]) -> None:
    """Print or store JSON."""
    text = json.dumps(content, indent=1) + "\n"
    if target == "-":
        sys.__stdout__.write(text)  # type: ignore[union-attr]
    elif target is not None:
        from loopmoe_train.files import write_text

        try:
            write_text(Path(target), text)
        except OSError as error:
            raise Refused(f"--json {target}: {error.strerror}", "name another file") from error


def _node(settings: List[str], quick: bool) -> List[Any]:
    from loopmoe_train.cli.auto import resolve
    from loopmoe_train.config.compose import compose_unchecked
    from loopmoe_train.doctor import node

    run = compose_unchecked(resolve(settings)[0])
    machine = node.machine_of(run)
    return node.quick(run, machine) if quick else node.node(run, machine)


def _cluster(settings: List[str]) -> List[Any]:
    from loopmoe_train.cli.auto import resolve
    from loopmoe_train.config.compose import compose
    from loopmoe_train.config.run_file import run_dir, save
    from loopmoe_train.doctor.check import failed, parse
    from loopmoe_train.launcher.cause import AGAIN
    from loopmoe_train.launcher.supervise import launch
    from loopmoe_train.train.claim import claim

    config = compose([*_CLUSTER, *resolve(settings)[0]])
    claim(config)
    save(config, run_dir(config) / "run.yaml")
    found = run_dir(config) / "doctor.json"
    found.unlink(missing_ok=True)
    lost: Optional[LoopMoEError] = None
    try:
        launch(config, module="loopmoe_train.doctor")
    except Refused:
        raise
    except LoopMoEError as error:
        lost = error
    checks = parse(json.loads(found.read_text())) if found.is_file() else []
    if lost is not None and not any(one.fix and one.reason in lost.what for one in checks):
        fix = lost.fix.removesuffix(f"; {AGAIN}") or f"see {run_dir(config)}/logs"
        checks.append(failed("cluster/meeting", lost.what, fix))
    return checks
