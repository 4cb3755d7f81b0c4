"""mpirun over several machines: who takes part, and what their ranks get of this environment.

Open MPI starts a daemon on every host with ssh and hands on no variable that is not named. Names
alone stand on its command line, never values.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping

from loopmoe_train.config.launcher_rules import PORT, endpoint_of, spans_nodes
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.environment_table import BY_NAME, KNOWN
from loopmoe_train.errors import Refused

# Beside all that the environment table knows.
_FORWARDED = {*BY_NAME, *KNOWN, "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "MASTER_ADDR",
              "MASTER_PORT", "TMPDIR", "TERM"}  # fmt: skip
_PREFIXES = ("LOOPMOE_", "OMP_", "GLOO_", "NCCL_", "HCCL_", "ASCEND_", "ACL_", "CUDA_", "TORCH_",
             "PYTORCH_", "WANDB_", "HF_")  # fmt: skip
_LINE = re.compile(
    r"(?P<name>[^\s:=]+)(?:\s+slots\s*=\s*(?P<slots>\S+))?(?:\s+max[_-]slots\s*=\s*\S+)?"
)


@dataclass(frozen=True)
class Host:
    """A machine and how many ranks fit on it."""

    name: str
    slots: int


def options(run: RunConfig, env: Mapping[str, str]) -> List[str]:
    """Open MPI's options for where the ranks run and what they get of ``env``.

    Raises:
        Refused: the hostfile cannot be read, or does not hold the ranks.
    """
    if not spans_nodes(run.launcher):
        return ["--oversubscribe"]  # more ranks than cores are the rule on a laptop
    hosts = of(run)
    per_host = run.cluster.devices // len(hosts)
    if run.launcher.hostfile is not None:
        where = ["--hostfile", os.path.abspath(run.launcher.hostfile)]
    else:
        where = ["-H", ",".join(f"{host.name}:{host.slots}" for host in hosts)]
    named = [name for name in sorted(env) if name in _FORWARDED or name.startswith(_PREFIXES)]
    # Neighbouring ranks on one host, as the layout has it; cores are not counted.
    where += ["--map-by", f"ppr:{per_host}:node:OVERSUBSCRIBE"]
    return [*where, *(word for name in named for word in ("-x", name))]


def variables(run: RunConfig) -> Dict[str, str]:
    """Where the ranks of mpirun on several machines find each other; nothing for all others."""
    if run.launcher.kind != "mpirun" or not spans_nodes(run.launcher):
        return {}
    host, port = endpoint_of(run.launcher)
    if not host:
        host, port = of(run)[0].name, PORT
    return dict(MASTER_ADDR=host, MASTER_PORT=str(port))


def of(run: RunConfig) -> List[Host]:
    """The machines in order; as many ranks on each.

    Raises:
        Refused: the hostfile cannot be read, or does not hold the ranks.
    """
    if run.launcher.hostfile is None:
        per_host = run.cluster.devices // len(run.launcher.hosts)
        return [Host(name, per_host) for name in run.launcher.hosts]
    path, devices = Path(run.launcher.hostfile), run.cluster.devices
    hosts = read(path)
    whole = len(hosts) * run.cluster.devices_per_node
    if devices != whole and len(hosts) > 1:
        raise Refused(
            f"{path} has {len(hosts)} hosts: cluster.devices={devices} is not {len(hosts)} x "
            f"cluster.devices_per_node={run.cluster.devices_per_node}",
            f"set cluster.devices={whole}, or devices_per_node to what is started on each",
        )
    for host in hosts:
        if host.slots < devices // len(hosts):
            raise Refused(
                f"{path}: {host.name} has {host.slots} slots for {devices // len(hosts)} ranks",
                "raise slots= there, or lower cluster.devices_per_node and cluster.devices",
            )
    return hosts


def read(path: Path) -> List[Host]:
    """The hosts of a file in Open MPI's format: ``name [slots=N]`` a line, # begins a comment.

    Raises:
        Refused: unreadable, empty, a line of another form, no number of slots, a host twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise Refused(
            f"launcher.hostfile={path}: cannot be read ({reason})", "name a file of hosts"
        ) from error
    hosts: Dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        match = _LINE.fullmatch(words)
        slots = (match["slots"] or "1") if match else ""
        if match is None or not (slots.isascii() and slots.isdigit() and int(slots)):
            raise Refused(
                f"{path}, line {number}: {words!r} is no host", "write `name slots=N`, N from 1 on"
            )
        if match["name"] in hosts:
            raise Refused(
                f"{path}, line {number}: {match['name']} is there twice", "give it one line"
            )
        hosts[match["name"]] = Host(match["name"], int(slots))
    if not hosts:
        raise Refused(f"launcher.hostfile={path}: names no host", "write `name slots=N` lines")
    return list(hosts.values())
