"""torch_npu.profiler of the stand-in: torch's own, told what the wheel's takes."""

from __future__ import annotations

import enum
from typing import Any

import torch.profiler
from torch_npu import record, wheel


class ProfilerActivity(enum.Enum):
    CPU = 0
    NPU = 1


class profile:  # noqa: N801 (the wheel's name)
    def __init__(self, **named: Any) -> None:
        record.note(
            "profiler", "profile", wheel.signatures("profiler")["profile.__init__"], self, **named
        )
        self._torch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

    def __getattr__(self, name: str) -> Any:
        known = wheel.signatures("profiler")
        signature = known.get(f"profile.{name}") or known.get(f"_KinetoProfile.{name}")
        if signature is None:
            raise AttributeError(f"torch_npu 2.13: profile has no {name}")

        def call(*arguments: Any, **named: Any) -> Any:
            record.note("profiler", name, signature, self, *arguments, **named)
            return getattr(self._torch, name)(*arguments, **named)

        return call
