"""Every check of the twin finds the fault planted for it, and passes the same kernel without."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Dict

import pytest
import torch

from loopmoe_kernels import twin
from loopmoe_kernels.twin.execute import empty

SOURCES = sorted(Path(__file__).with_name("faults").glob("*.cpp"))

# Kernel of faults/ -> the message. Each is also checked to name kernel, block, call and line.
FAULTS = {
    "ub_capacity": r"InitBuffer .*UB overflow: 131072 \+ 65664 bytes exceed the capacity of 196608",
    "buffer_size": r"InitBuffer .*100 bytes are not a positive multiple of 32",
    "copy_length": r"DataCopy .*36 bytes is not a positive multiple of 32",
    "copy_alignment": r"DataCopy .*GM in \+ 8 is not aligned to 32 bytes",
    "vector_alignment": r"Adds .*UB address 0x10 is not aligned to 32 bytes",
    "gm_read_bounds": r"DataCopy .*out of bounds: reads GM in bytes \[3968, 4224\) of 4096",
    "gm_write_bounds": r"DataCopyPad .*out of bounds: writes GM out bytes \[4076, 4100\) of 4096",
    "local_bounds": r"Adds .*out of bounds: 72 elements of a LocalTensor of 64",
    "dma_blocks": r"DataCopyPad .*blockCount 4096 is outside 1..4095",
    "padding_size": r"DataCopyPad .*padding of 0 and 60 bytes: each side takes 32 at most",
    "before_deque": r"Adds .*a VECIN tensor is read by V before DeQue",
    "inside_queue": r"DataCopy .*a VECOUT tensor is used between EnQue and DeQue",
    "use_after_free": r"Adds .*use after FreeTensor: a VECIN tensor",
    "missing_free": r"AllocTensor .*hang: all 2 buffers of this VECIN queue are in use",
    "held_at_the_end": r"end of the kernel .*is still held: FreeTensor is missing",
    "double_free": r"FreeTensor .*FreeTensor twice",
    "enque_twice": r"EnQue .*EnQue of a tensor that AllocTensor did not give out",
    "queue_depth": r"EnQue .*EnQue number 2 into a queue of depth 1",
    "empty_queue": r"DeQue .*hang: DeQue of an empty VECIN queue",
    "wrong_queue": r"FreeTensor .*this tensor belongs to another queue",
    "wait_without_set": r"WaitFlag .*hang: WaitFlag of event V_MTE3 1, which nothing has set",
    "set_twice": r"SetFlag .*event V_MTE3 0 is set a second time without WaitFlag",
    "left_set": r"end of the kernel .*event MTE3_V 2, set at .*, was never waited for",
    "event_id": r"SetFlag .*event id 8 is outside 0..7",
    "kept_event": r"end of the kernel .*event V_MTE3 0 was never released",
    "scalar_reads_load": r"GetValue .*RAW hazard: S reads .*MTE2 wrote in DataCopy .*MTE2_S event",
    "load_over_scalar": r"DataCopy .*WAR hazard: MTE2 writes .*S reads in GetValue",
    "scalar_reads_vector": r"GetValue .*RAW hazard: S reads .*V wrote in Duplicate",
    "vector_reads_scalar": r"Adds .*RAW hazard: V reads .*S wrote in SetValue",
    "vector_reads_load": r"Adds .*RAW hazard: V reads .*MTE2 wrote in DataCopy",
    "load_over_vector": r"DataCopy .*WAR hazard: MTE2 writes .*V reads in Adds",
    "store_reads_vector": r"DataCopy .*RAW hazard: MTE3 reads .*V wrote in Duplicate",
    "vector_over_store": r"Adds .*WAR hazard: V writes .*MTE3 reads in DataCopy",
    "free_too_early": r"DataCopy .*WAW hazard: MTE2 writes .*V wrote in Duplicate",
    "edge_of_enque": r"DataCopy .*RAW hazard: MTE3 reads .*V wrote in Duplicate",
    "edge_of_free": r"DataCopy .*WAW hazard: MTE2 writes .*V wrote in Duplicate",
    "vector_barrier": r"Muls .*RAW hazard: V reads .*\(same pipe\).*without PipeBarrier<PIPE_V>",
    "vector_writes_twice": r"Duplicate .*WAW hazard: V writes .*without PipeBarrier<PIPE_V>",
    "store_over_store": r"DataCopy .*WAW hazard: MTE3 writes GM out .*PipeBarrier<PIPE_MTE3>",
    "read_back": r"DataCopy .*RAW hazard: MTE2 reads GM out .*MTE3 wrote in DataCopy",
    "blocks_overlap": r"block 1: DataCopy .*blocks overlap: writes .*which block 0 wrote too",
    "reads_other_block": r"block 1: DataCopy .*race between blocks: reads .*which block 0 writes",
    "writes_what_is_read": r"block 1: DataCopy .*race between blocks: writes .*which block 0 reads",
    "store_over_load": r"DataCopy .*WAR hazard: MTE3 writes GM in .*MTE2 reads in DataCopy",
    "unwritten_ub": r"Adds .*V reads UB \[0x0, 0x100\), of which byte 252 was never written",
    "unknown_padding": r"Adds .*V reads UB \[0x0, 0x20\), of which byte 20 was never written",
    "writes_input": r"DataCopy .*writes GM in .*an input of this kernel",
    "reads_output": r"DataCopy .*reads GM out .*which nothing has written",
    "cast_rounding": r"Cast .*a narrowing Cast needs a rounding",
    "shifted_overlap": r"Adds .*the result UB .* overlaps the operand UB .* in part",
    "reduce_work": r"ReduceSum .*the work tensor has 8 floats, 1024 floats to sum need 16",
    "sum_lanes": r"Adds .*of which byte 16 was never written",
    "no_buffer": r"AllocTensor .*this queue was given no buffers",
    "second_pipe": r"TPipe .*a second TPipe in one kernel",
    "buffers_twice": r"InitBuffer .*this queue has its buffers already",
    "no_buffers": r"InitBuffer .*a queue of 0 buffers",
    "never_given": r"Duplicate .*this LocalTensor was never given a buffer",
    "global_never_given": r"DataCopy .*this GlobalTensor was never given a buffer",
    "strange_address": r"SetGlobalBuffer .*GM address 0x[0-9a-f]+ is in no tensor of this launch",
    "stale_tensor": r"FreeTensor .*a stale tensor: its buffer was freed and given out again",
    "free_in_queue": r"FreeTensor .*FreeTensor of a VECOUT tensor that is in its queue",
    "index_bounds": r"SetValue .*out of bounds: operator\[\]\(65\) of a LocalTensor of 64 elements",
    "get_bounds": r"TBuf::Get .*out of bounds: Get of 260 bytes of a TBuf of 256",
    "empty_count": r"Duplicate .*count is 0",
    "widening_in_place": r"Cast .*a widening Cast in place overwrites what it has not read",
    "local_copy_length": r"DataCopy .*a length of 36 bytes is not a multiple of 32",
    "sum_mask": r"WholeReduceSum .*mask 65 is outside 1..64",
    "out_of_events": r"FetchEventID .*all 8 event ids of this pair of pipes are reserved",
    "burst_length": r"DataCopyPad .*blockLen 0 is outside 1..2097151 bytes",
    "no_pipe": r"GetTPipePtr .*GetTPipePtr without a TPipe",
    "scratch_without_buffer": r"TBuf::Get .*this TBuf was given no buffer",
    "sum_stride": r"WholeReduceSum .*the twin knows srcBlkStride 1, not 2",
    "tiling_address": r"GET_TILING_DATA .*the tiling address points into in",
    "empty_copy": r"DataCopy .*count is 0",
    "foreign_event": r"ReleaseEventID .*event id 1 is not reserved",
}

IN_PLACE = ("writes_what_is_read", "store_over_load")
BETWEEN_BLOCKS = ("blocks_overlap", "reads_other_block", "writes_what_is_read")


@pytest.fixture(scope="module")
def kernels() -> Dict[str, twin.Kernel]:
    built: Dict[str, twin.Kernel] = {}
    for source in SOURCES:
        built |= twin.compile_source(source)
    return built


def launch(kernel: twin.Kernel, fault: int, strict: bool = True) -> twin.Report:
    inputs = {"in": torch.arange(1024, dtype=torch.float32)}
    outputs = {"out": empty(1024, dtype=torch.float32)}
    if kernel.name in IN_PLACE:
        outputs["in"] = inputs["in"]
    blocks = 2 if kernel.name in BETWEEN_BLOCKS else 1
    return twin.run(kernel, inputs, outputs, struct.pack("i", fault), blocks, strict)


def test_every_kernel_has_its_message(kernels: Dict[str, twin.Kernel]) -> None:
    assert set(kernels) == set(FAULTS) and len(FAULTS) >= 15


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, kernels: Dict[str, twin.Kernel]) -> None:
    launch(kernels[name], 0)
    with pytest.raises(twin.TwinFault) as fault:
        launch(kernels[name], 1)
    text = str(fault.value)
    assert re.match(rf"{name}: block [01]: .* at (\w+\.cpp|common\.h):\d+: ", text), text
    assert re.search(FAULTS[name], text), text


def test_a_lax_run_lets_vector_instructions_follow(kernels: Dict[str, twin.Kernel]) -> None:
    launch(kernels["vector_barrier"], 1, strict=False)
    with pytest.raises(twin.TwinFault, match="RAW hazard"):  # between pipes nothing is lax
        launch(kernels["store_reads_vector"], 1, strict=False)


def test_a_tiling_of_another_size_is_refused(kernels: Dict[str, twin.Kernel]) -> None:
    with pytest.raises(twin.TwinFault, match="reads a tiling of 4 bytes, the host wrote 8"):
        twin.run(
            kernels["copy_length"], {"in": torch.zeros(8)}, {"out": torch.zeros(8)}, b"\0" * 8, 1
        )


TYPES = """
#include "kernel_operator.h"
using namespace AscendC;
void Check(LocalTensor<bfloat16_t> b, LocalTensor<float> f, LocalTensor<int32_t> i)
{{
    (void)b, (void)f, (void)i;
    {call};
}}
extern "C" __global__ __aicore__ void types(GM_ADDR x) {{ (void)x; }}
"""


KNOWN_TYPES = (
    "Add(f, f, f, 8)",
    "Exp(f, f, 8)",
    "Muls(i, i, 2, 8)",
    "Cast(b, f, RoundMode::CAST_RINT, 8)",
)


def test_types_that_the_vector_unit_has_compile(tmp_path: Path) -> None:
    source = tmp_path / "types.cpp"
    source.write_text(TYPES.format(call=";\n    ".join(KNOWN_TYPES)))
    twin.compile_source(source, cache=tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        "Add(b, b, b, 8)",
        "Exp(i, i, 8)",
        "Muls(b, b, bfloat16_t{}, 8)",
        "Cast(b, b, RoundMode::CAST_RINT, 8)",
    ],
)
def test_a_type_that_the_vector_unit_lacks_does_not_compile(call: str, tmp_path: Path) -> None:
    source = tmp_path / "types.cpp"
    source.write_text(TYPES.format(call=call))
    with pytest.raises(twin.TwinError, match="the vector unit has no such"):
        twin.compile_source(source, cache=tmp_path)
