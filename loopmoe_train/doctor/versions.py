"""Versions against the matrix, and which copy of a package an import would take."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

from loopmoe_train.device import matrix
from loopmoe_train.doctor.check import Check, failed, of_problem, passed, warned

_PACKAGES = (
    "torch", "torch_npu", "megatron-core", "hydra-core", "deepspeed", "triton", "triton-ascend",
)  # fmt: skip
# Package that is imported -> what marks its folder (megatron itself is a namespace), distribution.
_TREES = {
    "megatron": ("megatron/core/__init__.py", "megatron-core"),
    "mindspeed": ("mindspeed/__init__.py", "mindspeed"),
    "deepspeed": ("deepspeed/__init__.py", "deepspeed"),
}


def installed(path: Sequence[str]) -> Dict[str, Optional[str]]:
    """Versions by name of what stands on ``path`` (as sys.path): the metadata, nothing imported."""
    found: Dict[str, Optional[str]] = {"python": platform.python_version()}
    for name in _PACKAGES:
        first = next(iter(metadata.distributions(name=name, path=list(path))), None)
        found[name] = first.version if first else None
    return found


def cann_version(environment: Mapping[str, str]) -> Optional[str]:
    """Version of the CANN that the environment names, from the files of its toolkit."""
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        home = environment.get(name)
        if not home:
            continue
        root = Path(home)
        for file in (
            *sorted(root.glob("*-linux/ascend_toolkit_install.info")),
            root / "version.info",
            *sorted(root.glob("share/info/*/version.info")),
            root / "version.cfg",
        ):
            if file.is_file():
                said = re.search(
                    r"(?im)^(?:version|toolkit_installed_version)\s*=\s*\[?(?:\w+:)?"
                    r"(\d+\.\d+[\w.]*)",
                    file.read_text(errors="replace"),
                )
                if said:
                    return said[1]
    return None


def versions(found: Mapping[str, Optional[str]], device: str) -> List[Check]:
    """``found`` (:func:`installed`, with ``cann``) against the matrix."""
    problems = [of_problem("versions/matrix", one) for one in matrix.problems(found, device)]
    if problems:
        return problems
    named = [f"{name} {version}" for name, version in found.items() if version]
    return [passed("versions/matrix", ", ".join(named))]


def trees(path: Sequence[str]) -> Iterator[Check]:
    """Which folder each import would take from ``path`` (as sys.path)."""
    taken = []
    for package, (mark, distribution) in _TREES.items():
        files = [Path(entry or os.curdir) / mark for entry in path]
        copies = list(dict.fromkeys(os.path.realpath(f) for f in files if f.is_file()))
        if not copies:
            continue
        first, others = copies[0], copies[1:]
        installed_file = _installed_file(path, distribution, mark)
        root = Path(first).parents[len(Path(mark).parts) - 1]
        if installed_file is not None and first != installed_file:
            yield failed(
                "versions/trees",
                f"`import {package}` takes {Path(first).parent}, not the installed {distribution} "
                f"in {Path(installed_file).parent}",
                f"take {root} off PYTHONPATH: export PYTHONPATH={_without(root)!r}",
            )
        elif others:
            yield warned(
                "versions/trees",
                f"two copies of {package}: {Path(first).parent} is imported, "
                f"{Path(others[0]).parent} is hidden by it",
                f"take one of them off PYTHONPATH: export PYTHONPATH={_without(root)!r}",
            )
        else:
            taken.append(f"{package} from {Path(first).parent}")
            continue
        return
    yield passed("versions/trees", ", ".join(taken) or "none of them is on the path")


def _installed_file(path: Sequence[str], distribution: str, mark: str) -> Optional[str]:
    for found in metadata.distributions(name=distribution, path=list(path)):
        file = os.path.realpath(str(found.locate_file(mark)))
        if os.path.isfile(file):
            return file
    return None


def _without(root: Path) -> str:
    """PYTHONPATH without ``root``."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [e for e in entries if e and os.path.realpath(e) != os.path.realpath(root)]
    return os.pathsep.join(kept)
