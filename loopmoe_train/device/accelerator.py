"""`accel`: the one facade through which this package and the ported megatron.core use a device.

from loopmoe_train.device.accelerator import accel, select

select("cpu")                       # before megatron.core is imported; or set LOOPMOE_DEVICE
accel.set_device(local_rank)
tensor = torch.empty(4, device=accel.torch_device(local_rank))
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from loopmoe_train.device import backends
from loopmoe_train.device.backends import Backend
from loopmoe_train.errors import Refused

_selected: Backend | None = None


def current() -> Backend:
    """The selected backend; on first use the best device of this machine, or LOOPMOE_DEVICE.

    Raises:
        Refused: LOOPMOE_DEVICE names a device that is not usable here.
    """
    global _selected
    if _selected is None:
        _selected = backends.create(backends.available())
    return _selected


def select(device: str) -> Backend:
    """Choose the device of this process: "cpu", "cuda" or "npu".

    Raises:
        Refused: the device is unknown or unusable, or megatron.core was already imported for
            another one (it keeps device names from its import, in defaults and decorators).
    """
    global _selected
    if _selected is not None and _selected.device_type == device:
        return _selected
    if _selected is not None and "megatron.core" in sys.modules:
        raise Refused(
            f"megatron.core was imported for device {_selected.device_type} and cannot change to "
            f"{device}",
            f"select the device before importing it, or start with LOOPMOE_DEVICE={device}",
        )
    _selected = backends.create(device)
    return _selected


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors made inside have a shape and no storage (torch's meta device), also those that
    megatron.core makes on the current device: a model of any size is built in seconds."""
    global _selected
    before = current()
    _selected = backends.create("meta")
    try:
        with torch.device("meta"):
            yield
    finally:
        _selected = before


class _Selected:
    """Forwards every attribute to the selected backend, whichever it is at that moment."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # copying and pickling probe these; a facade must not choose a device for them
            raise AttributeError(name)
        return getattr(current(), name)

    def __repr__(self) -> str:
        return f"<accel {_selected.device_type if _selected else 'not selected yet'}>"

    def __reduce__(self) -> str:
        return "accel"


accel: Backend = cast(Backend, _Selected())
