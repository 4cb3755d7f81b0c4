"""Loading: the newest checkpoint whose every byte is what was written, on any layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from loopmoe_train.checkpoint.forms import stored
from loopmoe_train.checkpoint.manifest import (
    Manifest,
    check_headers,
    committed,
    differences,
    read_common,
    read_manifest,
)
from loopmoe_train.checkpoint.state import Restore, Trained, load_common, random_keys
from loopmoe_train.checkpoint.tensors import ShardEntry, damaged, read_shard
from loopmoe_train.errors import Refused

Read = Tuple[bytes, Dict[int, Tensor], Dict[str, Tensor]]


def load_newest(
    root: Path, trained: Trained, about: Dict[str, Any], layout: Dict[str, Any],
    note: Callable[[str], None],
) -> Tuple[Path, Dict[str, int]]:  # fmt: skip
    """Restore the newest checkpoint below ``root`` that is whole; a collective call.

    A damaged one is passed over on all ranks when one finds the damage, and told by ``note``.

    Returns:
        Its folder and the position.

    Raises:
        Refused: the newest one is of another run, or none is whole.
    """
    found: List[str] = []
    for folder in committed(root):
        problem, position = _try(folder, trained, about, layout)
        if not problem:
            return folder, position
        found.append(problem)
        note(f"passed over {problem}")
    raise Refused(
        f"{root}: no whole checkpoint: {'; '.join(found)}",
        "restore one, or choose another name=",
    )


def load(
    folder: Path, trained: Trained, about: Dict[str, Any], layout: Dict[str, Any]
) -> Dict[str, int]:
    """Restore ``folder``; a collective call. Returns the position.

    Raises:
        Refused: it is damaged (the file is named) or of another run (the difference is shown).
    """
    problem, position = _try(folder, trained, about, layout)
    if problem:
        raise Refused(problem, "resume from another one, or use checkpoint.resume=auto")
    return position


def verify(folder: Path) -> Manifest:
    """Read every byte of a checkpoint, in one process and without a model.

    Raises:
        Refused: something is not what was written; the file is named.
    """
    manifest = read_manifest(folder)
    check_headers(folder, manifest)
    _check_common(folder, manifest)
    for entry in manifest.shards:
        read_shard(folder, entry)
    return manifest


def _try(
    folder: Path, trained: Trained, about: Dict[str, Any], layout: Dict[str, Any]
) -> Tuple[str, Dict[str, int]]:
    """What is wrong with ``folder`` on any rank, or "" and its position, restored."""
    restore = Restore(trained)
    problem, read = "", None
    try:
        manifest = read_manifest(folder)
        _check_same_run(folder, manifest, about)
        read = _read(folder, manifest, restore, manifest.layout == layout)
    except _AnotherRun:
        raise  # the same on every rank: all read the same manifest
    except Refused as error:
        problem = error.what
    everywhere: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, problem)
    first = next((text for text in everywhere if text), "")
    if first or read is None:
        return first, {}
    return "", restore.apply(*read)


class _AnotherRun(Refused):
    """Not damage: the checkpoint belongs to other settings."""


def _check_same_run(folder: Path, manifest: Manifest, about: Dict[str, Any]) -> None:
    changes = differences(manifest.about, about)
    if changes:
        raise _AnotherRun(
            f"{folder}: {'; '.join(changes[:4])}",
            "set it back, or choose another name=",
        )


def _read(folder: Path, manifest: Manifest, restore: Restore, same_layout: bool) -> Read:
    """Everything this rank needs, verified.

    Raises:
        Refused: something is damaged or missing.
    """
    check_headers(folder, manifest)
    common = _check_common(folder, manifest)
    by_key = manifest.by_key()
    read = {}
    for part in restore.wanted():
        shape = tuple(part.local_shape)
        read[id(part)] = _assemble(folder, stored(by_key, part.key), part, shape)
    random: Dict[str, Tensor] = {}
    if same_layout:
        prefix = random_keys(dist.get_rank())
        random = {
            key[len(prefix) :]: read_shard(folder, entries[0])
            for key, entries in by_key.items()
            if key.startswith(prefix)
        }
    return common, read, random


def _check_common(folder: Path, manifest: Manifest) -> bytes:
    common = read_common(folder, manifest)
    try:
        load_common(common)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise damaged(folder / "common.pt", f"it holds something else than values ({text})") from (
            error
        )
    return common


def _assemble(folder: Path, entries: List[ShardEntry], part: Any, shape: Tuple[int, ...]) -> Tensor:
    """The wanted part of a global tensor, put together from the stored ones that overlap it."""
    wanted = tuple(part.global_shape)
    if not entries or entries[0].global_shape != wanted:
        stored = entries[0].global_shape if entries else None
        raise Refused(f"{folder}: {part.key} is {stored} there, {wanted} here")
    out = torch.empty(shape, dtype=part.dtype)
    filled = 0
    for entry in entries:
        low = [max(a, b) for a, b in zip(entry.offset, part.global_offset)]
        high = [
            min(a + n, b + m)
            for a, n, b, m in zip(entry.offset, entry.shape, part.global_offset, shape)
        ]
        if any(b <= a for a, b in zip(low, high)):
            continue
        source = read_shard(folder, entry)
        here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, part.global_offset))
        there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, entry.offset))
        out[here] = source[there]
        filled += out[here].numel()
    if filled != out.numel():
        raise Refused(f"{folder}: {part.key} is not complete")
    return out
