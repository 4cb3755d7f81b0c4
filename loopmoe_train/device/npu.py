"""The Ascend NPU as a device: torch_npu's torch.npu. The only importer of torch_npu."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch

from loopmoe_train.device import kinds
from loopmoe_train.device.backends import Backend, NoRanges
from loopmoe_train.errors import Refused


class _TensorKind(type):
    """A type whose instances are the tensors of one dtype on one device type."""

    dtype: torch.dtype
    device_type: str

    def __instancecheck__(cls, value: object) -> bool:
        return (
            isinstance(value, torch.Tensor)
            and value.dtype == cls.dtype
            and value.device.type == cls.device_type
        )


def _tensor_kind(name: str, dtype: torch.dtype, device_type: str) -> type:
    return _TensorKind(name, (), {"dtype": dtype, "device_type": device_type})


class NpuBackend(Backend):
    """torch_npu's torch.npu.

    Raises:
        Refused: torch_npu is absent, cannot be loaded (no CANN), or sees no device.
    """

    device_type = "npu"
    communication_backend = "hccl"
    sum_dtype = torch.float32  # HCCL sums no float64

    def __init__(self) -> None:
        self._package = _import_torch_npu()
        super().__init__(self._package.npu)
        if not self._module.is_available():
            raise Refused(
                "torch_npu is installed but sees no NPU",
                "check npu-smi info and ASCEND_RT_VISIBLE_DEVICES, or use device=cpu",
            )
        # own kinds: isinstance must work whatever legacy tensor types torch_npu defines
        self.FloatTensor = _tensor_kind("FloatTensor", torch.float32, "npu")
        self.HalfTensor = _tensor_kind("HalfTensor", torch.float16, "npu")
        self.BFloat16Tensor = _tensor_kind("BFloat16Tensor", torch.bfloat16, "npu")
        self.nvtx = NoRanges()

    def profiler(self) -> kinds.Profiler:
        """torch_npu's own; while it records it keeps raw data in the working directory."""
        kinds_of_work = self._package.profiler.ProfilerActivity
        return self._package.profiler.profile(activities=[kinds_of_work.CPU, kinds_of_work.NPU])

    def software(self) -> dict[str, str]:
        found = {**super().software(), "torch_npu": importlib.metadata.version("torch_npu")}
        try:
            found["cann"] = str(self._module.utils.get_cann_version("CANN"))
        except AttributeError:
            pass  # before torch_npu 2.6
        return found


def _import_torch_npu() -> Any:
    """Import torch_npu, or say in one line why that is not possible."""
    try:
        package = importlib.import_module("torch_npu")
    except ModuleNotFoundError as error:
        if error.name != "torch_npu":
            raise Refused(
                f"torch_npu needs the missing module {error.name}", f"install {error.name}"
            ) from error
        raise Refused(
            "device npu needs torch_npu, which is not installed", "pip install 'loopmoe-train[npu]'"
        ) from error
    except Exception as error:
        # without CANN on the library path: ImportError libhccl.so, at times inside a RuntimeError;
        # with a folder of CANN that is not there: a bare Exception
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise Refused(
            f"torch_npu cannot be loaded: {first_line}",
            "install CANN and source its set_env.sh before starting, or use device=cpu",
        ) from error
    return package
