"""The vendor's operators that loopmoe_kernels calls: the wheel's schemas, done with torch's own."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch_npu import record, wheel

_library = torch.library.Library("npu", "DEF")


def _permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: Optional[int] = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    per_token = indices.shape[1] if indices.dim() == 2 else 1
    order = torch.argsort(indices.flatten(), stable=True)
    rows = tokens.index_select(0, torch.div(order, per_token, rounding_mode="floor"))
    return rows, torch.argsort(order).to(torch.int32)


def _unpermute(
    permuted_tokens: Tensor, sorted_indices: Tensor, probs: Optional[Tensor] = None,
    padded_mode: bool = False, restore_shape: Any = None,
) -> Tensor:  # fmt: skip
    rows = permuted_tokens.index_select(0, sorted_indices)
    if probs is None:
        return rows
    rows = rows.view(*probs.shape, -1) * probs.unsqueeze(-1)
    return rows.sum(1).to(permuted_tokens.dtype)


OPERATORS = {"npu_moe_token_permute": _permute, "npu_moe_token_unpermute": _unpermute}


def register() -> None:
    for name, function in OPERATORS.items():
        _library.define(wheel.schema(name))

        def call(*arguments: Any, _f: Any = function, _n: str = name, **named: Any) -> Any:
            # the dispatcher has compared the arguments with the schema
            record.write("operator", _n, [record.plain(one) for one in arguments], {})
            return _f(*arguments, **named)

        _library.impl(name, call, "CompositeImplicitAutograd")
