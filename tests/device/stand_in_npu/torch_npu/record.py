"""The record of what a process told its device, one JSON object a line, in order."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any, Mapping

import torch

_folder = os.environ.get("STAND_IN_RECORD", "")
_stream = None


def note(kind: str, name: str, signature: inspect.Signature, *arguments: Any, **named: Any) -> None:
    """Compare a call with its signature and write it down.

    Raises:
        TypeError: the real thing would not take these arguments.
    """
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise TypeError(f"torch_npu 2.13: {name}{signature}: {error}") from None
    write(kind, name, [plain(one) for one in arguments], {k: plain(v) for k, v in named.items()})


def write(kind: str, name: str, arguments: Any, named: Mapping[str, Any]) -> None:
    global _stream
    if not _folder:
        return
    if _stream is None:
        file = f"rank-{os.environ.get('RANK', 'front')}-{os.getpid()}.jsonl"
        _stream = open(Path(_folder) / file, "a", buffering=1)  # noqa: SIM115 (until the end)
    _stream.write(json.dumps([kind, name, arguments, named]) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: of a tensor its shape and type."""
    if isinstance(value, torch.Tensor):
        return [list(value.shape), str(value.dtype).removeprefix("torch."), value.device.type]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
