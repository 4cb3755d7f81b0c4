"""``manifest.json``: its presence, and the hashes in it, make a folder a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import xxhash

from loopmoe_train.checkpoint.tensors import ShardEntry, check_header, damaged, read_exactly
from loopmoe_train.errors import Refused
from loopmoe_train.files import atomic_write

NAME = "manifest.json"
COMMON = "common.pt"
FORMAT = 3
_NO_HASH = "0" * 32


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: optimizer steps done.
        about: what must be the same to continue from it (model, data, seed ...).
        layout: the ranks that wrote it (devices, parallel sizes).
        common_xxh3: hash of ``common.pt``, whose size is ``common_bytes``.
        files: size and header hash of every tensor file.
        shards: every part of every tensor.
    """

    step: int
    about: Dict[str, Any]
    layout: Dict[str, Any]
    common_bytes: int
    common_xxh3: str
    files: List[Dict[str, Any]]
    shards: List[ShardEntry]

    def by_key(self) -> Dict[str, List[ShardEntry]]:
        """Shards of each global tensor."""
        found: Dict[str, List[ShardEntry]] = {}
        for shard in self.shards:
            found.setdefault(shard.key, []).append(shard)
        return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` with a hash of itself inside, and sync it."""
    content = {"format": FORMAT, "xxh3": _NO_HASH, **asdict(manifest)}
    text = json.dumps(content, indent=1).encode()
    digest = xxhash.xxh3_128_hexdigest(text).encode()
    with atomic_write(folder / NAME) as stream:
        stream.write(text.replace(_NO_HASH.encode(), digest, 1))


def read_manifest(folder: Path) -> Manifest:
    """Read and verify ``manifest.json``.

    Raises:
        Refused: there is none, or it is not what was written.
    """
    path = folder / NAME
    try:
        text = path.read_bytes()
        content = json.loads(text)
        form, digest = content.pop("format"), content.pop("xxh3")
        if form != FORMAT:
            raise Refused(f"{path}: format {form}, this version reads {FORMAT}", "retrain")
        blank = text.replace(str(digest).encode(), _NO_HASH.encode(), 1)
        if xxhash.xxh3_128_hexdigest(blank) != digest:
            raise damaged(path, "it is not what was written")
        content["shards"] = [ShardEntry.from_json(entry) for entry in content["shards"]]
        return Manifest(**content)
    except OSError as error:
        raise Refused(
            f"{folder}: not a whole checkpoint (no {NAME})",
            "name another, or checkpoint.resume=none",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"it cannot be read ({error})") from error


def differences(saved: Any, now: Any, path: str = "") -> List[str]:
    """A line for every setting of ``Manifest.about`` that is another one now."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return [
            text
            for key in sorted(saved.keys() | now.keys())
            for text in differences(saved.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        ]
    if saved == now:
        return []
    return [f"{path} was {saved!r} when it was saved, is {now!r} now"]


def read_common(folder: Path, manifest: Manifest) -> bytes:
    """The bytes of ``common.pt``, verified.

    Raises:
        Refused: they are not what was written.
    """
    data = bytes(read_exactly(folder / COMMON, 0, manifest.common_bytes, "it"))
    size = (folder / COMMON).stat().st_size
    if xxhash.xxh3_128_hexdigest(data) != manifest.common_xxh3 or size != len(data):
        raise damaged(folder / COMMON, "it is not what was written")
    return data


def check_headers(folder: Path, manifest: Manifest) -> None:
    """Verify sizes and headers of all tensor files."""
    for about in manifest.files:
        check_header(folder, about)


def step_folder(root: Path, step: int) -> Path:
    """Folder of one checkpoint."""
    return root / f"step-{step}"


def committed(root: Path) -> List[Path]:
    """Checkpoints that were finished, newest first."""
    steps = [int(path.parent.name[5:]) for path in root.glob(f"step-*/{NAME}")
             if path.parent.name[5:].isdigit()]  # fmt: skip
    return [step_folder(root, step) for step in sorted(steps, reverse=True)]


def newest(root: Path) -> Optional[Path]:
    """The newest finished checkpoint, or None."""
    return next(iter(committed(root)), None)


def retire_after(root: Path, step: int) -> List[Path]:
    """Rename the checkpoints of later steps to ``step-<n>.retired``; returns the new names.

    A run that continues from ``step`` makes those steps anew: what is left of the others, which
    are damaged or of the branch that was given up, must neither be taken for its own nor count as
    kept.
    """
    retired = []
    for folder in committed(root):
        if int(folder.name[5:]) <= step:
            continue
        name = f"{folder.name}.retired"
        taken = len(list(root.glob(f"{name}*")))
        retired.append(folder.rename(root / (f"{name}-{taken + 1}" if taken else name)))
    return retired


def retain(root: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; 0 keeps all."""
    for folder in committed(root)[keep:] if keep else []:
        # Without its manifest a half-deleted folder is no checkpoint.
        (folder / NAME).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
