"""CANN: sourced, and its libraries loadable. Never run with a CANN by us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Iterator, List, Mapping, Optional, Sequence

from loopmoe_train.device import matrix
from loopmoe_train.doctor.check import FAIL, WARN, Check, passed

LIBRARIES = ("libascendcl.so", "libhccl.so", "libopapi.so")
# Where the installer and the vendor's images put it.
SCRIPTS = (
    "/usr/local/Ascend/cann/set_env.sh",
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
    "~/Ascend/cann/set_env.sh",
    "~/Ascend/ascend-toolkit/set_env.sh",
)
_SECONDS = 20.0
# In a child: a library that is half there may end the process that loads it.
_LOAD = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
        print(name, "ok", flush=True)
    except OSError as error:
        print(name, str(error).splitlines()[0], flush=True)
"""


def cann(
    environment: Mapping[str, str],
    device: str,
    torch_npu: Optional[str],
    scripts: Sequence[str] = SCRIPTS,
) -> Iterator[Check]:
    """Whether what torch_npu loads can be found.

    Args:
        torch_npu: its version if it is installed: then CANN is missed on any device, since torch
            loads torch_npu by itself.
        scripts: places of set_env.sh.
    """
    if device != "npu" and torch_npu is None:
        yield passed("cann/environment", f"not needed: cluster.device={device}, no torch_npu")
        return
    status = FAIL if device == "npu" else WARN
    source = source_line(environment, scripts)
    if device != "npu":
        source += ", or export TORCH_DEVICE_BACKEND_AUTOLOAD=0, or pip uninstall torch_npu"
    homes = {name: environment.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")}
    named = {name: Path(home) for name, home in homes.items() if home}
    absent = [f"{name}={home}" for name, home in named.items() if not home.is_dir()]
    if not named:
        what = "neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set"
        yield Check("cann/environment", status, what, source)
    elif absent:
        yield Check("cann/environment", status, f"{absent[0]}: there is no such folder", source)
    else:
        yield passed("cann/environment", ", ".join(f"{n}={home}" for n, home in named.items()))
    errors = load_libraries(environment)
    if errors:
        yield Check("cann/libraries", status, "; ".join(errors), source)
    else:
        yield passed("cann/libraries", f"{', '.join(LIBRARIES)} can be loaded")


def load_libraries(
    environment: Mapping[str, str], libraries: Sequence[str] = LIBRARIES
) -> List[str]:
    """What the loader says of each library that it cannot load in ``environment``."""
    command = [sys.executable, "-I", "-S", "-c", _LOAD, *libraries]
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=_SECONDS,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [f"loading {', '.join(libraries)} took longer than {_SECONDS:.0f} s"]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    ended = f"{{}}: the process that loads it ended with {done.returncode}"
    return [
        said.get(name, ended.format(name)) for name in libraries if said.get(name) != "ok"
    ]  # fmt: skip


def source_line(environment: Mapping[str, str], scripts: Sequence[str]) -> str:
    """The command that sets CANN's environment; where there is none, what to install."""
    homes = [environment.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    candidates = [Path(home).parent / "set_env.sh" for home in homes if home]
    candidates += [Path(home) / "set_env.sh" for home in homes if home]
    candidates += [Path(script).expanduser() for script in scripts]
    for script in candidates:
        if script.is_file():
            return f"source {script}"
    rows = matrix.load()
    image = rows.images["ascend-a2"].base
    return f"install CANN {rows.npu[0].cann} and source its set_env.sh, or start from {image}"
