"""The facade: the cpu's answers, and the calls it passes to a stand-in for torch_npu."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from loopmoe_train.device import accelerator, backends, kinds
from loopmoe_train.device.accelerator import accel
from loopmoe_train.device.cpu import CpuBackend
from loopmoe_train.errors import Refused


@pytest.fixture()
def cpu() -> CpuBackend:
    return CpuBackend()


class Recorder(ModuleType):
    """Stands in for torch.npu: remembers calls, answers what it was told to."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("npu")
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"is_available": True, "device_count": 8, "current_device": 3} | answers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "absent":
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, *named.items()))
            return self.answers.get(name)

        return call


@pytest.fixture()
def npu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu=recorder))  # type: ignore
    return recorder


def test_npu_calls_reach_torch_npu(npu: Recorder) -> None:
    backend = backends.create("npu")
    npu.calls.clear()
    backend.set_device(5)
    backend.manual_seed_all(7)
    backend.synchronize()
    backend.empty_cache()
    backend.nvtx.range_push("no ranges on npu")
    assert npu.calls == [
        ("device_count",),
        ("set_device", 5),
        ("manual_seed_all", 7),
        ("synchronize",),
        ("empty_cache",),
    ]
    assert (backend.device_type, backend.communication_backend) == ("npu", "hccl")
    assert backend.device_string(2) == "npu:2"
    assert backend.type_string("torch.cuda.HalfTensor") == "torch.npu.HalfTensor"
    assert not backend.is_accelerated(torch.zeros(1))
    assert not isinstance(torch.zeros(1), backend.FloatTensor)


def test_npu_moves_tensors_to_the_current_device(npu: Recorder) -> None:
    moved: list[Any] = []
    tensor = SimpleNamespace(to=lambda *a, **k: moved.append((a, k)))
    backend = backends.create("npu")
    # privateuse1 has no name without torch_npu: look at what would be asked for
    backend.make_device = lambda index: f"npu:{index}"  # type: ignore
    backend.to_device(tensor, non_blocking=True)
    backend.to_device(tensor, 1)
    assert moved == [(("npu:3",), {"non_blocking": True}), (("npu:1",), {})]


def test_npu_names_its_hardware_and_versions(
    npu: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"torch_npu": "2.13.0"}.get)
    npu.answers["get_device_name"] = "Ascend910B2"
    backend = backends.create("npu")
    assert backend.hardware == "Ascend910B2"
    known = {"torch": torch.__version__, "torch_npu": "2.13.0"}
    assert backend.software() == known  # an old torch_npu does not tell CANN's
    npu.utils = SimpleNamespace(get_cann_version=lambda module: "8.3.RC1")  # type: ignore
    assert backend.software() == {**known, "cann": "8.3.RC1"}


def test_more_processes_than_devices_is_refused(npu: Recorder) -> None:
    with pytest.raises(Refused, match="local rank 8 has no npu device: this machine shows 8"):
        backends.create("npu").set_device(8)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'torch_npu'", name="torch_npu"), "not installed"),
        (ImportError("libhccl.so: cannot open shared object file\nmore"), "libhccl.so"),
        (RuntimeError("Failed to load the backend extension\nlong story"), "Failed to load"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "missing module yaml"),
    ],
)
def test_an_unusable_npu_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(Refused) as caught:
        backends.create("npu")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npu_without_devices_is_refused(npu: Recorder) -> None:
    npu.answers["is_available"] = False
    with pytest.raises(Refused, match="sees no NPU"):
        backends.create("npu")


def test_unknown_device_is_refused() -> None:
    with pytest.raises(Refused, match="choose cpu, cuda or npu"):
        backends.create("tpu")


def test_choice_of_the_device(monkeypatch: pytest.MonkeyPatch, npu: Recorder) -> None:
    monkeypatch.delenv("LOOPMOE_DEVICE", raising=False)
    assert backends.available() == "npu"
    npu.answers["is_available"] = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.available() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.available() == "cpu"
    monkeypatch.setenv("LOOPMOE_DEVICE", "npu")
    assert backends.available() == "npu"


def test_a_late_change_of_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, npu: Recorder, cpu: CpuBackend
) -> None:
    monkeypatch.setattr(accelerator, "_selected", cpu)
    monkeypatch.setitem(sys.modules, "megatron.core", ModuleType("megatron.core"))
    assert accelerator.select("cpu") is cpu
    with pytest.raises(Refused, match="LOOPMOE_DEVICE=npu"):
        accelerator.select("npu")
    monkeypatch.delitem(sys.modules, "megatron.core")
    assert accelerator.select("npu").device_type == "npu"
    assert accel.device_type == "npu"


# -- cpu ---------------------------------------------------------------------------------------


def test_cpu_basics(cpu: CpuBackend) -> None:
    assert cpu.communication_backend == "gloo"
    assert torch.zeros(1, device=cpu.current_device()).device.type == "cpu"
    assert cpu.device_count() == 1
    assert not cpu.is_available()
    assert cpu.make_device("cpu") == torch.device("cpu")
    assert cpu.type_string("torch.cuda.FloatTensor") == torch.zeros(1).type()
    assert cpu.is_accelerated(torch.zeros(1))
    assert cpu.supports_bf16


def test_cpu_names_its_instructions_and_versions(cpu: CpuBackend) -> None:
    assert cpu.hardware == f"cpu {torch.backends.cpu.get_cpu_capability()}"
    assert cpu.software() == {"torch": torch.__version__}


def test_cpu_moves_and_pins_nothing(cpu: CpuBackend) -> None:
    tensor = torch.zeros(1)
    assert cpu.to_device(tensor, 0, non_blocking=True) is tensor
    assert cpu.pin(tensor) is tensor
    assert not cpu.may_pin(True)


def test_cpu_random_state(cpu: CpuBackend) -> None:
    state = cpu.rng_state()
    cpu.manual_seed_all(3)
    first = torch.rand(2)
    cpu.manual_seed(3)
    assert torch.equal(first, torch.rand(2))
    cpu.set_rng_state(state)
    assert torch.equal(cpu.random.get_rng_state(device="cpu"), state)
    assert torch.equal(cpu.default_generators["cpu"].get_state(), state)


@pytest.mark.parametrize("kind", [kinds.Stream, kinds.Event, kinds.Profiler])
def test_the_cpu_has_all_that_the_facade_promises(cpu: CpuBackend, kind: type) -> None:
    mine = {"Stream": cpu.Stream(), "Event": cpu.Event(), "Profiler": cpu.profiler()}[kind.__name__]
    promised = [name for name in vars(kind) if not name.startswith("_")]
    assert promised and [name for name in promised if not callable(getattr(mine, name, None))] == []
    free, total = cpu.mem_get_info()
    assert 0 < free <= total and cpu.memory_reserved() >= cpu.memory_allocated() > 0


def test_npu_profiles_with_its_own_profiler(npu: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, memory and the rest go to torch.npu; the profiler is torch_npu's."""
    activity = SimpleNamespace(CPU="host", NPU="device")
    profiler = SimpleNamespace(ProfilerActivity=activity, profile=lambda activities: activities)
    package = SimpleNamespace(npu=npu, profiler=profiler)
    monkeypatch.setitem(sys.modules, "torch_npu", package)  # type: ignore
    npu.answers |= {"mem_get_info": (1, 2), "memory_allocated": 3, "current_stream": "s"}
    backend = backends.create("npu")
    assert backend.profiler() == ["host", "device"]
    assert (backend.mem_get_info(), backend.memory_allocated()) == ((1, 2), 3)
    assert backend.current_stream() == "s"


def test_cpu_streams_and_events(cpu: CpuBackend) -> None:
    side = cpu.Stream()
    with cpu.stream(side):
        assert cpu.current_stream() is side
        start = side.record_event()
    assert cpu.current_stream() is cpu.default_stream()
    end = cpu.Event(enable_timing=True)
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
    cpu.nvtx.range_push("x")
    cpu.nvtx.range_pop()


def test_cpu_memory(cpu: CpuBackend) -> None:
    cpu.reset_peak_memory_stats()
    block = torch.ones(8 << 20)
    with_block = cpu.peak_memory_bytes()
    assert with_block >= block.numel() * 4
    assert cpu.memory_stats()["allocated_bytes.all.peak"] >= with_block
    assert cpu.mem_get_info()[1] == cpu.get_device_properties().total_memory


def test_a_name_the_cpu_lacks_says_so(cpu: CpuBackend) -> None:
    with pytest.raises(AttributeError, match="device cpu has no counterpart of torch.cuda.graph"):
        _ = cpu.graph
    with pytest.raises(ImportError, match="MemPool"):
        cpu.import_from("torch.cuda.memory", "MemPool")
    assert cpu.import_from("torch.cuda.nvtx", "range_pop")() == 0


def test_cpu_autograd_decorators(cpu: CpuBackend) -> None:
    @cpu.amp.custom_fwd
    def plain(ctx: Any) -> int:
        return 1

    @cpu.amp.custom_fwd(cast_inputs=torch.float32)
    def cast(ctx: Any) -> int:
        return 2

    context = SimpleNamespace()
    assert (plain(context), cast(context)) == (1, 2)
