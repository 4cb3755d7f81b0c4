"""Rules of starting a run: every setting belongs to some launchers and is refused with the others.

Names that end up in a script or a manifest are held to the characters that such names have.
"""

from __future__ import annotations

import re
from typing import Tuple

from loopmoe_train.config.model_rules import Problems
from loopmoe_train.config.schema import LauncherConfig, RunConfig

#: Where nodes meet unless launcher.endpoint says otherwise.
PORT = 29500

KINDS = ("local", "torchrun", "mpirun", "slurm", "volcano")

# Setting: the launchers that use it.
USED_BY = {
    "nodes": ("torchrun", "slurm", "volcano"),
    "endpoint": ("torchrun", "mpirun"),
    "hosts": ("mpirun",),
    "hostfile": ("mpirun",),
    "queue": ("slurm", "volcano"),
    "minutes": ("slurm",),
    "image": ("volcano",),
    "volume": ("volcano",),
    "arguments": ("torchrun", "mpirun", "slurm", "volcano"),
}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
_SHAPES = {
    "queue": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,-]*"),
    "image": re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@-]*"),
    "volume": re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"),
}


def endpoint_of(launcher: LauncherConfig) -> Tuple[str, int]:
    """Host and port of ``launcher.endpoint``; ("", 0) if it is not HOST:PORT."""
    host, _, port = (launcher.endpoint or "").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")  # [fd00::1]:29500
    number = int(port) if port.isascii() and port.isdigit() else 0
    if not _HOST.fullmatch(host) or not 0 < number < 2**16:
        return "", 0
    return host, number


def spans_nodes(launcher: LauncherConfig) -> bool:
    """Whether the ranks may be on other machines than the command."""
    return launcher.nodes > 1 or bool(launcher.hosts) or launcher.hostfile is not None


def _belongs(config: RunConfig) -> Problems:
    unset = LauncherConfig()
    for name, kinds in USED_BY.items():
        if config.launcher.kind in kinds or config.launcher.kind not in KINDS:
            continue
        if getattr(config.launcher, name) != getattr(unset, name):
            hint = "; launcher.hosts or launcher.hostfile names them" if (
                config.launcher.kind == "mpirun" and name == "nodes"
            ) else ""  # fmt: skip
            yield (
                f"launcher.{name} is for launcher={' or '.join(kinds)}, not for "
                f"launcher={config.launcher.kind}: leave it out{hint}"
            )


def _shapes(config: RunConfig) -> Problems:
    launcher = config.launcher
    for name, shape in _SHAPES.items():
        value = getattr(launcher, name)
        if value is not None and not shape.fullmatch(value):
            yield f"launcher.{name}={value!r}: not such a name"
    for host in launcher.hosts:
        if not _HOST.fullmatch(host):
            yield f"launcher.hosts: {host!r} is no host name"
    for host in dict.fromkeys(launcher.hosts):
        if launcher.hosts.count(host) > 1:
            yield f"launcher.hosts names {host} twice: once is enough"
    if launcher.endpoint is not None and endpoint_of(launcher) == ("", 0):
        yield f"launcher.endpoint={launcher.endpoint!r}: write HOST:PORT, the port from 1 to 65535"


def _complete(config: RunConfig) -> Problems:
    launcher = config.launcher
    if launcher.kind == "torchrun" and (launcher.nodes > 1) != (launcher.endpoint is not None):
        yield (
            "launcher.nodes=N and launcher.endpoint=HOST:PORT go together: set both, or for one "
            "machine neither"
        )
    if launcher.hosts and launcher.hostfile is not None:
        yield "launcher.hosts and launcher.hostfile: give one of them"
    if launcher.kind == "mpirun" and launcher.endpoint is not None and not spans_nodes(launcher):
        yield "launcher.endpoint needs launcher.hosts or launcher.hostfile: leave it out"
    if launcher.kind == "volcano":
        for name in ("image", "volume"):
            if getattr(launcher, name) is None:
                yield f"launcher=volcano needs launcher.{name}"


def _devices(config: RunConfig) -> Problems:
    launcher, cluster = config.launcher, config.cluster
    nodes = len(launcher.hosts) or launcher.nodes
    whole = nodes * cluster.devices_per_node
    if nodes > 1 and cluster.devices != whole:
        yield (
            f"cluster.devices={cluster.devices} is not {nodes} nodes x cluster.devices_per_node="
            f"{cluster.devices_per_node}: set cluster.devices={whole}, or devices_per_node to what "
            "is started on each"
        )
    one_node = launcher.kind in ("slurm", "volcano") and nodes == 1
    if one_node and cluster.devices > cluster.devices_per_node:
        yield (
            f"cluster.devices={cluster.devices} needs launcher.nodes="
            f"{-(-cluster.devices // cluster.devices_per_node)} of cluster.devices_per_node="
            f"{cluster.devices_per_node}"
        )


def _watching(config: RunConfig) -> Problems:
    if config.launcher.heartbeat_seconds <= 0.5:
        yield (
            f"launcher.heartbeat_seconds={config.launcher.heartbeat_seconds}: must be above 0.5 "
            "(a rank beats every 0.25 s)"
        )


def _time(config: RunConfig) -> Problems:
    minutes = config.launcher.minutes
    if minutes is not None and 0 < minutes <= 2:
        yield (
            f"launcher.minutes={minutes}: the job is told to save two minutes before its end: set "
            "more"
        )


RULES = (_time, _belongs, _shapes, _complete, _devices, _watching)
