"""A checkpoint is whole or absent, every damage is found, and none runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
import xxhash

from loopmoe_train.checkpoint import manifest as manifests
from loopmoe_train.checkpoint import save as saving
from loopmoe_train.checkpoint.load import load, load_newest
from loopmoe_train.checkpoint.manifest import committed, retain, retire_after
from loopmoe_train.checkpoint.save import Saver
from loopmoe_train.checkpoint.state import Trained, capture
from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.model.build import layer_names
from loopmoe_train.train.run import build
from tests.parity.worker import VOCAB, golden, samples

ABOUT = {"seed": 3, "model": {"hidden_size": 8, "loop": {"iterations": 3}}}
LAYOUT = {"devices": 1}


@pytest.fixture(scope="module")
def trained(one_rank: None) -> Trained:
    run = golden(["cluster.devices=1", "parallel=data", "model.body_layers=1"])
    state = build(run, VOCAB, lambda first, count: samples(run, first, count))
    return Trained(state.model, state.optimizer, state.scheduler, layer_names(run))


def _save(trained: Trained, root: Path, *steps: int, keep: int = 0) -> Saver:
    saver = Saver(root, keep, timeout_s=20)
    for step in steps:
        shards, common = capture(trained, {"step": step, "consumed": 8 * step})
        saver.start(step, shards, common, ABOUT, LAYOUT)
        assert saver.finish() == root / f"step-{step}"
    return saver


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of step 4; tests copy it."""
    root = tmp_path_factory.mktemp("whole")
    _save(trained, root, 4)
    return root / "step-4"


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "step-4"))


def test_what_lies_in_the_folder(whole: Path) -> None:
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["common.pt", "manifest.json", "rank-0.safetensors"]
    assert (whole.parent / "latest").read_text() == "step-4\n"
    assert load_position(whole) == {"step": 4, "consumed": 32}


def load_position(folder: Path) -> Dict[str, int]:
    content = torch.load(folder / "common.pt", weights_only=True)
    return content["position"]


def test_only_the_newest_are_kept(trained: Trained, tmp_path: Path) -> None:
    _save(trained, tmp_path, 2, 9, 10, 11, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-10", "step-11"]


def test_later_steps_are_retired_under_names_of_their_own(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / "manifest.json").write_text("{}")
    assert [path.name for path in retire_after(tmp_path, 4)] == ["step-6.retired"]
    (tmp_path / "step-6").mkdir()
    (tmp_path / "step-6" / "manifest.json").write_text("{}")
    names = [path.name for path in retire_after(tmp_path, 2)]
    assert names == ["step-6.retired-2", "step-4.retired"]
    assert [path.name for path in committed(tmp_path)] == ["step-2"]
    retain(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 4  # nothing that was retired is deleted


def test_the_newest_whole_one_is_taken(trained: Trained, tmp_path: Path) -> None:
    _save(trained, tmp_path, 1, 2, 3)
    (tmp_path / "step-3" / "manifest.json").unlink()  # never finished
    _flip(tmp_path / "step-2" / "rank-0.safetensors", -5000)
    told: List[str] = []
    folder, position = load_newest(tmp_path, trained, ABOUT, LAYOUT, told.append)
    assert folder == tmp_path / "step-1" and position["step"] == 1
    assert len(told) == 1 and "step-2/rank-0.safetensors: damaged, tensor" in told[0]
    _flip(tmp_path / "step-1" / "common.pt", 100)
    with pytest.raises(Refused, match="no whole checkpoint: .*rank-0.*common.pt: damaged"):
        load_newest(tmp_path, trained, ABOUT, LAYOUT, told.append)


def _flip(file: Path, at: int, bit: int = 3) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1 << bit
    file.write_bytes(content)


def test_every_random_corruption_is_found(trained: Trained, copied: Path) -> None:
    """Flips, cuts and missing files over all bytes of a checkpoint."""
    random_numbers = random.Random(5)
    files = sorted(copied.iterdir())
    for number in range(24):
        file = files[number % len(files)]
        content = file.read_bytes()
        kind = random_numbers.choice(["flip", "flip", "cut", "append", "remove"])
        if kind == "flip":
            _flip(file, random_numbers.randrange(len(content)), random_numbers.randrange(8))
        elif kind == "cut":
            file.write_bytes(content[: random_numbers.randrange(len(content))])
        elif kind == "append":
            file.write_bytes(content + b"x")
        else:
            file.unlink()
        with pytest.raises(Refused, match=file.name if kind != "remove" else "step-4"):
            load(copied, trained, ABOUT, LAYOUT)
        file.write_bytes(content)
    load(copied, trained, ABOUT, LAYOUT)


def test_another_run_is_refused_with_the_difference(trained: Trained, whole: Path) -> None:
    about = {"seed": 3, "model": {"hidden_size": 8, "loop": {"iterations": 5}}}
    with pytest.raises(Refused, match="model.loop.iterations was 3 when it was saved, is 5 now"):
        load(whole, trained, about, LAYOUT)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def _torch_zip(payload: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


MALICIOUS: Dict[str, Callable[[Path], bytes]] = {
    "torch.save of a call": lambda t: _torch_zip({"position": _Payload(t)}),
    "bare pickle": lambda t: pickle.dumps(_Payload(t)),
    "old protocol": lambda t: pickle.dumps(_Payload(t), protocol=0),
    "torch.save with pickle inside a list": lambda t: _torch_zip([{"x": [_Payload(t)]}]),
    "not a dictionary": lambda t: _torch_zip([1, 2, 3]),
    "empty": lambda t: b"",
    "text": lambda t: b"cos\nsystem\n(S'touch x'\ntR.",
}


@pytest.mark.parametrize("how", MALICIOUS)
def test_a_malicious_file_with_the_right_hash_runs_nothing(
    trained: Trained, copied: Path, tmp_path: Path, how: str
) -> None:
    trace = tmp_path / "executed"
    content = MALICIOUS[how](trace)
    (copied / "common.pt").write_bytes(content)
    digest = xxhash.xxh3_128_hexdigest(content)
    _rewrite(copied, lambda m: m.update(common_bytes=len(content), common_xxh3=digest))
    with pytest.raises(Refused, match="common.pt: damaged"):
        load(copied, trained, ABOUT, LAYOUT)
    assert not trace.exists()


def _rewrite(folder: Path, change: Callable[[Dict[str, Any]], Any]) -> None:
    """Change the manifest and give it the right hash: what an attacker can do."""
    content = json.loads((folder / manifests.NAME).read_text())
    change(content)
    content["xxh3"] = "0" * 32
    text = json.dumps(content, indent=1).encode()
    digest = xxhash.xxh3_128_hexdigest(text).encode()
    (folder / manifests.NAME).write_bytes(text.replace(b"0" * 32, digest, 1))


FORGED: Dict[str, Callable[[Dict[str, Any]], Any]] = {
    "a file outside": lambda m: m["shards"][0].update(file="../secret"),
    "an absolute path": lambda m: m["shards"][0].update(file="/etc/passwd"),
    "an unknown dtype": lambda m: m["shards"][0].update(dtype="object"),
    "a size that does not fit": lambda m: m["shards"][0].update(end=10**15),
    "a negative place": lambda m: m["shards"][0].update(begin=-8, end=0),
    "an unknown field": lambda m: m["shards"][0].update(target="os.system"),
    "no shards": lambda m: m.pop("shards"),
    "a missing tensor": lambda m: m["shards"].pop(0),
    "another shape": lambda m: m["shards"][0].update(global_shape=[1, 1]),
    "a newer format": lambda m: m.update(format=99),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_manifest_is_refused(trained: Trained, copied: Path, how: str) -> None:
    _rewrite(copied, FORGED[how])
    with pytest.raises(Refused):
        load(copied, trained, ABOUT, LAYOUT)


def test_a_full_disk_leaves_the_previous_checkpoint(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _save(trained, tmp_path, 1)

    def full(path: Path, shards: Any) -> Any:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_shards", full)
    shards, common = capture(trained, {"step": 2, "consumed": 16})
    saver.start(2, shards, common, ABOUT, LAYOUT)
    with pytest.raises(RunFailed, match="step-2: could not be saved: No space left on device"):
        saver.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-1"]
    load(tmp_path / "step-1", trained, ABOUT, LAYOUT)


def test_too_little_room_is_told_before_writing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    shards, common = capture(trained, {"step": 1, "consumed": 8})
    with pytest.raises(RunFailed, match="a checkpoint needs .* GB, 0.00 GB are free"):
        Saver(tmp_path, 0, 5).start(1, shards, common, ABOUT, LAYOUT)


def test_training_goes_on_while_it_is_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state at the save, although weights change meanwhile."""
    go = threading.Event()
    write = saving.write_shards

    def slow(path: Path, shards: Any) -> Any:
        assert go.wait(20)
        return write(path, shards)

    monkeypatch.setattr(saving, "write_shards", slow)
    saver = Saver(tmp_path, 0, timeout_s=20)
    shards, common = capture(trained, {"step": 1, "consumed": 8})
    saver.start(1, shards, common, ABOUT, LAYOUT)
    assert saver.poll() is None and not (tmp_path / "step-1").exists()
    weight = next(iter(trained.model[0].parameters()))
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    go.set()
    assert saver.finish() == tmp_path / "step-1"
    load(tmp_path / "step-1", trained, ABOUT, LAYOUT)
    assert torch.equal(weight, before)


def test_a_silent_rank_fails_the_save_not_the_older_ones(tmp_path: Path) -> None:
    (tmp_path / ".rank-0.json").write_text("{}")
    with pytest.raises(RuntimeError, match="rank 1 wrote nothing in 0 s"):
        saving._entries_of_all(tmp_path, 2, timeout_s=0.1)
    (tmp_path / ".failed-1").write_text("rank 1: No space left on device")
    with pytest.raises(RuntimeError, match="rank 1: No space left"):
        saving._entries_of_all(tmp_path, 2, timeout_s=5)


@pytest.mark.parametrize("change", ["twice", "missing"])
def test_ranks_that_disagree_about_who_writes_what_are_found(change: str, whole: Path) -> None:
    shards = manifests.read_manifest(whole).shards
    changed = [*shards, shards[0]] if change == "twice" else [
        s for s in shards if s != _split(shards)
    ] + [_half(_split(shards))]  # fmt: skip
    with pytest.raises(RuntimeError, match="written"):
        saving._check_cover(changed)
    saving._check_cover(shards)


def _split(shards: List[Any]) -> Any:
    return next(shard for shard in shards if len(shard.shape) == 2)


def _half(shard: Any) -> Any:
    from dataclasses import replace

    return replace(shard, shape=(shard.shape[0] // 2, shard.shape[1]))
