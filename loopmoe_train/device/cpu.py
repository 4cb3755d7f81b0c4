"""The cpu as a device: torch.cpu plus what megatron.core expects of any accelerator."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from loopmoe_train.device.backends import Backend, NoRanges

_STATUS = "/proc/self/status"
_CLEAR_REFS = "/proc/self/clear_refs"


class Event:
    """A point in time: on the cpu work is done when it was submitted."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._at: float | None = None

    def record(self, stream: Any = None) -> None:
        self._at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        return None

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`.

        Raises:
            RuntimeError: one of the two was never recorded.
        """
        if self._at is None or end._at is None:
            raise RuntimeError("both events must be recorded before calculating elapsed time")
        return (end._at - self._at) * 1000.0


class Stream:
    """An order of work: on the cpu all work is done in the order of the program.

    torch.cpu has one, but it neither synchronizes nor returns the events it records.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.cuda_stream = 0

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        return None

    def wait_stream(self, stream: Any) -> None:
        return None

    def synchronize(self) -> None:
        return None

    def query(self) -> bool:
        return True


class _AllOneGenerator:
    """`default_generators[i]`: whatever the index, the one generator of the cpu."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


class _DeviceContext:
    """`with torch.cuda.device(i)`: there is only one device to be on."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __enter__(self) -> None:
        return None

    def __exit__(self, *failure: object) -> None:
        return None


class _NoGraph:
    """Stands where type checks name a CUDA graph; none can be recorded here."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        raise RuntimeError("device cpu records no graphs: set cuda_graph_impl to none")


class CpuBackend(Backend):
    """Computation on the host, communication over gloo."""

    device_type = "cpu"
    communication_backend = "gloo"
    product_dtype = torch.float32  # bfloat16 is no faster here

    Event, Stream, ExternalStream = Event, Stream, Stream
    CUDAGraph = _NoGraph
    device = _DeviceContext
    FloatTensor, HalfTensor = torch.FloatTensor, torch.HalfTensor
    BFloat16Tensor = torch.BFloat16Tensor
    OutOfMemoryError = torch.OutOfMemoryError

    def __init__(self) -> None:
        super().__init__(torch.cpu)
        self.default_generators = _AllOneGenerator()
        self.nvtx = NoRanges()
        self._default_stream = self._stream = Stream()
        # dotted names as in torch.cuda.random.get_rng_state and torch.cuda.amp.custom_fwd
        self.random = SimpleNamespace(
            get_rng_state=self.get_rng_state, set_rng_state=self.set_rng_state
        )
        self.amp = SimpleNamespace(
            custom_fwd=_for_device(torch.amp.custom_fwd),
            custom_bwd=_for_device(torch.amp.custom_bwd),
        )

    # -- device ------------------------------------------------------------------------------
    def is_available(self) -> bool:
        """False: where core asks it, it asks for CUDA timing, Transformer Engine or triton."""
        return False

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        """One: megatron.core computes `rank % device_count()`."""
        return 1

    def current_device(self) -> str:
        """A value for `device=`; an integer would mean an accelerator."""
        return "cpu"

    def torch_device(self, local_rank: int = 0) -> torch.device:
        return torch.device("cpu")

    def set_device(self, local_rank: Any) -> None:
        return None

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """(0, 0): below every capability that a fast path asks for."""
        return 0, 0

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        import psutil

        total = int(psutil.virtual_memory().total)
        return SimpleNamespace(
            name="cpu", major=0, minor=0, total_memory=total, multi_processor_count=1
        )

    def make_device(self, index: Any) -> torch.device:
        return torch.device("cpu")

    def device_string(self, index: Any) -> str:
        return "cpu"

    def type_string(self, name: str) -> str:
        return name.replace("torch.cuda.", "torch.")

    def to_device(self, value: Any, device: Any = None, **named: Any) -> Any:
        return value.to("cpu", **named)

    def record_stream(self, tensor: Any, stream: Any) -> None:
        return None

    def may_pin(self, wanted: Any) -> bool:
        return False

    def pin(self, tensor: Any, *arguments: Any, **named: Any) -> Any:
        return tensor

    @property
    def supports_bf16(self) -> bool:
        return True

    @property
    def hardware(self) -> str:
        """Its widest vector instructions, such as "cpu AVX512"."""
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"

    # -- streams -------------------------------------------------------------------------------
    def default_stream(self, device: Any = None) -> Stream:
        return self._default_stream

    def current_stream(self, device: Any = None) -> Stream:
        return self._stream

    def set_stream(self, stream: Stream) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        """Make `stream` the current one; None changes nothing, as in torch.cuda."""
        before = self._stream
        self._stream = before if stream is None else stream
        try:
            yield
        finally:
            self._stream = before

    def is_current_stream_capturing(self) -> bool:
        return False

    # -- random numbers ------------------------------------------------------------------------
    def _lazy_init(self) -> None:
        return None

    def _lazy_call(self, function: Any, **named: Any) -> None:
        function()

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def rng_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, *device: Any, **named: Any) -> None:
        torch.set_rng_state(new_state)

    # -- memory: that of the process -----------------------------------------------------------
    def memory_allocated(self, device: Any = None) -> int:
        """Resident memory of this process in bytes."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    def memory_reserved(self, device: Any = None) -> int:
        return self.memory_allocated()

    def max_memory_allocated(self, device: Any = None) -> int:
        return self.peak_memory_bytes()

    def max_memory_reserved(self, device: Any = None) -> int:
        return self.peak_memory_bytes()

    def peak_memory_bytes(self) -> int:
        try:
            with open(_STATUS) as lines:
                for line in lines:
                    if line.startswith("VmHWM:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass
        # not resettable, and counted in bytes by macOS alone
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Start a new peak where the system can (Linux); elsewhere the peak is the process's."""
        try:
            with open(_CLEAR_REFS, "w") as stream:
                stream.write("5")
        except OSError:
            pass

    reset_max_memory_allocated = reset_peak_memory_stats

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        now, peak = self.memory_allocated(), self.peak_memory_bytes()
        return {
            "allocated_bytes.all.current": now,
            "allocated_bytes.all.peak": peak,
            "reserved_bytes.all.current": now,
            "reserved_bytes.all.peak": peak,
        }

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def empty_cache(self) -> None:
        return None


class MetaBackend(CpuBackend):
    """The cpu, but tensors have no storage; see `accelerator.shapes_only`."""

    def current_device(self) -> str:
        return "meta"

    def torch_device(self, local_rank: int = 0) -> torch.device:
        return torch.device("meta")


def _for_device(decorator: Any) -> Any:
    """`torch.cuda.amp.custom_fwd` with and without arguments, for the cpu."""

    def decorate(function: Any = None, **named: Any) -> Any:
        if function is None:
            return lambda late: decorator(late, device_type="cpu", **named)
        return decorator(function, device_type="cpu", **named)

    return decorate
