"""Secrets of the environment stay out of every file of a run.

A secret is the value of an environment variable whose name says so (``WANDB_API_KEY``,
``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``, ``DB_PASSWORD``). Nothing here looks anywhere else.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Dict

_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
_LOCATIONS = ("_PATH", "_FILE", "_DIR", "_HOME", "_SOCK")  # say where a secret lies, not what
_SHORTEST = 8  # TOKENIZERS_PARALLELISM=false is no secret, and `false` is everywhere


def secrets() -> Dict[str, str]:
    """Name to value of the secret environment variables, the longest value first."""
    found = {
        name: value
        for name, value in os.environ.items()
        if any(word in name.upper() for word in _WORDS)
        and not name.upper().endswith(_LOCATIONS)
        and len(value) >= _SHORTEST
    }
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def redact(text: str) -> str:
    """``text`` with every secret replaced by ``***``."""
    for value in secrets().values():
        text = text.replace(value, "***")
    return text


class _Redacted:
    """A text stream that redacts what is written; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """From now on this process prints no secret: tracebacks and libraries' messages included."""
    sys.stdout, sys.stderr = _Redacted(sys.stdout), _Redacted(sys.stderr)  # type: ignore[assignment]
