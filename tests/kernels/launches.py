"""Every kernel launch that the ops make, recorded instead of launched: no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

import torch
from triton.runtime.jit import JITFunction

from loopmoe_kernels.adaln_norm import adaln_norm
from loopmoe_kernels.combine import combine
from loopmoe_kernels.dispatch_index import dispatch_index
from loopmoe_kernels.expert_major_index import expert_major_index
from loopmoe_kernels.permute import permute
from loopmoe_kernels.registry import forced
from loopmoe_kernels.router_topk import router_topk
from loopmoe_kernels.weighted_swiglu import weighted_swiglu

_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
DIVISIBLE = 16  # what triton assumes of an argument that it specialises on


@dataclass
class Launch:
    """One launch, as the compiler is asked for it.

    Attributes:
        signature: argument -> type, as "*bf16", "i32" or "constexpr".
        constants: argument -> value of the constexprs.
        aligned: places of arguments that are multiples of 16.
    """

    kernel: Any
    grid: Tuple[int, ...]
    warps: int
    signature: Dict[str, str]
    constants: Dict[str, Any] = field(default_factory=dict)
    aligned: List[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def key(self) -> str:
        return f"{self.name}{self.signature}{self.constants}{self.aligned}{self.warps}"


@contextmanager
def recorded() -> Iterator[List[Launch]]:
    """Launches made inside, once each; none of them happens: results are what memory held."""
    found: Dict[str, Launch] = {}
    launches: List[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, num_warps: int = 4) -> None:
        launch = Launch(self, tuple(grid), num_warps, {})
        for place, (parameter, value) in enumerate(zip(self.params, args, strict=True)):
            name = parameter.name
            if parameter.is_constexpr:
                launch.signature[name], launch.constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                launch.signature[name] = _TYPES[value.dtype]
                launch.aligned += [place] if value.data_ptr() % DIVISIBLE == 0 else []
            elif isinstance(value, float):
                launch.signature[name] = "fp32"
            else:
                assert isinstance(value, int) and -(2**31) <= value < 2**31, (name, value)
                launch.signature[name] = "i32"
                whole = not parameter.do_not_specialize and value % DIVISIBLE == 0
                launch.aligned += [place] if whole else []
        if launch.key not in found:
            found[launch.key] = launch
            launches.append(launch)

    usual, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = usual


def call_all(tokens: int, width: int, top_k: int, experts: int, dtype: torch.dtype) -> None:
    """Every op, forward and backward, with and without its options, on tensors of this size."""
    rows, half = tokens * top_k, dtype
    with forced("triton"):
        chosen = torch.zeros(tokens, top_k, dtype=torch.int32)
        dispatch_index(chosen, experts)
        expert_major_index(torch.zeros(4, experts, dtype=torch.int64), rows)
        x = torch.zeros(tokens, width, dtype=half, requires_grad=True)
        y = torch.zeros(rows, width, dtype=half, requires_grad=True)
        probs = torch.zeros(tokens, top_k, requires_grad=True)
        for slots, source in ((chosen, x), (torch.zeros(rows, 1, dtype=torch.int32), y)):
            permute(source, slots, rows, dropless=True).backward(y)
        combine(y, chosen, probs, dropless=True).backward(x)
        combine(y, chosen).backward(x)
        wide = torch.zeros(tokens, 2 * width, dtype=half, requires_grad=True)
        adaln_norm(x, *wide.split(width, dim=-1), 1e-6).backward(x)
        weighted_swiglu(torch.cat([y, y], 1), probs.flatten()).backward(y)
        logits = torch.zeros(tokens, experts, dtype=half, requires_grad=True)
        for bias in (None, torch.zeros(experts)):
            router_topk(logits, bias, top_k)[0].backward(torch.zeros(tokens, top_k))


KERNELS = {
    "count_pairs", "number_pairs", "number_segments", "permute_rows", "combine_rows",
    "combine_rows_backward", "swiglu_rows", "swiglu_rows_backward", "adaln_rows",
    "adaln_rows_backward", "choose_experts", "choose_experts_backward",
}  # fmt: skip
