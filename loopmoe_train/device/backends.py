"""What each kind of device answers: one small class per device behind one set of names.

A name that is not defined here is looked up in the device's own torch module (torch.cuda,
torch.npu, torch.cpu), so that megatron.core, once ported, reaches what it used to reach.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from loopmoe_train.device import kinds, port
from loopmoe_train.errors import Refused


class Backend:
    """The names all devices share; the defaults fit a device with a torch.cuda-like module."""

    device_type: str = ""
    #: backend for torch.distributed.init_process_group
    communication_backend: str = ""
    #: torch.compile of megatron.core's fused functions pays off and works
    compiles: bool = False
    #: dtype of a few numbers that are summed over ranks
    sum_dtype: torch.dtype = torch.float64
    #: dtype of matrix products that bear rounding (Newton-Schulz)
    product_dtype: torch.dtype = torch.bfloat16

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        # only reached for names not defined by the class
        if name.startswith("__") or name == "_module":
            raise AttributeError(name)
        try:
            return getattr(self._module, name)
        except AttributeError:
            message = f"device {self.device_type} has no counterpart of torch.cuda.{name}"
            raise AttributeError(message) from None

    # -- for our own code --------------------------------------------------------------------
    def torch_device(self, local_rank: int = 0) -> torch.device:
        """The device of this process; `local_rank` counts processes on this machine."""
        return torch.device(self.device_type, local_rank)

    def set_device(self, local_rank: int) -> None:
        """Make device `local_rank` of this machine the current one.

        Raises:
            Refused: the machine has fewer devices than processes.
        """
        count = self.device_count()
        if not 0 <= local_rank < count:
            raise Refused(
                f"local rank {local_rank} has no {self.device_type} device: this machine shows "
                f"{count}",
                "start as many processes per machine as it has devices",
            )
        self._module.set_device(local_rank)

    def peak_memory_bytes(self) -> int:
        """Largest memory in use since the last `reset_peak_memory_stats`, in bytes."""
        return int(self._module.max_memory_allocated())

    def manual_seed_all(self, seed: int) -> None:
        """Seed the generator of every device this process sees."""
        self._module.manual_seed_all(seed)

    def rng_state(self) -> torch.Tensor:
        """State of the current device's generator, as a byte tensor on the host."""
        return self._module.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, *device: Any, **named: Any) -> None:
        """Restore what `rng_state` returned."""
        self._module.set_rng_state(new_state, *device, **named)

    def synchronize(self, *device: Any) -> None:
        """Wait until all work submitted to the device is done."""
        self._module.synchronize(*device)

    def use_deterministic(self, wanted: bool) -> None:
        """Let operators give the same numbers at every repetition, or as fast as they can.

        An operator that cannot raises RuntimeError when it is called. Collectives, and cuBLAS, ask
        the environment: see `environment.for_ranks`.
        """
        torch.use_deterministic_algorithms(wanted)

    # -- streams and events --------------------------------------------------------------------
    @property
    def Stream(self) -> type[kinds.Stream]:
        """`Stream(priority=0)`: a further order of work; lower numbers go first."""
        return self._module.Stream

    @property
    def Event(self) -> type[kinds.Event]:
        """`Event(enable_timing=False)`."""
        return self._module.Event

    def current_stream(self, *device: Any) -> kinds.Stream:
        """The stream that new work goes to."""
        return self._module.current_stream(*device)

    def default_stream(self, *device: Any) -> kinds.Stream:
        """The stream that a process begins with."""
        return self._module.default_stream(*device)

    def stream(self, stream: kinds.Stream | None) -> AbstractContextManager[Any]:
        """Work submitted inside goes to ``stream``; None changes nothing."""
        return self._module.stream(stream)

    # -- memory, in bytes ----------------------------------------------------------------------
    def memory_allocated(self, *device: Any) -> int:
        """Held by tensors now."""
        return int(self._module.memory_allocated(*device))

    def memory_reserved(self, *device: Any) -> int:
        """Held by the allocator now, whether tensors use it or not."""
        return int(self._module.memory_reserved(*device))

    def mem_get_info(self, *device: Any) -> tuple[int, int]:
        """Free memory of the device, and all of it."""
        free, total = self._module.mem_get_info(*device)
        return int(free), int(total)

    def reset_peak_memory_stats(self, *device: Any) -> None:
        """`peak_memory_bytes` begins anew."""
        self._module.reset_peak_memory_stats(*device)

    def empty_cache(self) -> None:
        """Give back to the device what the allocator holds and no tensor uses."""
        self._module.empty_cache()

    # -- profiler ------------------------------------------------------------------------------
    def profiler(self) -> kinds.Profiler:
        """A profiler of host and device that has not started yet."""
        return profile(activities=[ProfilerActivity.CPU])

    @property
    def supports_bf16(self) -> bool:
        """bfloat16 arithmetic works here (not necessarily fast)."""
        return bool(self._module.is_bf16_supported())

    @property
    def hardware(self) -> str:
        """What the device is sold as."""
        return str(self._module.get_device_name())

    def software(self) -> dict[str, str]:
        """Versions that its operators' speed depends on, by name."""
        return {"torch": torch.__version__}

    # -- for ported code: what the rewriter puts in place of CUDA names ------------------------
    def import_from(self, module: str, name: str) -> Any:
        """`from torch.cuda.<...> import <name>` on this device.

        Raises:
            ImportError: no such name here, as a failing import statement would.
        """
        found: Any = self
        for part in [*module.split(".")[2:], name]:
            try:
                found = getattr(found, part)
            except AttributeError:
                raise ImportError(
                    f"cannot import name {name!r} from {module!r} on device {self.device_type}"
                ) from None
        return found

    def make_device(self, index: Any) -> torch.device:
        """`torch.device("cuda", index)`; an index may also be what `current_device` returned."""
        return torch.device(self.device_type, index)

    def device_string(self, index: Any) -> str:
        """`f"cuda:{index}"`."""
        return f"{self.device_type}:{index}"

    def type_string(self, name: str) -> str:
        """What `Tensor.type()` returns here for a tensor whose CUDA type is `name`."""
        return name.replace("torch.cuda.", f"torch.{self.device_type}.")

    def is_accelerated(self, tensor: Any) -> bool:
        """`tensor.is_cuda`: it lives where the computation happens."""
        return bool(tensor.device.type == self.device_type)

    def to_device(self, value: Any, device: Any = None, **named: Any) -> Any:
        """`value.cuda(device, non_blocking=...)` for a tensor or module."""
        target = self.current_device() if device is None else device
        if isinstance(target, int):
            target = self.make_device(target)
        return value.to(target, **named)

    def record_stream(self, tensor: Any, stream: Any) -> None:
        """`tensor.record_stream(stream)`."""
        tensor.record_stream(stream)

    def may_pin(self, wanted: Any) -> Any:
        """The value of a `pin_memory=` argument: pinning needs an accelerator to pin for."""
        return wanted

    def pin(self, tensor: Any, *arguments: Any, **named: Any) -> Any:
        """`tensor.pin_memory()`."""
        return tensor.pin_memory(*arguments, **named)

    def spawned(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Target of a process that megatron.core starts; see `port.spawned`."""
        return port.spawned(function)


class CudaBackend(Backend):
    """torch.cuda as it is."""

    device_type = "cuda"
    communication_backend = "nccl"
    compiles = True

    def __init__(self) -> None:
        super().__init__(torch.cuda)
        if not torch.cuda.is_available():
            raise Refused("no CUDA device is available to this process", "use device=cpu")

    def profiler(self) -> kinds.Profiler:
        return profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def use_deterministic(self, wanted: bool) -> None:
        if wanted:  # read when cuBLAS is first used; a launcher has set it already
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        super().use_deterministic(wanted)

    def software(self) -> dict[str, str]:
        return {**super().software(), "cuda": str(torch.version.cuda)}


class NoRanges:
    """Profiler ranges where there is no profiler to show them."""

    def range_push(self, message: str, *arguments: Any, **named: Any) -> int:
        return 0

    def range_pop(self) -> int:
        return 0

    def mark(self, message: str) -> None:
        return None

    @contextlib.contextmanager
    def range(self, message: str, *arguments: Any, **named: Any) -> Iterator[None]:
        yield


def available() -> str:
    """The best device of this machine: npu, else cuda, else cpu.

    LOOPMOE_DEVICE overrides it; launchers and tests set it for the processes they start.
    """
    wanted = os.environ.get("LOOPMOE_DEVICE", "")
    if wanted:
        return wanted
    from loopmoe_train.device.npu import NpuBackend

    try:
        NpuBackend()
        return "npu"
    except Refused:
        return "cuda" if torch.cuda.is_available() else "cpu"


def create(device_type: str) -> Backend:
    """Make the backend of a device.

    Raises:
        Refused: the name is unknown, or the device is not usable on this machine.
    """
    # imported here: these build on this module
    from loopmoe_train.device.cpu import CpuBackend, MetaBackend
    from loopmoe_train.device.npu import NpuBackend

    kinds: dict[str, Callable[[], Backend]] = {
        "cpu": CpuBackend,
        "meta": MetaBackend,
        "cuda": CudaBackend,
        "npu": NpuBackend,
    }
    if device_type not in kinds:
        raise Refused(f"device {device_type!r} is unknown", "choose cpu, cuda or npu")
    return kinds[device_type]()
