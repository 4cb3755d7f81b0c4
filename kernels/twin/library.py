"""From an Ascend C source to a shared library on this machine, kept by the hash of its content."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

HERE = Path(__file__).parent
ROOT = HERE.parent  # one folder per operation
FLAGS = (
    "-std=c++17",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",  # a product and a sum round twice, as two vector instructions do
    "-fvisibility=hidden",
    "-fno-gnu-unique",  # or two kernels in one process would share the twin's state
)
_ENTRY = re.compile(r'extern\s+"C"\s+__global__\s+__aicore__\s+void\s+(\w+)\s*\(([^)]*)\)')


class TwinError(RuntimeError):
    """The twin cannot build or run this; the text says what to do."""


@dataclass(frozen=True)
class Kernel:
    """One `extern "C" __global__` function of a built source."""

    name: str
    arguments: Tuple[str, ...]
    library: ctypes.CDLL
    operation: Optional[str] = None  # whose tiling header was built in


def kernels() -> Dict[str, Path]:
    """Every Ascend C kernel of this package: name -> source."""
    return {path.stem: path for path in sorted(ROOT.glob("*/ascendc/op_kernel/*.cpp"))}


def build(name: str, cache: Optional[Path] = None) -> Kernel:
    """Build kernel ``name`` of this package with the tiling header of its operation.

    Raises:
        TwinError: no such kernel, no g++, or the source does not compile.
    """
    found = kernels()
    if name not in found:
        raise TwinError(f"no Ascend C kernel {name!r}: there are {', '.join(found)}")
    source = found[name]
    return compile_source(source, source.parents[2].name, cache)[f"loopmoe_{name}"]


def compile_source(
    source: Path, operation: Optional[str] = None, cache: Optional[Path] = None
) -> Dict[str, Kernel]:
    """Compile one source with the twin.

    Args:
        operation: its tiling header, ``../op_host/<operation>_tiling.h`` seen from the source,
            offers Shape, Tiling and Plan; None for a kernel without.
        cache: folder of the built libraries; the user's cache folder if None.

    Returns:
        The kernels in it by name.
    """
    entries = {
        name: tuple(re.findall(r"GM_ADDR\s+(\w+)", arguments))
        for name, arguments in _ENTRY.findall(source.read_text())
    }
    if not entries:
        raise TwinError(f'{source}: no extern "C" __global__ __aicore__ void kernel in it')
    headers = [HERE / "include", source.parent]
    settings = [f"-I{HERE / 'include'}"]
    if operation is not None:
        host = source.parents[1] / "op_host"
        headers += [host, source.parents[3] / "ascendc" / "common"]
        settings += [
            f"-I{host}",
            f'-DTWIN_TILING_HEADER="{operation}_tiling.h"',
            f"-DTWIN_OPERATION={operation}",
        ]
    files = [source, HERE / "run.cpp"]
    library = ctypes.CDLL(str(_library(files, settings, headers, cache)))
    return {
        name: Kernel(name, arguments, library, operation) for name, arguments in entries.items()
    }


def _library(
    files: Sequence[Path], settings: Sequence[str], headers: Sequence[Path], cache: Optional[Path]
) -> Path:
    compiler, version = _compiler()
    defines = [setting for setting in settings if setting.startswith("-D")]
    digest = hashlib.sha256(repr((version, FLAGS, defines)).encode())
    found = [path for folder in headers for path in sorted(folder.rglob("*.h"))]
    for path in (*files, *found):
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    folder = cache or _cache()
    library = folder / f"{files[0].stem}-{digest.hexdigest()[:20]}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed: a second process never loads half a library.
        handle, partial = tempfile.mkstemp(suffix=".so", dir=folder)
    except OSError as error:
        raise TwinError(f"built kernels cannot be kept: {error} -> set XDG_CACHE_HOME") from None
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *FLAGS, *settings, *map(str, files), "-o", partial],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise TwinError(f"{files[0].name} does not compile:\n{done.stderr}")
        os.replace(partial, library)
    finally:
        Path(partial).unlink(missing_ok=True)
    return library


@functools.cache
def _compiler() -> Tuple[str, str]:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise TwinError(
            "the twin needs a C++17 compiler: install g++ (9 or later), or name one in CXX"
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return compiler, version


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "loopmoe_twin"
