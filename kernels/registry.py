"""Which implementation of an op runs where. The one module of this package that names devices.

    processor   eager    torch operations in one autograd node, or the definition itself
    CUDA        triton
    Ascend      vendor   an op of torch_npu, where it is trainable and fits the call
                eager    everything else; Triton is to be asked for: no triton-ascend is known to
                         fit the torch_npu that this package is for

Nothing falls back: what is missing is an error that says what to install. An implementation is
forced by a call's ``implementation=``, for all ops within :func:`forced`, and for a process by
:func:`use` (``cluster.kernels`` of a run).
"""

import importlib
import importlib.util
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch

DEFAULT = {"cpu": "eager", "meta": "eager", "cuda": "triton", "npu": "eager"}
_INSTALL = {
    "cuda": "pip install 'loopmoe-train[cuda]'",
    "npu": "pip install triton-ascend==3.2.0 pybind11 (Python 3.9 to 3.11)",
}
_MODULES = {"reference": "reference", "eager": "fused", "triton": "triton_kernel"}

_forced: ContextVar[Optional[str]] = ContextVar("loopmoe_kernels_implementation", default=None)
_used: Optional[str] = None
_loaded: Dict[Tuple[str, str], Callable[..., Any]] = {}


def use(implementation: Optional[str]) -> None:
    """All ops of this process use ``implementation`` from now on; None: what fits the device."""
    global _used
    _used = implementation


@contextmanager
def forced(implementation: Optional[str]) -> Iterator[None]:
    """All ops called inside use ``implementation``; None: what fits the device."""
    token = _forced.set(implementation)
    try:
        yield
    finally:
        _forced.reset(token)


def name_of(
    op: str, device: torch.device, implementation: Optional[str] = None, vendor_fits: bool = False
) -> str:
    """The implementation that a call uses: the forced one, or the device's.

    Args:
        vendor_fits: the vendor has a trainable op that does this very call.

    Raises:
        RuntimeError: there is none for this kind of device.
    """
    wanted = implementation or _forced.get() or _used
    if wanted is not None:
        return wanted
    if device.type == "npu" and vendor_fits:
        return "vendor"
    if device.type not in DEFAULT:
        raise RuntimeError(
            f"{op}: no implementation for device {device.type!r}; there are "
            f"{', '.join(DEFAULT)}, or ask for implementation='reference'"
        )
    return DEFAULT[device.type]


def pick(
    op: str, device: torch.device, implementation: Optional[str] = None, vendor_fits: bool = False
) -> Callable[..., Any]:
    """The function that computes ``op`` on ``device``.

    Raises:
        RuntimeError: it needs something that is not installed, or there is none.
        ValueError: the op has no such implementation.
    """
    name = name_of(op, device, implementation, vendor_fits)
    found = _loaded.get((op, name))
    if found is None:
        if name == "triton" and importlib.util.find_spec("triton") is None:
            how = _INSTALL.get(device.type, _INSTALL["cuda"])
            raise RuntimeError(
                f"{op} on {device.type} needs triton, which is not installed: {how}; or run "
                "without fused kernels: loopmoe_kernels.registry.forced('eager')"
            )
        found = _loaded[op, name] = _load(op, name)
    return found


def vendor_op(name: str) -> Callable[..., Any]:
    """An op that torch_npu has registered with torch; this package does not import it.

    Raises:
        RuntimeError: torch_npu is not imported, or has no such op.
    """
    try:
        return getattr(torch.ops.npu, name)
    except AttributeError as error:
        raise RuntimeError(f"{name} is no op of torch: import a torch_npu that has it") from error


def _load(op: str, name: str) -> Callable[..., Any]:
    module = f"loopmoe_kernels.{op}.{_MODULES.get(name, name)}"
    if importlib.util.find_spec(module) is None:
        if name == "eager":  # torch's own operations are as good: the definition runs
            return _load(op, "reference")
        raise ValueError(f"{op} has no implementation {name!r}")
    return getattr(importlib.import_module(module), op)
