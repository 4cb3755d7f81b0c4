"""Where the time of a step goes on this rank, by kind of operation."""

from __future__ import annotations

from typing import Any, Callable, Dict

from torch.profiler import ProfilerActivity, profile

# First match by the operation's name. Each exchange ends when the slowest rank has come.
_KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm"),
    "exchange and waiting": ("c10d", "gloo", "_AllToAll", "_Gather", "_Reduce"),
    "attention (fused)": ("_scaled_dot_product", "_flash_attention"),
    "copies and gathers": ("copy_", "cat", "index", "scatter", "gather", "fill_", "zero_"),
}


def shares(step: Callable[[], Any]) -> Dict[str, float]:
    """Share of the host's time in one call of ``step``, by kind; they sum to 1."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    times = dict.fromkeys([*_KINDS, "all else"], 0.0)
    for event in profiled.key_averages():
        times[_kind(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()}


def _kind(operation: str) -> str:
    name = operation.removeprefix("aten::")
    for kind, names in _KINDS.items():
        if name.startswith(names):
            return kind
    return "all else"
