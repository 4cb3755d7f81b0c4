"""Checkpoints of a run folder: ``checkpoints/step-<n>/rank-<r>.pt`` and ``manifest.json``.

A checkpoint is valid when its manifest is there and every file it names has the size and
hash written in it. Files go into a temporary folder, the manifest last, and a rename makes
the checkpoint appear: a kill at any time leaves the previous one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist

from loopmoe_train.errors import Refused, RunFailed

MANIFEST = "manifest.json"
FORMAT = 1


def step_folder(root: Path, step: int) -> Path:
    """Folder of one checkpoint."""
    return root / f"step-{step}"


def save(root: Path, step: int, state: Dict[str, Any], about: Dict[str, Any], keep: int) -> Path:
    """Write one checkpoint; every rank calls it with its own ``state``.

    Args:
        about: what must match on resume, and the step; goes into the manifest.
        keep: newest checkpoints to keep; 0 keeps all.

    Raises:
        RunFailed: a file could not be written (on any rank; the checkpoint is then absent).
    """
    rank = dist.get_rank()
    partial = root / f".step-{step}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    mine = _write_rank(partial, rank, state)
    entries: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(entries, mine)
    failed = [f"rank {r}: {e['error']}" for r, e in enumerate(entries) if "error" in e]
    if failed:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(f"{step_folder(root, step)}: could not be saved: {failed[0]}",
                        "free some space or choose another runs_dir")  # fmt: skip
    if rank == 0:
        manifest = {"format": FORMAT, "step": step, **about, "files": entries}
        _write_synced(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
        target = step_folder(root, step)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _sync_folder(root)
        _retain(root, keep)
    dist.barrier()
    return step_folder(root, step)


def newest(root: Path) -> Optional[Path]:
    """The newest checkpoint with a manifest, or None."""
    steps = [int(p.parent.name[5:]) for p in root.glob(f"step-*/{MANIFEST}")
             if p.parent.name[5:].isdigit()]  # fmt: skip
    return step_folder(root, max(steps)) if steps else None


def read_manifest(folder: Path) -> Dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        Refused: no manifest, or one that cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{folder}: not a whole checkpoint ({error})", "name another, or checkpoint.resume=none"
        ) from error


def load(folder: Path, about: Dict[str, Any]) -> Dict[str, Any]:
    """This rank's state from ``folder``, verified.

    Args:
        about: what the present run is; every key must equal the manifest's.

    Raises:
        Refused: another run or layout (the difference is named), a damaged file.
    """
    manifest = read_manifest(folder)
    for key, now in about.items():
        if manifest.get(key) != now:
            raise Refused(
                f"{folder}: {key} was {manifest.get(key)!r} when it was saved, is {now!r} now",
                "set it back, or start afresh with checkpoint.resume=none and another name=",
            )
    entry = manifest["files"][dist.get_rank()]
    path = folder / str(entry["file"])
    if path.parent != folder:
        raise Refused(f"{folder}/{MANIFEST}: names a file outside its folder")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise Refused(
            f"{path}: damaged ({len(content)} bytes, {entry['bytes']} were written)",
            "resume from an older one with checkpoint.resume=<folder>",
        )
    try:
        # Tensors and plain values only: a checkpoint never gets to run code.
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise Refused(
            f"{path}: holds something else than tensors ({str(error).splitlines()[0][:200]})",
            "it was not written by this program: do not use it",
        ) from error


def _write_rank(partial: Path, rank: int, state: Dict[str, Any]) -> Dict[str, Any]:
    """Write one file; an error is an entry too, since every rank must hear of it."""
    name = f"rank-{rank}.pt"
    try:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        _write_synced(partial / name, content)
    except OSError as error:
        return {"error": f"{name}: {error.strerror}"}
    digest = hashlib.sha256(content).hexdigest()
    return {"file": name, "bytes": len(content), "sha256": digest}


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _retain(root: Path, keep: int) -> None:
    steps = sorted(int(p.name[5:]) for p in root.glob("step-*") if p.name[5:].isdigit())
    for step in steps[:-keep] if keep else []:
        # Without its manifest a half-deleted folder is no checkpoint.
        (step_folder(root, step) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(step_folder(root, step), ignore_errors=True)
