"""Jobs for Slurm and Volcano: a template of ``launch/``, filled in and handed to the scheduler.

On every node the job runs this same command with launcher=torchrun (one node: local), so that
supervision and restarts are those of nodes.py. Neither was tried on a real cluster: the script has
been run with stand-ins for srun and scontrol, the manifest has been read back.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Dict, List, Mapping

from loopmoe_train.config.launcher_rules import PORT
from loopmoe_train.config.run_file import refuse_secrets, run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.files import write_text

KINDS = ("slurm", "volcano")

_FILES = {"slurm": "slurm.sbatch", "volcano": "volcano.yaml"}
_PROGRAMS = {"slurm": "sbatch", "volcano": "kubectl"}
_ONLY_FOR_BATCH = ("kind", "nodes", "queue", "minutes", "image", "volume", "arguments", "dry_run")
_CONDITION = re.compile(r"(?P<line>.*?)\s+# if (?P<name>\w+)")


class _Template(string.Template):
    """``@{name}``: dollars belong to the shell."""

    delimiter = "@"


def shown(run: RunConfig, overrides: List[str]) -> str:
    """The job as a file, and as its last line how it is submitted."""
    program = [_PROGRAMS[run.launcher.kind], *_submission(run, _path(run))]
    return f"{job(run, overrides)}# {' '.join(shlex.join(program).splitlines())}"


def submit(run: RunConfig, overrides: List[str]) -> str:
    """Write the job into the run folder and submit it; what the scheduler said.

    Raises:
        Refused: the scheduler's program is missing, or a setting holds a secret.
        RunFailed: the scheduler did not take it.
    """
    kind, program = run.launcher.kind, _PROGRAMS[run.launcher.kind]
    found = shutil.which(program)
    if found is None:
        raise Refused(
            f"launcher={kind}: there is no {program} on PATH",
            "start it where jobs are submitted, or print the job with launcher.dry_run=true",
        )
    path = _path(run)
    text = job(run, overrides)
    refuse_secrets(text, path)
    try:
        write_text(path, text)
    except OSError as error:
        raise RunFailed(
            f"cannot write {path}: {error.strerror}", "choose another runs_dir= or name="
        ) from error
    done = subprocess.run(
        [found, *_submission(run, path)], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        said = " ".join(done.stderr.split())[:400] or f"exit code {done.returncode}"
        raise RunFailed(f"{program} did not take {path}: {said}", "see launcher.* in run settings")
    return f"{done.stdout.strip()}\njob: {path}"


def job(run: RunConfig, overrides: List[str]) -> str:
    """The script or manifest that trains the run composed of ``overrides``."""
    launcher, device = run.launcher, run.cluster.device
    words = _on_a_node(run, overrides)
    values: Dict[str, str] = {
        "nodes": str(launcher.nodes),
        "devices": str(run.cluster.devices // launcher.nodes),
        "queue": launcher.queue or "",
        "minutes": str(launcher.minutes or ""),
        "folder": shlex.quote(os.getcwd()),
    }
    if launcher.kind == "slurm":
        values["name"] = _plain(run.name)
        values["command"] = shlex.join([sys.executable, "-m", "loopmoe_train.cli", *words])
    else:
        name = _label(run.name)
        if launcher.nodes > 1:
            words.append(f"launcher.endpoint={name}-node-0.{name}:{PORT}")
        # Kubernetes puts variables in for $(NAME); $$ is a dollar.
        command = [word.replace("$", "$$") for word in ["loopmoe", *words]]
        values |= {"name": json.dumps(name), "command": json.dumps(command)}
        values |= {key: json.dumps(getattr(launcher, key)) for key in ("image", "volume")}
        values["queue"] = json.dumps(launcher.queue) if launcher.queue else ""
    holds = {
        device: True,
        "accelerator": device != "cpu",
        "several": launcher.nodes > 1,
        "single": launcher.nodes == 1,
        "queue": bool(launcher.queue),
        "minutes": bool(launcher.minutes),
    }
    text = files("loopmoe_launch").joinpath(_FILES[launcher.kind]).read_text(encoding="utf-8")
    return _Template(_chosen(text, holds)).substitute(values)


def _chosen(text: str, holds: Mapping[str, bool]) -> str:
    """The lines without a condition, and those whose condition holds."""
    kept = []
    for line in text.splitlines():
        match = _CONDITION.fullmatch(line)
        if match is None:
            kept.append(line)
        elif holds.get(match["name"], False):
            kept.append(match["line"])
    return "\n".join(kept) + "\n"


def _on_a_node(run: RunConfig, overrides: List[str]) -> List[str]:
    """The words of the command that runs on every node."""
    ours = tuple(f"launcher.{name}=" for name in _ONLY_FOR_BATCH)
    kept = [word for word in overrides if not word.startswith(("launcher=", *ours))]
    if run.launcher.nodes == 1:
        return ["train", *kept, "launcher=local"]
    return ["train", *kept, "launcher=torchrun", f"launcher.nodes={run.launcher.nodes}"]


def _submission(run: RunConfig, path: Path) -> List[str]:
    """What the scheduler's program is given."""
    if run.launcher.kind == "volcano":
        return ["apply", *run.launcher.arguments, "-f", str(path)]
    output = str(path.parent.absolute()).replace("%", "%%") + "/slurm-%j.out"
    return [f"--output={output}", *run.launcher.arguments, str(path)]


def _path(run: RunConfig) -> Path:
    return run_dir(run) / _FILES[run.launcher.kind]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _label(name: str) -> str:
    """A name for Kubernetes, that pods and a service are named after."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}".rstrip("-")
