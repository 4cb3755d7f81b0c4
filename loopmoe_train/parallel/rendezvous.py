"""The store through which the ranks of a job find each other.

In order of preference:

1. ``LOOPMOE_RENDEZVOUS=file://PATH``, set by our launcher: no port is opened.
2. ``MASTER_ADDR`` and ``MASTER_PORT``, set by torchrun or by hand: a TCP store.
3. mpirun with all ranks on one machine: a file. Open MPI's is in the folder of the job, which
   mpirun removes; that of MPICH and Intel MPI is in a private folder of the system's temporary
   one, named by the process that started the ranks and by when that process began.

A TCP store has no authentication and listens on every interface: use it inside a trusted network.
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Optional

import psutil
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from loopmoe_train.errors import Refused
from loopmoe_train.parallel.addresses import address_towards, interface_of
from loopmoe_train.parallel.environment import Place, place, restart_count

_CONNECT = timedelta(minutes=10)  # for ranks to appear that are started on other machines


@cache
def store() -> dist.Store:
    """The job's store; opened once per process.

    Raises:
        Refused: ranks on several machines and no address of the first one.
    """
    here = place()
    named = os.environ.get("LOOPMOE_RENDEZVOUS")
    if named is not None:
        return dist.FileStore(named.removeprefix("file://"), here.world)
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        shared, _, _ = next(rendezvous("env://", here.rank, here.world, timeout=_CONNECT))
        # torchrun keeps its store over a restart, with the addresses of the ranks that died.
        return dist.PrefixStore(f"loopmoe/{restart_count()}", shared)
    if here.world == 1:
        return dist.HashStore()
    if not here.one_machine:
        raise Refused(
            f"{here.world} ranks on several machines and no MASTER_ADDR and MASTER_PORT",
            "name the machine of rank 0 and a free port of it, with Open MPI: "
            "mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ...",
        )
    return dist.FileStore(str(_job_file()), here.world)


def early_store(patience: timedelta) -> dist.Store:
    """The job's store without waiting for all ranks: for who wants to name those that do not come.

    Args:
        patience: for the store itself to appear, and of its operations.

    Raises:
        Refused: as :func:`store`.
        RuntimeError: nobody listens at MASTER_ADDR and MASTER_PORT.
    """
    here, env = place(), os.environ
    if "LOOPMOE_RENDEZVOUS" in env or not ("MASTER_ADDR" in env and "MASTER_PORT" in env):
        found = store()  # a file: it waits for nobody
        found.set_timeout(patience)
        return found
    torchrun_has_it = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    shared = dist.TCPStore(
        env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, here.rank == 0 and not torchrun_has_it,
        timeout=patience, wait_for_workers=False,
    )  # fmt: skip
    return dist.PrefixStore(f"loopmoe-early/{restart_count()}", shared)


def choose_interface(here: Place) -> None:
    """Let gloo connect ranks of one machine over loopback, where nothing is reachable from outside,
    and those of several over the interface that leads to rank 0. What the environment names counts.

    Gloo itself would take the address of this machine's name, which may be one of loopback.
    """
    found: Optional[str] = None
    if here.one_machine:
        found = "lo" if os.path.exists("/sys/class/net/lo") else None
    elif "MASTER_ADDR" in os.environ:
        address = address_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        found = interface_of(address)
    if found is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def _job_file() -> Path:
    """A file that exactly the ranks of this mpirun agree on."""
    session = Path(os.environ.get("PMIX_SERVER_TMPDIR", ""))
    if "PMIX_NAMESPACE" in os.environ and session.is_absolute() and os.access(session, os.W_OK):
        name = os.environ["PMIX_NAMESPACE"].replace("/", "_")
        return session / f"loopmoe-{name}"
    folder = Path(tempfile.gettempdir()) / f"loopmoe-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077 or folder.is_symlink():
        raise Refused(f"{folder} belongs to somebody else", "remove it, or set TMPDIR")
    starter = psutil.Process(os.getppid())
    return folder / f"{starter.pid}-{starter.create_time():.2f}"
