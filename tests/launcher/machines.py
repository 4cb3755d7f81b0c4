"""Two machines in one: network, host name, processes and temporary files of their own, one disk.

Network namespaces joined by a pair of virtual interfaces. The names of the machines are known to
nobody, as on many a cluster; the folder of the test is the disk that they share.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

INTERFACE = "eth7"
MAIN = "import sys; from loopmoe_train.cli import main; sys.exit(main(sys.argv[1:]))"

why_not = (
    "namespaces need root"
    if not hasattr(os, "geteuid") or os.geteuid() != 0
    else "there is no `ip` and `unshare`"
    if not (shutil.which("ip") and shutil.which("unshare"))
    else ""
)
need_machines = pytest.mark.skipif(bool(why_not), reason=why_not)


@dataclass(frozen=True)
class Machine:
    """One of the two.

    Attributes:
        own: folder that is empty and private on each machine.
    """

    space: str
    name: str
    address: str
    own: Path

    def words(self) -> List[str]:
        """What to put before a command so that it runs there."""
        enter = (
            f'hostname {self.name}; mount -t tmpfs tmpfs {shlex.quote(str(self.own))}; exec "$@"'
        )
        return [
            "ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "--pid", "--fork",
            "--kill-child", "--mount-proc", "sh", "-c", enter, "sh",
        ]  # fmt: skip

    def start(self, words: List[str], **variables: str) -> subprocess.Popen[str]:
        """Start a command there."""
        clean = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"}
        env = {**clean, "TMPDIR": str(self.own), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.Popen(
            [*self.words(), *words], env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def loopmoe(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start our command there."""
        return self.start([sys.executable, "-c", MAIN, *words], **variables)


def remote_shell(machines: List[Machine], file: Path) -> Path:
    """A stand-in for ssh, written into ``file``: HOST COMMAND..., HOST being an address."""
    cases = "\n".join(
        f'{m.address}) set -- {shlex.join(m.words())} sh -c "$*" ;;' for m in machines
    )
    file.write_text(f'#!/bin/sh\nhost=$1; shift\ncase "$host" in\n{cases}\nesac\nexec "$@"\n')
    file.chmod(0o755)
    return file


@contextmanager
def two_machines(folder: Path) -> Iterator[List[Machine]]:
    """Two machines that reach each other; ``folder`` is on their common disk."""
    own = folder / "own"
    own.mkdir()
    mark = f"lm{os.getpid()}"
    made = [Machine(f"{mark}{k}", f"machine-{k}", f"10.77.0.{k + 1}", own) for k in range(2)]
    try:
        for machine in made:
            _ip("netns", "add", machine.space)
        _ip("link", "add", INTERFACE, "netns", made[0].space, "type", "veth", "peer", "name",
            INTERFACE, "netns", made[1].space)  # fmt: skip
        for machine in made:
            inside = ["-n", machine.space]
            _ip(*inside, "addr", "add", f"{machine.address}/24", "dev", INTERFACE)
            for interface in (INTERFACE, "lo"):
                _ip(*inside, "link", "set", interface, "up")
        yield made
    finally:
        for machine in made:
            subprocess.run(["ip", "netns", "del", machine.space], check=False, capture_output=True)


def ends(started: List[subprocess.Popen[str]], seconds: float = 200) -> List[Dict[str, object]]:
    """Exit code, output and errors of commands, all of which have to end."""
    found = []
    try:
        for process in started:
            out, err = process.communicate(timeout=seconds)
            found.append(dict(code=process.returncode, out=out, err=err))
    finally:
        for process in started:
            process.kill()
    return found


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
