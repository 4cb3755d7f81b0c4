"""The lint of the Ascend form, on text as triton-ascend writes it (`make kernels-ascend` runs it
on the kernels themselves, in an environment of its own)."""

from __future__ import annotations

import pytest

from tests.kernels.ascend.lint import NAME, ON_CHIP, faults, on_chip

LOAD = """\
      %alloc = memref.alloc() : memref<2048xbf16>
      memref.copy %cast, %alloc : memref<2048xbf16, strided<[1], offset: ?>> to memref<2048xbf16>
      %1 = bufferization.to_tensor %alloc restrict writable : memref<2048xbf16>
      %2 = arith.extf %1 : tensor<2048xbf16> to tensor<2048xf32>
"""
STORE = "bufferization.materialize_in_destination %9 in writable %cast : (tensor<2048xf32>)\n"


def test_memory_is_what_is_allocated_and_the_largest_value_twice() -> None:
    assert on_chip(LOAD) == 2 * (2048 * 2 + 2048 * 4)
    assert on_chip("") == 0
    assert on_chip("%0 = tensor.empty() : tensor<4x64xi1>") == 2 * 256


def test_what_is_right_passes() -> None:
    assert not list(faults(LOAD, "kernel", (48,)))
    scalar = "%1 = arith.cmpi sge, %2, %c0_i64 : i64\n%3 = arith.addi %4, %5 : i64\n"
    copied = "%9 = arith.mulf %2, %2 : tensor<2048xf32>\n" + STORE
    assert not list(faults(LOAD + scalar + copied, "n" * NAME, (65535,)))


@pytest.mark.parametrize(
    "text, said",
    [
        (f"%0 = memref.alloc() : memref<{ON_CHIP // 4 + 16}xi16>", "on-chip memory"),
        ("%0 = arith.mulf %1, %1 : tensor<16xf64>", "float64"),
        ("%0 = arith.truncf %1 : tensor<16xf32> to tensor<16xf8E4M3FN>", "float8"),
        ('linalg.generic {GenericAtomicRMW = "add"} ins(%1 : memref<1xi64>)', "64 bits"),
        ("%0 = func.call @triton_sort_0(%1) : (tensor<16xi32>) -> tensor<16xi32>", "a sort"),
        ("} {ExtractedLoadOrStore}", "vector of indices"),
        ("%0 = arith.cmpi slt, %1, %2 : tensor<16xi32>", "integer vectors"),
        ("%0 = arith.addi %1, %2 : tensor<16xi64>", "int64 vectors"),
        (LOAD + "%9 = arith.select %1, %2, %3 : tensor<2048xf32>\n" + STORE, "scattered"),
    ],
)
def test_each_fault_is_named(text: str, said: str) -> None:
    found = list(faults(text, "kernel", (1,)))
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize("grid", [(65536,), (4, 4), (0,)])
def test_a_grid_that_is_not_one_small_dimension(grid: tuple[int, ...]) -> None:
    assert "grid" in next(faults("", "kernel", grid))


def test_a_long_name() -> None:
    assert "50 characters" in next(faults("", "n" * 50, (1,)))
