"""A checkpoint is whole or absent, and never runs code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from loopmoe_train.checkpoint import store
from loopmoe_train.errors import Refused, RunFailed

ABOUT = {"seed": 3, "model": {"hidden_size": 8}}


def _state(value: float) -> Dict[str, Any]:
    return {"model": [{"w": torch.full((3, 2), value)}], "position": {"step": 1, "consumed": 8}}


def _save(root: Path, step: int, keep: int = 0) -> Path:
    return store.save(root, step, _state(step), ABOUT, keep)


def test_round_trip(one_rank: None, tmp_path: Path) -> None:
    folder = _save(tmp_path, 5)
    assert folder == tmp_path / "step-5" == store.newest(tmp_path)
    loaded = store.load(folder, ABOUT)
    assert torch.equal(loaded["model"][0]["w"], torch.full((3, 2), 5.0))
    assert loaded["position"] == {"step": 1, "consumed": 8}


def test_only_the_newest_are_kept(one_rank: None, tmp_path: Path) -> None:
    for step in (2, 10, 9, 11):
        _save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]


def test_a_folder_without_manifest_is_no_checkpoint(one_rank: None, tmp_path: Path) -> None:
    _save(tmp_path, 3)
    (_save(tmp_path, 4) / store.MANIFEST).unlink()
    assert store.newest(tmp_path) == tmp_path / "step-3"
    assert store.newest(tmp_path / "nothing") is None
    with pytest.raises(Refused, match="step-4: not a whole checkpoint"):
        store.load(tmp_path / "step-4", ABOUT)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found(one_rank: None, tmp_path: Path, damage: str) -> None:
    file = _save(tmp_path, 1) / "rank-0.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-7])
    with pytest.raises(Refused, match=r"rank-0.pt: damaged"):
        store.load(tmp_path / "step-1", ABOUT)


def test_another_run_is_refused_with_the_difference(one_rank: None, tmp_path: Path) -> None:
    folder = _save(tmp_path, 1)
    with pytest.raises(Refused, match="seed was 3 when it was saved, is 4 now"):
        store.load(folder, {**ABOUT, "seed": 4})


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_file_with_the_right_hash_runs_nothing(
    one_rank: None, tmp_path: Path, how: str
) -> None:
    folder, trace = _save(tmp_path, 1), tmp_path / "executed"
    file = folder / "rank-0.pt"
    if how == "torch":
        torch.save({"model": _Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(_Payload(trace)))
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="holds something else than tensors"):
        store.load(folder, ABOUT)
    assert not trace.exists()


def test_a_manifest_that_points_outside_is_refused(one_rank: None, tmp_path: Path) -> None:
    folder = _save(tmp_path, 1)
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"][0]["file"] = "../secret.pt"
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(Refused, match="outside its folder"):
        store.load(folder, ABOUT)


def test_a_full_disk_leaves_the_previous_checkpoint(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(tmp_path, 1)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write_synced", full)
    with pytest.raises(RunFailed, match="step-2: could not be saved: rank 0: rank-0.pt: No space"):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    store.load(tmp_path / "step-1", ABOUT)
