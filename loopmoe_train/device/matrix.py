"""The version matrix: which versions go together, and what to do where they do not.

`matrix.yaml` beside this file is the one place that says so. `loopmoe doctor` and the images of
docker/ read it through here. No torch: a machine whose torch cannot be imported is examined too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from loopmoe_train.device.problem import Problem

FILE = Path(__file__).with_name("matrix.yaml")
Found = Mapping[str, Optional[str]]


@dataclass(frozen=True)
class NpuRow:
    """One set of versions for an NPU.

    Attributes:
        torch, torch_npu: version specifiers.
        cann: major and minor version.
        documented: the vendor's own table lists it.
    """

    torch: str
    torch_npu: str
    cann: str
    documented: bool


@dataclass(frozen=True)
class Image:
    """What an image of docker/ is made of; exact versions, no specifiers.

    Attributes:
        base: image it starts from.
        devices: NPUs of a node of this kind; 0: none.
        cluster: preset of configs/cluster/ that describes it.
    """

    name: str
    base: str
    device: str
    torch: str
    torch_npu: Optional[str] = None
    cann: Optional[str] = None
    devices: int = 0
    cluster: str = "cpu"


@dataclass(frozen=True)
class Matrix:
    """`matrix.yaml`, checked."""

    python: str
    packages: Dict[str, str]
    npu: Tuple[NpuRow, ...]
    triton_ascend: Dict[str, str]
    images: Dict[str, Image]


@cache
def load() -> Matrix:
    """Read the matrix."""
    content: Dict[str, Any] = yaml.safe_load(FILE.read_text())
    return Matrix(
        python=content["python"],
        packages=content["packages"],
        npu=tuple(NpuRow(**row) for row in content["npu"]),
        triton_ascend=content["triton_ascend"],
        images={name: Image(name=name, **about) for name, about in content["images"].items()},
    )


def problems(found: Found, device: str) -> List[Problem]:
    """Hold the versions of a machine against the matrix.

    Args:
        found: version by name: `python`, `torch`, `torch_npu`, `cann`, `megatron-core`,
            `hydra-core`, `deepspeed`, `triton`, `triton-ascend`; None or absent: not there.
        device: what the run is for: cpu, cuda or npu.
    """
    matrix = load()
    listed = [*_python(matrix, found), *_packages(matrix, found)]
    if device == "npu":
        listed += _npu(matrix, found)
    return listed + list(_triton_ascend(matrix, found, device))


def _python(matrix: Matrix, found: Found) -> Iterator[Problem]:
    version = found.get("python")
    if version and not _fits(version, matrix.python):
        yield Problem(
            "python", "FAIL", f"Python {version}, this needs {matrix.python}",
            "make an environment with `python3.11 -m venv .venv`",
        )  # fmt: skip


def _packages(matrix: Matrix, found: Found) -> Iterator[Problem]:
    needed = ("torch", "megatron-core", "hydra-core")
    for name, wanted in matrix.packages.items():
        version = found.get(name)
        if version is None and name in needed:
            yield Problem(name, "FAIL", f"{name} is not installed", f"pip install '{name}{wanted}'")
        elif version is not None and not _fits(version, wanted):
            status = "FAIL" if name in needed else "WARN"
            what = f"{name} {version}, this needs {wanted}"
            yield Problem(name, status, what, f"pip install '{name}{wanted}'")


def _npu(matrix: Matrix, found: Found) -> Iterator[Problem]:
    torch, torch_npu, cann = (found.get(name) for name in ("torch", "torch_npu", "cann"))
    row = next((r for r in matrix.npu if torch and _fits(torch, r.torch)), None)
    best = matrix.npu[0]
    if row is None:
        fix = f"pip install 'torch{best.torch}' 'torch_npu{best.torch_npu}' for CANN {best.cann}"
        if torch is not None:  # else `_packages` has said so
            known = ", ".join(r.torch for r in matrix.npu)
            yield Problem("torch_npu", "FAIL", f"torch {torch} has no row for NPUs: {known}", fix)
        row = best
    if torch_npu is None:
        fix = f"pip install 'torch_npu{row.torch_npu}'"
        if not row.documented:
            fix = (
                f"pip install 'torch{best.torch}' 'torch_npu{best.torch_npu}' for CANN {best.cann}"
            )
        yield Problem("torch_npu", "FAIL", "torch_npu is not installed", fix)
    elif not _fits(torch_npu, row.torch_npu):
        yield Problem(
            "torch_npu", "FAIL", f"torch_npu {torch_npu} is not for torch {torch}",
            f"pip install 'torch_npu{row.torch_npu}'",
        )  # fmt: skip
    if cann is None:
        yield Problem(
            "cann", "FAIL", "no CANN was found",
            f"install CANN {row.cann} and source its set_env.sh, or start from the image "
            f"{matrix.images['ascend-a2'].base}",
        )  # fmt: skip
    elif not same_release(cann, row.cann):
        yield Problem(
            "cann", "FAIL", f"CANN {cann}, but torch_npu {row.torch_npu} is for CANN {row.cann}",
            f"install CANN {row.cann}, or source the set_env.sh of that one",
        )  # fmt: skip
    elif not row.documented:
        yield Problem(
            "cann", "WARN",
            f"torch_npu {torch_npu} with CANN {cann}: not in the vendor's table",
            f"pip install 'torch{best.torch}' 'torch_npu{best.torch_npu}' for CANN {best.cann}",
        )  # fmt: skip


def _triton_ascend(matrix: Matrix, found: Found, device: str) -> Iterator[Problem]:
    version = found.get("triton-ascend")
    if version is None:
        return
    about = matrix.triton_ascend
    torch_npu = found.get("torch_npu")
    if found.get("triton") is not None:
        yield Problem(
            "triton-ascend", "FAIL",
            f"triton {found['triton']} and triton-ascend {version} overwrite each other",
            "pip uninstall triton triton-ascend, then install the one that is needed",
        )  # fmt: skip
    if device == "npu" and not (torch_npu and _fits(torch_npu, about["torch_npu"])):
        yield Problem(
            "triton-ascend", "WARN",
            f"triton-ascend {version} is documented for torch_npu{about['torch_npu']} with CANN "
            f"{about['cann']} alone, here is torch_npu {torch_npu}",
            "leave cluster.kernels unset: the vendor's operators are used, not Triton",
        )  # fmt: skip


def same_release(version: str, wanted: str) -> bool:
    """Whether a CANN version (9.1.0, 9.1.RC1) is of release ``wanted`` (9.1)."""
    return version.split(".")[:2] == wanted.split(".")[:2]


def _fits(version: str, specifier: str) -> bool:
    try:
        parsed = Version(version)
    except InvalidVersion:
        return False
    return SpecifierSet(specifier).contains(parsed, prereleases=True)
