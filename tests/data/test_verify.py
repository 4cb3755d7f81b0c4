"""`loopmoe data verify`: whatever changes in a dataset is found, with the file named."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest

from loopmoe_train.data.dataset import DatasetInfo, dataset_fingerprint, save_dataset
from loopmoe_train.data.indexed import IndexedWriter
from loopmoe_train.data.verify import verify_dataset
from loopmoe_train.errors import Refused

SEALED = ["train.bin", "train.idx", "valid.bin", "valid.idx", "tokenizer.model"]


@pytest.fixture
def copy(dataset: DatasetInfo, tmp_path: Path) -> Path:
    """A dataset folder that the test may damage."""
    return Path(shutil.copytree(dataset.path, tmp_path / "copy"))


def _refusal(folder: Path) -> str:
    with pytest.raises(Refused) as caught:
        verify_dataset(folder)
    assert "\n" not in str(caught.value) and " -> " in str(caught.value)
    return str(caught.value)


def test_a_sound_dataset_passes_and_is_read_whole(copy: Path, dataset: DatasetInfo) -> None:
    read: List[int] = []
    verified = verify_dataset(copy, read.append)
    assert verified.info.fingerprint == dataset.fingerprint
    assert verified.decoded == dataset.train.documents + dataset.valid.documents > 20
    assert sum(read) == sum((copy / f"{name}.bin").stat().st_size for name in ("train", "valid"))


@pytest.mark.parametrize("name", SEALED)
def test_a_flipped_bit_anywhere_is_found(copy: Path, name: str) -> None:
    good = (copy / name).read_bytes()
    for position in {0, 9, 17, len(good) // 3, len(good) // 2, len(good) - 1}:
        damaged = bytearray(good)
        damaged[position] ^= 1
        (copy / name).write_bytes(damaged)
        assert str(copy / name) in _refusal(copy), position


@pytest.mark.parametrize("change", ["cut", "grown", "emptied", "gone"])
@pytest.mark.parametrize("name", SEALED)
def test_another_length_is_found(copy: Path, name: str, change: str) -> None:
    path, good = copy / name, (copy / name).read_bytes()
    path.unlink()
    if change != "gone":
        path.write_bytes({"cut": good[:-1], "grown": good + b"\0", "emptied": b""}[change])
    assert str(path) in _refusal(copy)


def test_an_index_that_cuts_elsewhere_is_found(copy: Path) -> None:
    """Sound in itself and of the right size: only the text can tell."""
    tokens = np.fromfile(copy / "train.bin", np.uint16)
    lengths = np.diff(np.flatnonzero(tokens == 1), prepend=-1)
    lengths[0], lengths[1] = lengths[0] + 2, lengths[1] - 2
    with IndexedWriter(copy / "other", 420) as writer:
        for part in np.split(tokens, np.cumsum(lengths)[:-1]):
            writer.add_document(part)
    assert (copy / "other.bin").read_bytes() == (copy / "train.bin").read_bytes()
    (copy / "other.idx").replace(copy / "train.idx")
    assert f"{copy}/train.idx does not cut" in _refusal(copy)


def _change(copy: Path, change: Callable[[Dict[str, Any]], None]) -> str:
    card = copy / "dataset.json"
    content = json.loads(card.read_text())
    change(content)
    card.write_text(json.dumps(content))
    message = _refusal(copy)
    assert "dataset.json" in message
    return message


@pytest.mark.parametrize("key", ["documents", "tokens", "bytes"])
def test_counts_are_counted_again(copy: Path, key: str, dataset: DatasetInfo) -> None:
    def add(content: Dict[str, Any]) -> None:
        content["valid"][key] += 1

    assert f"says {getattr(dataset.valid, key) + 1} {key} in valid" in _change(copy, add)


@pytest.mark.parametrize("key", ["fingerprint", "corpus_fingerprint", "tokenizer_fingerprint"])
def test_fingerprints_are_computed_again(copy: Path, key: str) -> None:
    assert "fingerprint does not fit" in _change(copy, lambda c: c.update({key: "0" * 64}))


def test_text_of_another_tokenizer_is_found(copy: Path, dataset: DatasetInfo) -> None:
    """Resealed, every hash fits: decoding shows that nobody wrote these ids for this text."""
    tokens = np.fromfile(copy / "valid.bin", np.uint16)
    pieces = dataset.tokenizer()
    # a letter spelled as its byte token
    letter = next(t for t in tokens.tolist() if t >= 258 and len(pieces.decode([t])) == 1)
    tokens[tokens == letter] = [
        i for i in range(258) if pieces.decode([i]) == pieces.decode([letter])
    ]
    tokens.tofile(copy / "valid.bin")
    valid = replace(
        dataset.valid, bin_sha256=hashlib.sha256((copy / "valid.bin").read_bytes()).hexdigest()
    )
    fingerprint = dataset_fingerprint(
        dataset.corpus_fingerprint, dataset.tokenizer_fingerprint, dataset.settings,
        [dataset.train.bin_sha256, valid.bin_sha256],
    )  # fmt: skip
    save_dataset(replace(dataset, path=str(copy), valid=valid, fingerprint=fingerprint))
    assert f"{copy}/valid.bin document " in _refusal(copy)
