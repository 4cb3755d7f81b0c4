"""The calls that ``loopmoe bench ops`` times, and their operands."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from loopmoe_kernels.rms_norm import rms_norm
from loopmoe_kernels.weighted_swiglu import weighted_swiglu
from loopmoe_train.bench.ops_grid import ROW, rows_of
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.attend import attend
from loopmoe_train.sim.table import Size

Shape = Tuple[int, ...]


class Pool:
    """Random numbers, handed out as operands: filling them anew for every call would take longer
    than the calls.

    Args:
        operators: kind, layout and problem of all that will be asked for.
    """

    def __init__(self, operators: List[Tuple[str, str, Size]], dtype: torch.dtype) -> None:
        self.dtype = dtype
        largest = max(
            sum(torch.Size(shape).numel() for shape in _shapes(*one, dtype.itemsize))
            for one in operators
        )
        self._numbers = torch.empty(largest, dtype=dtype, device=accel.current_device())
        self._numbers.uniform_(-1, 1)

    def operands(self, kind: str, layout: str, problem: Size) -> List[Tensor]:
        """Tensors of an operator side by side; the next call hands the same memory out again."""
        found, begin = [], 0
        for shape in _shapes(kind, layout, problem, self.dtype.itemsize):
            end = begin + torch.Size(shape).numel()
            found.append(self._numbers[begin:end].view(shape).detach())
            begin = end
        return found


def _shapes(kind: str, layout: str, problem: Size, element: int) -> List[Shape]:
    """Of the operands; where something is differentiated, last that of the output's gradient."""
    if kind == "matmul":
        rows, columns, inner = problem
        x, weight, gradient = (rows, inner), (columns, inner), (rows, columns)
        return {"forward": [x, weight], "dgrad": [gradient, weight], "wgrad": [gradient, x]}[layout]
    if kind == "grouped":
        experts, rows, columns, inner = problem
        taken, out = (experts * rows, inner), (experts * rows, columns)
        matrix = (experts, inner, columns)
        return {"forward": [taken, matrix], "dgrad": [out, matrix], "wgrad": [taken, out]}[layout]
    if kind == "attention":
        sequence, heads, qk, v = problem
        return [(sequence, 1, heads, qk)] * 2 + [(sequence, 1, heads, v), (sequence, 1, heads * v)]
    rows = rows_of(layout, problem, element)
    if layout == "copy":
        return [(rows, ROW)]
    if layout.startswith("norm"):
        return [(rows, ROW), (ROW,), (rows, ROW)]
    return [(rows, 2 * ROW), (rows,), (rows, ROW)]


def call_of(kind: str, layout: str, problem: Size, pool: Pool) -> Callable[[], Any]:
    """A call that runs the operator once and leaves its result to be freed.

    Raises:
        RuntimeError: the device has no such operator, or no room for it.
    """
    operands = pool.operands(kind, layout, problem)
    if kind == "matmul":
        one, two = operands
        if layout == "forward":
            return lambda: F.linear(one, two)
        if layout == "dgrad":
            return lambda: one @ two
        return lambda: one.t() @ two
    if kind == "grouped":
        one, two = operands
        groups, rows = problem[:2]
        ends = torch.arange(1, groups + 1, device=one.device, dtype=torch.int32) * rows
        if layout == "forward":
            return lambda: F.grouped_mm(one, two, offs=ends)
        if layout == "dgrad":
            return lambda: F.grouped_mm(one, two.transpose(1, 2), offs=ends)
        return lambda: F.grouped_mm(one.t(), two, offs=ends)
    if layout == "copy":
        (one,) = operands
        return lambda: one * 0.5
    *inputs, gradient = operands
    for one in inputs:
        one.requires_grad_()
    forward: Callable[[], Tensor]
    if kind == "attention":
        forward = lambda: attend(*inputs)  # noqa: E731
    elif layout.startswith("norm"):
        forward = lambda: rms_norm(*inputs, 1e-6)  # noqa: E731
    else:
        forward = lambda: weighted_swiglu(*inputs)  # noqa: E731
    if not layout.endswith("backward"):
        return forward
    out = forward()
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)
