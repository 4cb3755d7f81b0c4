"""op_host against stand-ins of CANN's registration: parameters, shapes, types and the tiling that
it writes are those of the kernel and of the plan that the twin runs."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest
import torch
from torch import Tensor

from loopmoe_kernels import twin
from loopmoe_kernels.twin import launches
from loopmoe_kernels.twin.launches import EPS, Launch
from loopmoe_kernels.twin.library import ROOT

HERE = Path(__file__).parent
OPERATIONS = sorted(path.parents[1].name for path in ROOT.glob("*/ascendc/op_host"))
CODES = {torch.float32: 0, torch.int32: 1, torch.bfloat16: 2}
BF16 = torch.bfloat16
LAUNCHES = {
    "weighted_swiglu": lambda: launches.weighted_swiglu(7, 40, BF16),
    "weighted_swiglu_grad": lambda: launches.weighted_swiglu_grad(7, 41, torch.float32),
    "permute": lambda: launches.permute(9, 40, 3, BF16, "dropped"),
    "combine": lambda: launches.combine(9, 40, 3, BF16, "dropped"),
    "combine_grad": lambda: launches.combine_grad(9, 40, 3, torch.float32, "dropped"),
    "adaln_norm": lambda: launches.adaln_norm(7, 40, BF16),
    "adaln_norm_grad": lambda: launches.adaln_norm_grad(7, 40, torch.float32),
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("host")
    built = {}
    for name in OPERATIONS:
        library = folder / f"{name}.so"
        source = ROOT / name / "ascendc" / "op_host" / f"{name}.cpp"
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        command += ["-fno-gnu-unique", "-fvisibility-inlines-hidden", f"-I{HERE / 'cann'}"]
        command += [f'-DHOST_FILE="{source}"', str(HERE / "host.cpp"), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        built[name] = ctypes.CDLL(str(library))
        built[name].host_parameters.restype = ctypes.c_char_p
        built[name].host_run.restype = ctypes.c_int64
    return built


def type_of(kernel: str) -> bytes:
    return ("Loopmoe" + "".join(word.capitalize() for word in kernel.split("_"))).encode()


def dims_of(tensors: List[Tensor]) -> List[int]:
    dims = []
    for tensor in tensors:
        shape = list(tensor.shape) if tensor.numel() else []
        dims += [len(shape), *shape, *[0] * (3 - len(shape))]
    return dims


@pytest.mark.parametrize("name", LAUNCHES)
def test_parameters_are_the_kernel_s(name: str, hosts: Dict[str, ctypes.CDLL]) -> None:
    kernel = twin.build(name)
    host = hosts[str(kernel.operation)]
    inputs, outputs = host.host_parameters(type_of(name)).decode().split("|")
    assert (*inputs.split(","), *outputs.split(","), "workspace", "tiling") == kernel.arguments


def run(host: ctypes.CDLL, launch: Launch) -> tuple[int, bytes, List[List[int]], List[int]]:
    inputs, count = list(launch.inputs.values()), len(launch.outputs)
    tiling, blocks = ctypes.create_string_buffer(4096), ctypes.c_int64()
    dims, types = (ctypes.c_int64 * 16)(), (ctypes.c_int32 * 4)()
    size = host.host_run(
        type_of(launch.kernel),
        len(inputs),
        (ctypes.c_int64 * (4 * len(inputs)))(*dims_of(inputs)),
        (ctypes.c_int32 * len(inputs))(*[CODES[x.dtype] for x in inputs]),
        ctypes.c_int64(next(iter(launch.outputs.values())).shape[0]),
        ctypes.c_float(EPS),
        int(launch.kernel == "adaln_norm"),
        40,
        ctypes.c_int64(196608),
        tiling,
        ctypes.byref(blocks),
        dims,
        types,
    )
    assert size > 0
    shapes = [list(dims[4 * i + 1 : 4 * i + 1 + dims[4 * i]]) for i in range(count)]
    return blocks.value, tiling.raw[:size], shapes, list(types[:count])


@pytest.mark.parametrize("name", LAUNCHES)
def test_shapes_types_and_tiling(name: str, hosts: Dict[str, ctypes.CDLL]) -> None:
    launch, kernel = LAUNCHES[name](), twin.build(name)
    blocks, tiling, shapes, types = run(hosts[str(kernel.operation)], launch)
    assert shapes == [list(out.shape) for out in launch.outputs.values()]
    assert types == [CODES[out.dtype] for out in launch.outputs.values()]
    shape = launch.shape
    if name == "adaln_norm":
        shape = (*shape[:-1], ctypes.c_float(EPS).value)  # an attribute is a float
    if name == "adaln_norm_grad":
        shape = (*shape[:-1], 0.0)
    assert (blocks, tiling) == twin.plan(kernel, shape, 40)


def test_combine_without_probs(hosts: Dict[str, ctypes.CDLL]) -> None:
    launch = launches.combine(9, 40, 3, BF16, "dropped", weighted=False)
    blocks, tiling, _, _ = run(hosts["combine"], launch)
    assert (blocks, tiling) == twin.plan(twin.build("combine"), launch.shape, 40)
    assert tiling != twin.plan(twin.build("combine"), (*launch.shape[:5], 1, 0), 40)[1]


def test_every_operation_is_here(hosts: Dict[str, ctypes.CDLL]) -> None:
    assert set(LAUNCHES) == set(twin.kernels()) and set(hosts) == set(OPERATIONS)
