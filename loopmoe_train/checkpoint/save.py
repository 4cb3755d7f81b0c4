"""Saving: a copy on the host, then a thread that writes while training goes on.

    step-<n>.partial/   every rank: tensor file, synced, hashed while written; then its entry
                        rank 0, when all entries are there: common.pt, manifest.json
    step-<n>/           by one rename, synced; then ``latest``, then old ones are deleted

A kill at any time leaves the checkpoints before it as they were. Ranks hand their entries over
as files beside the data, so committing needs no collective call and no step waits for it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist
import xxhash

from loopmoe_train.checkpoint import manifest as manifests
from loopmoe_train.checkpoint.manifest import Manifest, step_folder
from loopmoe_train.checkpoint.tensors import Shard, ShardEntry, write_shards
from loopmoe_train.errors import RunFailed
from loopmoe_train.files import atomic_write, sync_folder
from loopmoe_train.parallel.reduce import sum_over_ranks

_POLL_S = 0.05
_SPARE = 1.2  # free space wanted, in sizes of a checkpoint


@dataclass
class _Job:
    """One checkpoint on its way."""

    step: int
    shards: List[Shard]
    common: bytes
    about: Dict[str, Any]
    layout: Dict[str, Any]


class Saver:
    """Writes checkpoints of one run, one at a time.

    Args:
        root: folder of the run's checkpoints.
        keep: newest checkpoints to keep; 0 keeps all.
        timeout_s: how long rank 0 waits for the files of the others.
    """

    def __init__(self, root: Path, keep: int, timeout_s: float) -> None:
        self.root, self.keep, self.timeout_s = root, keep, timeout_s
        self.last_step = 0  # begun last, or restored from
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[Exception] = None
        self._committed: Optional[Path] = None

    def start(
        self, step: int, shards: List[Shard], common: bytes, about: Dict[str, Any],
        layout: Dict[str, Any],
    ) -> None:  # fmt: skip
        """Begin to write; a collective call. A checkpoint still on its way is waited for.

        Raises:
            RunFailed: that one failed, or there is no room for this one.
        """
        self.finish()
        size = sum(shard.tensor.numel() * shard.tensor.element_size() for shard in shards)
        if dist.get_rank() == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            for leftover in self.root.glob("*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
            _partial(self.root, step).mkdir()
        # Every rank has to see the folder; the sum is what they wait for.
        total = sum_over_ranks(torch.tensor([size], dtype=torch.float64))[0]
        _check_room(self.root, _SPARE * total)
        job = _Job(step, shards, common, about, layout)
        self.last_step = step
        self._thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self._thread.start()

    def poll(self) -> Optional[Path]:
        """The checkpoint that was committed since the last call, on rank 0.

        Raises:
            RunFailed: writing failed; on the rank where it did, and on rank 0.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        done, self._committed = self._committed, None
        return done

    def finish(self) -> Optional[Path]:
        """Wait for the checkpoint on its way; what :meth:`poll` returns."""
        if self._thread is not None:
            self._thread.join()
        return self.poll()

    def _run(self, job: _Job) -> None:
        partial = _partial(self.root, job.step)
        try:
            _write_rank(partial, job)
            if dist.get_rank() == 0:
                entries = _entries_of_all(partial, dist.get_world_size(), self.timeout_s)
                self._committed = _commit(self.root, job, entries)
                manifests.retain(self.root, self.keep)
        except Exception as error:
            target = step_folder(self.root, job.step)
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._error = RunFailed(
                f"{target}: could not be saved: {why}; older checkpoints are untouched",
                "free some space or choose another runs_dir, then start again: it resumes",
            )
            _tell_failure(partial, why)
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)


def _partial(root: Path, step: int) -> Path:
    return root / f"step-{step}.partial"


def _check_room(root: Path, wanted: float) -> None:
    free = shutil.disk_usage(root).free
    if free < wanted:
        raise RunFailed(
            f"{root}: a checkpoint needs {wanted / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            "free some space, or lower checkpoint.keep; older checkpoints are untouched",
        )


def _write_rank(partial: Path, job: _Job) -> None:
    rank = dist.get_rank()
    entries, about = write_shards(partial / f"rank-{rank}.safetensors", job.shards)
    content = json.dumps({"file": about, "shards": [asdict(entry) for entry in entries]})
    with atomic_write(partial / f".rank-{rank}.json") as stream:
        stream.write(content.encode())


def _entries_of_all(partial: Path, ranks: int, timeout_s: float) -> List[Dict[str, Any]]:
    """What every rank wrote, when all have.

    Raises:
        RuntimeError: a rank failed, or was silent for too long.
    """
    deadline = time.monotonic() + timeout_s
    names = [partial / f".rank-{rank}.json" for rank in range(ranks)]
    while not all(name.exists() for name in names):
        for failure in partial.glob(".failed-*"):
            raise RuntimeError(failure.read_text())
        if time.monotonic() > deadline:
            late = [str(rank) for rank, name in enumerate(names) if not name.exists()]
            raise RuntimeError(f"rank {', '.join(late)} wrote nothing in {timeout_s:.0f} s")
        time.sleep(_POLL_S)
    return [json.loads(name.read_text()) for name in names]


def _tell_failure(partial: Path, why: str) -> None:
    """Let rank 0 know; on a full disk an empty file may be all that fits."""
    rank = dist.get_rank()
    try:
        (partial / f".failed-{rank}").write_text(f"rank {rank}: {why}")
    except OSError:
        pass


def _commit(root: Path, job: _Job, entries: List[Dict[str, Any]]) -> Path:
    partial, target = _partial(root, job.step), step_folder(root, job.step)
    with atomic_write(partial / manifests.COMMON) as stream:
        stream.write(job.common)
    shards = [ShardEntry.from_json(shard) for entry in entries for shard in entry["shards"]]
    _check_cover(shards)
    manifests.write_manifest(
        partial,
        Manifest(
            step=job.step,
            about=job.about,
            layout=job.layout,
            common_bytes=len(job.common),
            common_xxh3=xxhash.xxh3_128_hexdigest(job.common),
            files=[entry["file"] for entry in entries],
            shards=shards,
        ),
    )
    for left in partial.glob(".rank-*.json"):
        left.unlink()
    if target.exists():  # without a manifest, or the caller would not save it again
        shutil.rmtree(target)
    os.replace(partial, target)
    sync_folder(root)
    with atomic_write(root / "latest") as stream:
        stream.write(target.name.encode() + b"\n")
    return target


def _check_cover(shards: List[ShardEntry]) -> None:
    """Every element of every tensor is there once.

    Raises:
        RuntimeError: a part is missing or double: ranks disagree about who writes what.
    """
    counted: Dict[str, int] = {}
    whole: Dict[str, int] = {}
    places = set()
    for shard in shards:
        counted[shard.key] = counted.get(shard.key, 0) + torch.Size(shard.shape).numel()
        whole[shard.key] = torch.Size(shard.global_shape).numel()
        if (shard.key, shard.offset) in places:
            raise RuntimeError(f"{shard.key} was written twice")
        places.add((shard.key, shard.offset))
    for key, size in whole.items():
        if counted[key] != size:
            raise RuntimeError(f"{key}: {counted[key]} of {size} elements were written")
