"""The instructions of the twin compute what torch computes; copies go where their strides say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict

import pytest
import torch
from torch import Tensor

from loopmoe_kernels import twin
from loopmoe_kernels.twin.execute import empty

N = 1024
RINT, FLOOR, CEIL, ROUND, TRUNC = range(1, 6)  # of RoundMode
FLOATS = {
    0: lambda x, y: x + y,
    1: lambda x, y: x - y,
    2: lambda x, y: x * y,
    3: lambda x, y: x / y,
    4: torch.maximum,
    5: torch.minimum,
    6: lambda x, y: x + 1.5,
    7: lambda x, y: x * 1.5,
    8: lambda x, y: x.clamp_min(0.25),
    9: lambda x, y: x.clamp_max(0.25),
    10: lambda x, y: x.exp(),
    11: lambda x, y: y.log(),
    12: lambda x, y: x.abs(),
    13: lambda x, y: y.double().sqrt().float(),  # torch's own of floats is an ulp off
    14: lambda x, y: 1 / y.double().sqrt().float(),
    15: lambda x, y: 1 / y,
    16: lambda x, y: x.relu(),
    17: lambda x, y: y + x * 1.5,
    18: lambda x, y: torch.full_like(x, 2.5),
}


@pytest.fixture(scope="module")
def kernels() -> Dict[str, twin.Kernel]:
    return twin.compile_source(Path(__file__).with_name("arithmetic.cpp"))


def launch(kernel: twin.Kernel, mode: int, inputs: Dict[str, Tensor], **outputs: Tensor) -> None:
    twin.run(kernel, inputs, outputs, struct.pack("i", mode), 1)


def wide_values() -> Tensor:
    """Every exponent, halves between two bf16 and two half values, and what is not finite."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (N,), generator=generator).int()
    words[:256] = words[:256] & ~0x7FFF  # ties of bf16
    words[256:512] = (words[256:512] & ~0x7FFFFFF) | 0x38001000  # ties of half
    values = words.view(torch.float32).clone()
    values[512:700] *= torch.tensor(2.0) ** torch.randint(-30, -10, (188,), generator=generator)
    values[700:900] = torch.randn(200, generator=generator) * 6e-8  # subnormal halves
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65504.0, 65519.9, 65520.0]
    values[-len(special) :] = torch.tensor(special)
    return values


def cast(kernels: Dict[str, twin.Kernel], values: Tensor, mode: int) -> Dict[str, Tensor]:
    out = {
        "as_bf16": empty(N, dtype=torch.bfloat16),
        "as_half": empty(N, dtype=torch.float16),
        "as_int": torch.empty(N, dtype=torch.int32),
    }
    launch(kernels["casts"], mode, {"x": values}, **out)
    return out


def test_rounding_to_nearest_even_is_that_of_torch(kernels: Dict[str, twin.Kernel]) -> None:
    values = wide_values()
    out = cast(kernels, values, RINT)
    for name, dtype in (("as_bf16", torch.bfloat16), ("as_half", torch.float16)):
        torch.testing.assert_close(out[name], values.to(dtype), rtol=0, atol=0, equal_nan=True)
    inside = values.abs() < 2**31
    assert torch.equal(out["as_int"][inside], values[inside].round().int())


@pytest.mark.parametrize("mode", [FLOOR, CEIL, TRUNC])
def test_directed_rounding_takes_the_neighbour(kernels: Dict[str, twin.Kernel], mode: int) -> None:
    values = wide_values()
    values = torch.where(values.abs() < 6e4, values, torch.zeros_like(values))
    out = cast(kernels, values, mode)
    for name in ("as_bf16", "as_half"):
        got, exact = out[name].double(), values.double()
        off = (got - exact) * {FLOOR: -1, CEIL: 1, TRUNC: -exact.sign()}[mode]
        nearest = (values.to(out[name].dtype).double() - exact).abs()
        assert (off >= 0).all()
        assert ((got == exact) == (nearest == 0)).all()
        step = torch.nextafter(out[name], torch.full_like(out[name], float("inf")))
        below = torch.nextafter(out[name], torch.full_like(out[name], float("-inf")))
        gap = torch.maximum(step.double() - got, got - below.double())
        assert (off <= gap).all()
    assert torch.equal(
        out["as_int"], {FLOOR: values.floor, CEIL: values.ceil, TRUNC: values.trunc}[mode]().int()
    )


def test_ties_away_from_zero(kernels: Dict[str, twin.Kernel]) -> None:
    values = torch.zeros(N)
    values[:4] = torch.tensor([0.5, -0.5, 1 + 2**-8, 1 + 3 * 2**-8])
    out = cast(kernels, values, ROUND)
    assert out["as_int"][:2].tolist() == [1, -1]
    assert out["as_bf16"][2:4].tolist() == [1 + 2**-7, 1 + 2**-6]


def test_every_half_and_bf16_widens(kernels: Dict[str, twin.Kernel]) -> None:
    words = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for part in words.split(N):
        bf16, half = part.view(torch.bfloat16), part.view(torch.float16)
        out = {"out_bf16": empty(N, dtype=torch.float32), "out_half": empty(N, dtype=torch.float32)}
        launch(kernels["widened"], 0, {"from_bf16": bf16, "from_half": half}, **out)
        for got, wanted in ((out["out_bf16"], bf16.float()), (out["out_half"], half.float())):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", FLOATS)
def test_instructions_on_floats(kernels: Dict[str, twin.Kernel], mode: int) -> None:
    generator = torch.Generator().manual_seed(mode)
    x, y = torch.randn(N, generator=generator), torch.rand(N, generator=generator) + 0.01
    out = empty(N, dtype=torch.float32)
    launch(kernels["floats"], mode, {"x": x, "y": y}, out=out)
    exact = mode not in (10, 11)  # exp and log of two libraries
    torch.testing.assert_close(out, FLOATS[mode](x, y), rtol=0 if exact else 1e-6, atol=0)


def test_sums(kernels: Dict[str, twin.Kernel]) -> None:
    x = torch.randn(N, generator=torch.Generator().manual_seed(0))
    out, whole = empty(N, dtype=torch.float32), empty(16, dtype=torch.float32)
    launch(kernels["sums"], 0, {"x": x}, out=out, whole=whole)
    torch.testing.assert_close(out.double(), x.double().cumsum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.double(), x.double().view(16, 64).sum(1), rtol=1e-5, atol=1e-5)


def test_strides_and_padding(kernels: Dict[str, twin.Kernel]) -> None:
    x = torch.arange(N, dtype=torch.float32)
    out, blocks = empty(16 * 8, dtype=torch.float32), empty(8 * 16, dtype=torch.float32)
    launch(kernels["strides"], 0, {"x": x}, out=out, blocks=blocks)
    wanted = torch.full((16, 8), -1.0)
    wanted[:, 1:6] = x[: 16 * 8].view(16, 8)[:, :5]
    assert torch.equal(out.view(16, 8), wanted)
    assert torch.equal(blocks.view(8, 16), x[: 8 * 24].view(8, 24)[:, :16])
