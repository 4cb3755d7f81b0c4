"""torch.npu of the stand-in: every name is one of the wheel, every call is recorded."""

from __future__ import annotations

import contextlib
import itertools
import time
from types import ModuleType, SimpleNamespace
from typing import Any, Iterator, Optional

import torch
from torch_npu import record, wheel

_ops = torch.ops.stand_in
_ids = itertools.count(1)
_NPU = 20  # of c10::DeviceType


def _checked(cls: type) -> type:
    """Record the calls of a class's methods, compared with the wheel's class of that name."""
    known = wheel.signatures("npu")
    for name, method in list(vars(cls).items()):
        if name.startswith("_") or not callable(method):
            continue
        signature = known[f"{cls.__name__}.{name}"]

        def call(self: Any, *args: Any, _m: Any = method, _n: str = name, _s: Any = signature,
                 **kw: Any) -> Any:  # fmt: skip
            record.note("stream", f"{cls.__name__}.{_n}", _s, self, *args, **kw)
            return _m(self, *args, **kw)

        setattr(cls, name, call)
    return cls


@_checked
class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False,
                 interprocess: bool = False, external: bool = False) -> None:  # fmt: skip
        self.number, self.timed, self.at = next(_ids), enable_timing, 0.0
        signature = wheel.signatures("npu")["Event.__new__"]
        record.note("stream", "Event", signature, Event, enable_timing=enable_timing)

    def __str__(self) -> str:
        return f"event {self.number}"

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        return None

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None

    def elapsed_time(self, end_event: Any) -> float:
        if not (self.timed and end_event.timed and self.at and end_event.at):
            raise RuntimeError("both events must be recorded and made with enable_timing=True")
        return 1000 * (end_event.at - self.at)


@_checked
class Stream(torch.Stream):
    """One of torch's own kind: operators take it."""

    def __new__(cls, device: Any = None, priority: int = 0, number: Optional[int] = None) -> Stream:
        if number is None:
            number = next(_ids)
            signature = wheel.signatures("npu")["Stream.__new__"]
            record.note("stream", "Stream", signature, cls, device, priority)
        index = _ops.current_device() if device is None else torch.device("npu", device).index
        return super().__new__(cls, stream_id=number, device_index=index, device_type=_NPU)

    @property
    def number(self) -> int:
        return int(self.stream_id)

    def __str__(self) -> str:
        return f"stream {self.number}"

    def record_event(self, event: Any = None) -> Any:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        return None

    def wait_stream(self, stream: Any) -> None:
        return None

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


class _Device(contextlib.AbstractContextManager):  # type: ignore[type-arg]
    """`with torch.npu.device(i)`."""

    def __init__(self, device: Any) -> None:
        self.to, self.before = torch.device("npu", device).index, 0

    def __enter__(self) -> None:
        self.before = _ops.current_device()
        _ops.set_device(self.to)

    def __exit__(self, *failure: object) -> None:
        _ops.set_device(self.before)


class _Functions:
    """What the functions of torch.npu do here. Random numbers are those of the processor, so that
    a run draws what the same run on the cpu draws."""

    # device
    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def init(self) -> None:
        return None

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return int(_ops.current_device())

    def set_device(self, device: Any) -> None:
        _ops.set_device(torch.device("npu", device).index)

    def synchronize(self, device: Any = None) -> None:
        return None

    def get_device_name(self, device_name: Any = None) -> str:
        return "stand-in"

    def get_device_capability(self, device: Any = None) -> None:
        return None  # as torch_npu does

    def get_device_properties(self, device_name: Any = None) -> SimpleNamespace:
        return SimpleNamespace(name="stand-in", total_memory=64 << 30)

    def is_bf16_supported(self) -> bool:
        return True

    # streams
    def current_stream(self, device: Any = None) -> Stream:
        return Stream(number=int(_ops.current_stream()))

    def default_stream(self, device: Any = None) -> Stream:
        return Stream(number=0)

    def set_stream(self, stream: Stream) -> None:
        _ops.set_stream(stream.number)

    @contextlib.contextmanager
    def stream(self, stream: Optional[Stream]) -> Iterator[None]:
        before = int(_ops.current_stream())
        _ops.set_stream(before if stream is None else stream.number)
        try:
            yield
        finally:
            _ops.set_stream(before)

    def is_current_stream_capturing(self) -> bool:
        return False

    # random numbers
    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(int(seed))

    def get_rng_state(self, device: Any = "npu") -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = "npu") -> None:
        torch.set_rng_state(new_state)

    def _lazy_init(self) -> None:
        return None

    def _lazy_call(self, cb: Any, **kwargs: Any) -> None:
        cb()

    # memory
    def memory_allocated(self, device: Any = None) -> int:
        return 1 << 20

    def max_memory_allocated(self, device: Any = None) -> int:
        return 1 << 20

    def memory_reserved(self, device: Any = None) -> int:
        return 2 << 20

    def max_memory_reserved(self, device: Any = None) -> int:
        return 2 << 20

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        return None

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {"allocated_bytes.all.current": 1 << 20}

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 63 << 30, 64 << 30

    def empty_cache(self) -> None:
        return None

    # asked for by torch itself
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16, torch.float32]

    def _is_in_bad_fork(self) -> bool:
        return False


def _kind(name: str) -> str:
    for kind, words in (("stream", "stream"), ("random", "seed rng lazy"), ("memory", "mem cache")):
        if any(word in name for word in words.split()):
            return kind
    return "device"


class Npu(ModuleType):
    """The module torch.npu."""

    Event, Stream, device = Event, Stream, _Device

    def __init__(self) -> None:
        super().__init__("torch_npu.npu")
        self._functions = _Functions()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in wheel.names("npu/__init__.py"):
            raise AttributeError(f"torch_npu 2.13 has no torch.npu.{name}")
        if name == "default_generators":
            return [torch.default_generator] * 2
        if name == "utils":
            return SimpleNamespace(
                get_cann_version=self._plain("get_cann_version", lambda m: "none")
            )
        if name == "random":
            pair = ("get_rng_state", "set_rng_state")
            return SimpleNamespace(**{one: getattr(self, one) for one in pair})
        if name == "amp":
            return torch.amp
        return self._plain(name, getattr(self._functions, name))

    def _plain(self, name: str, function: Any) -> Any:
        signature = wheel.signatures("npu")[name]

        def call(*arguments: Any, **named: Any) -> Any:
            record.note(_kind(name), name, signature, *arguments, **named)
            return function(*arguments, **named)

        return call


npu = Npu()
