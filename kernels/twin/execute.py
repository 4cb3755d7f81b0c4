"""Run a built kernel on tensors: its results, or the fault that stopped it, and what it counted."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, field
from typing import Dict, Mapping, Sequence, Tuple, Union

import torch
from torch import Tensor

from loopmoe_kernels.twin.library import Kernel, TwinError

UB_BYTES = 196608
CORES = 48  # vector cores of a 910B1/B2 and of a 910C die
_INPUT, _OUTPUT, _SCRATCH, _TILING, _IN_PLACE = range(5)
_MESSAGE_BYTES = 4096
_TILING_BYTES = 4096


class TwinFault(TwinError):
    """The kernel broke a rule of the API or of the hardware; the text says which, and where."""


@dataclass(frozen=True)
class Report:
    """What one launch did, all blocks together."""

    kernel: str
    blocks: int
    instructions: Dict[str, int]  # by pipe: S, V, MTE2, MTE3
    vector_repeats: int  # 256 bytes each
    dma: int  # instructions
    bursts: int  # contiguous pieces
    short_bursts: int  # of less than 512 bytes
    bytes_in: int
    bytes_out: int
    ub_peak: int  # bytes of the largest block
    unwritten: Dict[str, int] = field(default_factory=dict)  # bytes of an output left as they were


_COUNTS = ("vector_repeats", "dma", "bursts", "short_bursts", "bytes_in", "bytes_out", "ub_peak")


def plan(
    kernel: Kernel,
    shape: Sequence[Union[int, float]],
    cores: int = CORES,
    ub_bytes: int = UB_BYTES,
) -> Tuple[int, bytes]:
    """The operation's own tiling arithmetic, compiled from its op_host header.

    Args:
        shape: the fields of its ``Shape`` in order.

    Returns:
        Number of blocks, the tiling as bytes.
    """
    if kernel.operation is None:
        raise TwinError(f"{kernel.name} was built without a tiling header")
    packed = b"".join(struct.pack("d" if isinstance(x, float) else "q", x) for x in shape)
    tiling = ctypes.create_string_buffer(_TILING_BYTES)
    size = ctypes.c_int64()
    call = kernel.library.twin_plan
    call.restype = ctypes.c_int64
    call.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_int64]
    call.argtypes += [ctypes.POINTER(ctypes.c_int64)]
    blocks = call(packed, len(shape), cores, ub_bytes, tiling, len(tiling.raw), ctypes.byref(size))
    if blocks < 1:
        raise TwinError(f"{kernel.name}: shape {tuple(shape)} has no tiling in {ub_bytes} bytes")
    return blocks, tiling.raw[: size.value]


def run(
    kernel: Kernel,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    tiling: bytes,
    blocks: int,
    strict: bool = True,
) -> Report:
    """Run ``blocks`` blocks one after another.

    Args:
        inputs, outputs: the kernel's arguments by name, contiguous on the CPU; outputs are filled.
            A tensor in both is worked on in place. ``workspace`` in neither is an empty one.
        tiling: content of the argument named ``tiling``.
        strict: a vector instruction that needs the result of an earlier one wants a PipeBarrier.

    Raises:
        TwinFault: a check failed; outputs are untouched.
    """
    extra = (set(inputs) | set(outputs)) - set(kernel.arguments)
    if extra:
        raise TwinError(f"{kernel.name} takes {kernel.arguments}, not {sorted(extra)}")
    given = ctypes.create_string_buffer(tiling, len(tiling))
    names, data, sizes, roles = [], [], [], []
    for name in kernel.arguments:
        role, address, size = _argument(name, inputs, outputs, given)
        names.append(name.encode())
        data.append(address)
        sizes.append(size)
        roles.append(role)
    count = len(names)
    counts = (ctypes.c_int64 * (4 + len(_COUNTS)))()
    unwritten = (ctypes.c_int64 * count)()
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    call = kernel.library.twin_run
    call.argtypes = None
    failed = call(
        ctypes.cast(getattr(kernel.library, kernel.name), ctypes.c_void_p),
        kernel.name.encode(),
        count,
        (ctypes.c_char_p * count)(*names),
        (ctypes.c_void_p * count)(*data),
        (ctypes.c_int64 * count)(*sizes),
        (ctypes.c_int32 * count)(*roles),
        blocks,
        int(strict),
        counts,
        unwritten,
        message,
        ctypes.c_int64(len(message)),
    )
    if failed:
        raise TwinFault(message.value.decode())
    return Report(
        kernel=kernel.name,
        blocks=blocks,
        instructions=dict(zip(("S", "V", "MTE2", "MTE3"), counts[:4])),
        unwritten={
            name: unwritten[i] for i, name in enumerate(kernel.arguments) if name in outputs
        },
        **dict(zip(_COUNTS, counts[4:])),
    )


def _argument(
    name: str,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    tiling: ctypes.Array[ctypes.c_char],
) -> Tuple[int, int, int]:
    if name == "tiling":
        return _TILING, ctypes.addressof(tiling), len(tiling)
    tensor = inputs.get(name, outputs.get(name))
    if tensor is None:
        if name != "workspace":
            raise TwinError(f"argument {name!r} is missing")
        return _SCRATCH, 0, 0
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TwinError(f"argument {name!r} must be contiguous and on the CPU")
    if tensor.element_size() < 2:
        raise TwinError(f"argument {name!r}: the twin tracks GM by 2 bytes, {tensor.dtype} has 1")
    if name in inputs and name in outputs:
        if tensor is not outputs[name]:
            raise TwinError(f"argument {name!r} is two tensors: in place it is one")
        return _IN_PLACE, tensor.data_ptr(), tensor.numel() * tensor.element_size()
    return (
        _INPUT if name in inputs else _OUTPUT,
        tensor.data_ptr(),
        tensor.numel() * tensor.element_size(),
    )


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output filled with a pattern that no kernel computes."""
    return torch.full(shape, float("nan"), dtype=dtype)
