"""Import megatron.core for whatever device was selected, without touching torch.

A finder at the head of `sys.meta_path` hands every module of megatron.core to `PortLoader`, which
compiles it through `rewrite`, binds `__accel__`, executes it, and then applies the fixes that
`fixes` registers for that very module: before anyone else can hold a reference to what they
replace, so the order of imports does not matter.

Compiled code is cached per user. The cache holds marshalled code, which is as good as a program:
it is only read from a folder that this user owns and nobody else can write, and is otherwise
done without.

This module imports no torch, and the heavier parts of the standard library only on first use.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import stat
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from loopmoe_train.errors import Refused

_ROOT = "megatron.core"
#: Imported as they are: they drive CUDA itself and mean nothing on another device.
LEFT_ALONE = (
    "megatron.core.extensions.transformer_engine",
    "megatron.core.inference.unified_memory",
    "megatron.core.nccl_allocator",
    "megatron.core.resharding.nvshmem_copy_service",
    "megatron.core.transformer.custom_layers.batch_invariant_kernels",
)


class ImportOrderError(Refused, RuntimeError):
    """megatron.core was imported before loopmoe_train and so without the port."""


def _below(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


class PortLoader(importlib.machinery.SourceFileLoader):
    """Loads one module of megatron.core with its device names replaced."""

    def get_code(self, fullname: str) -> types.CodeType:  # type: ignore[override]
        # never the parent's: it would read and write __pycache__, which other programs share
        source = self.get_data(self.path)
        return load_code(source, self.path, fullname)

    def exec_module(self, module: types.ModuleType) -> None:
        """Execute the module, then apply its fixes.

        Raises:
            Refused: the installed megatron-core is not the one the fixes were written for.
        """
        # late: by now megatron.core itself is about to import torch
        from loopmoe_train.device.accelerator import accel

        module.__dict__["__accel__"] = accel
        super().exec_module(module)
        from loopmoe_train.device import fixes

        fixes.apply_to(module)


class PortFinder:
    """A meta path finder that answers for megatron.core and its submodules only.

    Not a subclass of importlib.abc.MetaPathFinder: that import alone costs 20 ms.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _below(fullname, _ROOT) or any(_below(fullname, name) for name in LEFT_ALONE):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = PortLoader(fullname, spec.loader.path)
                return spec
        return None


def is_ported(module: types.ModuleType) -> bool:
    """True if this module of megatron.core came through the port."""
    return isinstance(getattr(module.__spec__, "loader", None), PortLoader)


def install() -> None:
    """Put the finder in front of all others; a second call changes nothing.

    Raises:
        ImportOrderError: megatron.core is imported already. Its device names could no longer be
            replaced, nor its fixes be applied before others hold what they replace.
    """
    early = sys.modules.get(_ROOT)
    if early is not None and not is_ported(early):
        raise ImportOrderError(
            "megatron.core was imported before loopmoe_train, so it is not ported to this device "
            "and its defects are not fixed",
            "import loopmoe_train before megatron",
        )
    if any(isinstance(finder, PortFinder) for finder in sys.meta_path):
        return
    from loopmoe_train.device import quiet

    quiet.install()
    sys.meta_path.insert(0, PortFinder())


# -- spawned children ------------------------------------------------------------------------


class Spawned:
    """A function for a spawned process that brings the port along.

    A spawned child starts with an empty `sys.meta_path`; what it unpickles decides what it
    imports. This class is unpickled by importing loopmoe_train, hence the finder, and only then
    opens the pickled function, which may live in megatron.core.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # ForkingPickler: the function may be bound to objects that only multiprocessing pickles
        from multiprocessing.reduction import ForkingPickler

        return _open_spawned, (bytes(ForkingPickler.dumps(self._function)),)


def _open_spawned(pickled: bytes) -> Spawned:
    import pickle

    return Spawned(pickle.loads(pickled))


def spawned(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the target of a process that may be spawned, so that its child is ported too.

    Needed only when the child would reach megatron.core before any module of loopmoe_train: a
    target of ours, or a main module that imports loopmoe_train, carries the port by itself.
    megatron.core's own `Process(target=...)` calls are wrapped by the rewriter.
    """
    return function if isinstance(function, Spawned) else Spawned(function)


# -- cache of compiled code ------------------------------------------------------------------


def cache_folder() -> str:
    """Where compiled modules are kept: below XDG_CACHE_HOME or ~/.cache, per Python version."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):
        root = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "loopmoe_train", "port-" + str(sys.implementation.cache_tag))


def _is_private(folder: str) -> bool:
    """True if this user alone can have put the files there (a symbolic link does not count)."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others_write


@functools.cache
def _rewriter() -> bytes:
    """What decides the rewritten code besides the source: the text of the rewriter itself."""
    with open(os.path.join(os.path.dirname(__file__), "rewrite.py"), "rb") as stream:
        return stream.read()


def load_code(source: bytes, path: str, fullname: str) -> types.CodeType:
    """Return the rewritten code of one module, from the cache where that is possible and safe.

    The key covers everything the code depends on, so a stale entry is never found. A damaged
    one is treated as absent and replaced.
    """
    import hashlib
    import importlib.util
    import marshal

    digest = hashlib.sha256(source)
    context = (_rewriter(), importlib.util.MAGIC_NUMBER, sys.flags.optimize, path, fullname)
    digest.update(repr(context).encode())
    folder = cache_folder()
    file = os.path.join(folder, digest.hexdigest())
    if _is_private(folder):
        try:
            with open(file, "rb") as stream:
                body = stream.read()
            # the checksum catches a torn or damaged file, which marshal might read as nonsense
            if hashlib.sha256(body[32:]).digest() == body[:32]:
                code = marshal.loads(body[32:])
                if isinstance(code, types.CodeType):
                    return code
        except (OSError, ValueError, EOFError, TypeError):
            pass
    from loopmoe_train.device.rewrite import rewrite

    code = rewrite(source, path, fullname)
    body = marshal.dumps(code)
    _store(folder, file, hashlib.sha256(body).digest() + body)
    return code


def _store(folder: str, file: str, body: bytes) -> None:
    """Write one entry atomically; a cache that cannot be written is simply not there."""
    temporary = f"{file}.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not _is_private(folder):
            return
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(body)
        os.replace(temporary, file)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
