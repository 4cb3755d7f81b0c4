"""Which implementation runs where, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Callable, Optional, Tuple

import pytest
import torch
from torch import Tensor

from loopmoe_kernels import registry
from loopmoe_kernels.adaln_norm import adaln_norm
from loopmoe_kernels.combine import combine
from loopmoe_kernels.combine.reference import combine as combine_definition
from loopmoe_kernels.permute import permute
from loopmoe_kernels.permute.cases import slots_of
from loopmoe_kernels.permute.reference import permute as permute_definition

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NPU: Any = SimpleNamespace(type="npu")  # torch knows the name only once torch_npu is imported


@pytest.mark.parametrize(
    "device, fits, wanted",
    [
        (CPU, False, "eager"),
        (CPU, True, "eager"),
        (torch.device("meta"), False, "eager"),
        (GPU, True, "triton"),
        (NPU, False, "eager"),
        (NPU, True, "vendor"),
    ],
)
def test_each_device_has_its_own(device: torch.device, fits: bool, wanted: str) -> None:
    assert registry.name_of("permute", device, vendor_fits=fits) == wanted


def test_one_is_forced_by_a_call_or_for_a_while() -> None:
    assert registry.name_of("permute", GPU, "reference") == "reference"
    with registry.forced("eager"):
        assert registry.name_of("permute", GPU) == "eager"
        assert registry.name_of("permute", GPU, "reference") == "reference"
        with registry.forced(None):
            assert registry.name_of("permute", GPU) == "triton"
        assert registry.name_of("permute", GPU) == "eager"
    assert registry.name_of("permute", GPU) == "triton"
    registry.use("eager")
    try:
        assert registry.name_of("permute", GPU) == "eager"
        with registry.forced("triton"):
            assert registry.name_of("permute", GPU) == "triton"
    finally:
        registry.use(None)
    assert registry.name_of("permute", GPU) == "triton"
    x = torch.ones(2, 3)
    wanted = adaln_norm(x, x, x, 1e-6, implementation="reference")
    with registry.forced("reference"):
        assert torch.equal(adaln_norm(x, x, x, 1e-6), wanted)


def test_what_there_is_not_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no implementation for device 'xpu'"):
        registry.pick("permute", torch.device("xpu", 0))
    with pytest.raises(ValueError, match="no implementation 'vendor'"):
        registry.pick("adaln_norm", NPU, "vendor")
    with pytest.raises(ValueError, match="no implementation 'fastest'"):
        registry.pick("adaln_norm", CPU, "fastest")


@pytest.mark.parametrize(
    "device, command", [(GPU, r"loopmoe-train\[cuda\]"), (NPU, "triton-ascend==3.2.0")]
)
def test_a_missing_triton_is_told(
    device: torch.device, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str) -> Any:
        return None if name == "triton" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setattr(registry, "_loaded", {})
    with pytest.raises(RuntimeError, match=command):
        registry.pick("permute", device, "triton")


def test_without_the_vendors_package_its_op_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="npu_no_such_op is no op of torch"):
        registry.vendor_op("npu_no_such_op")


@pytest.fixture
def vendor() -> Iterator[None]:
    """torch_npu's two ops as its documentation describes them, on a processor: no NPU and no
    torch_npu ran in this test, it checks the arguments that are passed and what is made of them."""
    library = torch.library.Library("npu", "FRAGMENT")
    library.define(
        "npu_moe_token_permute(Tensor tokens, Tensor indices, int? num_out_tokens=None, "
        "bool padded_mode=False) -> (Tensor, Tensor)"
    )
    library.define(
        "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, "
        "Tensor? probs=None, bool padded_mode=False, int[]? restore_shape=None) -> Tensor"
    )

    def sort_and_gather(
        tokens: Tensor, indices: Tensor, num_out: Optional[int] = None, padded: bool = False
    ) -> Tuple[Tensor, Tensor]:
        order = torch.argsort(indices.flatten(), stable=True)
        return tokens[order // indices.shape[1]], torch.argsort(order).int()

    def gather_and_sum(
        rows: Tensor, places: Tensor, probs: Optional[Tensor] = None, padded: bool = False,
        shape: Optional[list[int]] = None,
    ) -> Tensor:  # fmt: skip
        picked = rows[places.long()]
        if probs is None:
            return picked
        return (picked.view(*probs.shape, -1) * probs.unsqueeze(-1)).sum(1)

    calls: list[Tuple[str, Callable[..., Any]]] = [
        ("npu_moe_token_permute", sort_and_gather),
        ("npu_moe_token_unpermute", gather_and_sum),
    ]
    for name, function in calls:
        library.impl(name, function, "CompositeImplicitAutograd")
    yield
    library._destroy()


@pytest.mark.skipif(hasattr(torch, "npu"), reason="torch_npu has registered the real ones")
def test_the_vendors_ops_get_slots_as_they_take_them(vendor: None) -> None:
    slots, rows, dropless = slots_of("odd")
    assert dropless
    x = torch.randn(slots.shape[0], 8, requires_grad=True)
    moved = permute(x, slots, rows, dropless=True, implementation="vendor")
    assert torch.equal(moved, permute_definition(x, slots, rows))
    for probs in (torch.rand(slots.shape), None):
        out = combine(moved, slots, probs, dropless=True, implementation="vendor")
        torch.testing.assert_close(out, combine_definition(moved, slots, probs))
    with pytest.raises(ValueError, match="no dropped slots"):
        permute(x, slots, rows, implementation="vendor")
    with pytest.raises(ValueError, match="no dropped slots"):
        combine(moved, slots, implementation="vendor")
