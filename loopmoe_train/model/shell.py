"""Shells: modules without weights that read everything they lack from an owner.

A later visit of a looped layer is a shell of the first visit. It keeps its own state
(training mode, layer number, counters, submodules given to it) and finds parameters,
buffers and all other submodules through the owner at the time of use. Nothing of the
owner is registered in the shell, so an optimizer, a gradient buffer or a checkpoint sees
each weight once; nothing is copied, so a weight that is replaced (a cast, a load) is
never stale.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Optional, Type

from torch import nn

# What nn.Module keeps per instance; a shell starts with fresh ones.
_MODULE_STATE = frozenset(nn.Module().__dict__)


class _Shell:
    """Mixed in before the owner's class: unknown names are looked up in the owner."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if "_owner" not in self.__dict__:
                raise
            own = self.__dict__["_own"]
            return getattr(own if own is not None and name in own._buffers else self._owner, name)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict:
        """The owner emits the weights; a shell has none."""
        return {}


@cache
def _shell_class(cls: Type[nn.Module]) -> Type[nn.Module]:
    return type(f"{cls.__name__}Shell", (_Shell, cls), {})


def shell_of(owner: nn.Module, own: Optional[nn.Module] = None) -> nn.Module:
    """A shell of ``owner``: same class and settings, no parameters, buffers or submodules.

    Args:
        own: its buffers stand in for those of the owner of the same names.
    """
    shell = _shell_class(type(owner)).__new__(_shell_class(type(owner)))
    nn.Module.__init__(shell)
    for name, value in owner.__dict__.items():
        if name not in _MODULE_STATE:
            shell.__dict__[name] = value
    # Set past nn.Module.__setattr__, which would register it as a child.
    shell.__dict__["_owner"] = owner
    shell.__dict__["_own"] = own
    return shell
