"""What a repair of megatron-core is, and how one is left out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

CORE = "megatron.core."
SUPPORTED = "==0.16.1"
disabled: set[str] = set()
#: how to take back what a fix set in its module; wrapped functions look at `disabled` themselves
undo: dict[str, Callable[[], None]] = {}


@dataclass(frozen=True)
class Fix:
    """One repair: `apply` changes `module` right after it was executed for the first time."""

    name: str
    module: str
    versions: str
    defect: str
    apply: Callable[[ModuleType], None]


def wrap(fix: str, owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace `owner.name` by the decorated function, which gets the original as `original`."""
    original = getattr(owner, name)

    def decorate(replacement: Callable[..., Any]) -> None:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if fix in disabled:
                return original(*args, **kwargs)
            return replacement(original, *args, **kwargs)

        setattr(owner, name, wrapper)

    return decorate
