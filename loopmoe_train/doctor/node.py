"""What is looked at on one machine, in order."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Iterable, List, Mapping, Optional, Sequence, Tuple

import loopmoe_train
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.doctor import (
    cann,
    disk,
    driver,
    environment,
    host,
    limits,
    network,
    training,
    versions,
)
from loopmoe_train.doctor.check import FAIL, Check, look

Look = Tuple[str, Callable[[], Iterable[Check]]]


@dataclass(frozen=True)
class Machine:
    """Where this machine is looked at; other places are for tests.

    Attributes:
        environment: variables of this process.
        path: as sys.path.
        ranks: of the run on this machine, and ``nodes`` of the run.
    """

    environment: Mapping[str, str]
    path: Sequence[str]
    ranks: int
    nodes: int
    dev: Path = Path("/dev")
    driver: Path = driver.MOUNT


def machine_of(run: RunConfig, ranks: Optional[int] = None) -> Machine:
    """This one.

    Args:
        ranks: of the run on this machine if it is known; else as many as the cluster file puts
            on a node.
    """
    each = run.cluster.devices // run.launcher.nodes
    here = ranks or (each if run.launcher.nodes > 1 else min(each, run.cluster.devices_per_node))
    nodes = -(-run.cluster.devices // here)
    return Machine(dict(os.environ), list(sys.path), here, nodes)


def quick(run: RunConfig, machine: Machine) -> List[Check]:
    """Seconds, no device, no torch."""
    return _made([*_software(run, machine), *_host(run, machine), *_run(run, whole=False)])


def node(run: RunConfig, machine: Machine) -> List[Check]:
    """All that can be looked at from one process: the above with hashes, then the device."""
    found = _made([*_software(run, machine), *_host(run, machine), *_run(run, whole=True)])
    sound = not any(one.name == "run/config" and one.status == FAIL for one in found)
    from loopmoe_train.doctor import device  # imports torch

    found += device.device(run, sound, machine.ranks)
    if sound:
        # Imports megatron.core, which takes the device that is selected by then.
        from loopmoe_train.doctor import checkpoint

        found += look("run/checkpoint", lambda: checkpoint.checkpoint(run))
    return found


def of_host(run: RunConfig, machine: Machine) -> List[Check]:
    """What one rank of every host looks at before all do something together.

    By then the store listens at the port: whether that is free is no question any more.
    """
    looks = [*_software(run, machine), *_host(run, machine)]
    return _made([(name, check) for name, check in looks if name != "network/port"])


def _made(looks: Sequence[Look]) -> List[Check]:
    return [check for name, this in looks for check in look(name, this)]


def _software(run: RunConfig, machine: Machine) -> List[Look]:
    device, variables = run.cluster.device, machine.environment
    found = versions.installed(machine.path)
    found["cann"] = versions.cann_version(variables)
    torch_npu = found["torch_npu"]
    looks: List[Look] = [
        ("versions/matrix", lambda: versions.versions(found, device)),
        ("versions/trees", lambda: versions.trees(machine.path)),
        ("cann/libraries", lambda: cann.cann(variables, device, torch_npu)),
        ("environment/variables", lambda: environment.variables(variables, device, run)),
    ]
    if device == "npu":
        looks += [
            ("environment/rank-table", lambda: environment.rank_table(variables, run.cluster)),
            ("driver/devices", lambda: driver.devices(machine.dev, machine.ranks, variables)),
            ("driver/mount", lambda: [driver.mount(machine.driver)]),
            ("driver/npu-smi", lambda: [driver.npu_smi(variables.get("PATH", ""))]),
        ]
    return looks


def _host(run: RunConfig, machine: Machine) -> List[Look]:
    bounds, device, ranks = limits.here(), run.cluster.device, machine.ranks
    folder, several = run_dir(run), machine.nodes > 1
    variables, now = machine.environment, time.time()
    installed = Path(loopmoe_train.__file__)
    one = partial(disk.checkpoint_bytes, run)

    def single(name: str, check: Callable[[], Check]) -> Look:
        return name, lambda: [check()]

    return [
        single("host/shm", lambda: host.shm(machine.dev / "shm", ranks)),
        single("host/open-files", lambda: host.open_files(bounds, run.cluster.devices)),
        single("host/locked-memory", lambda: host.locked_memory(bounds, device, machine.nodes)),
        single(
            "host/processors",
            lambda: host.processors(bounds, ranks, run.launcher.threads_per_rank, device),
        ),
        single("host/threads", lambda: host.threads(variables, bounds, ranks)),
        single("host/memory", lambda: host.memory(bounds, ranks)),
        single("host/clock", lambda: host.clock(disk.existing(folder), installed, now)),
        ("host/build-locks", lambda: host.build_locks(host.extension_folders(variables), now)),
        single("disk/run-folder", lambda: disk.run_folder(folder, one(), run.checkpoint.keep)),
        single("disk/data", lambda: disk.data(Path(run.data.path), disk.is_prepared(run))),
        single("disk/write-speed", lambda: disk.write_speed(folder)),
        single("network/host-name", lambda: network.host_name(socket.gethostname(), several)),
        single("network/port", lambda: network.port(variables)),
        ("network/interface", lambda: network.interfaces(variables, several)),
    ]


def _run(run: RunConfig, whole: bool) -> List[Look]:
    found = training.settings(run)
    looks: List[Look] = [("run/config", lambda: found)]
    if all(one.status != FAIL for one in found):
        looks.append(("run/memory", lambda: [training.memory(run)]))
        looks.append(("run/data", lambda: training.data(run, whole)))
    return looks
