from __future__ import annotations

import struct
from pathlib import Path
from typing import List

import numpy as np
import pytest

from loopmoe_train.data.indexed import IndexedReader, IndexedWriter, bin_path, idx_path, token_dtype
from loopmoe_train.errors import Refused


def _documents(vocab_size: int) -> List[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.integers(0, vocab_size, size) for size in (5, 1, 0, 300, 17)]


def _write(prefix: Path, vocab_size: int = 4096) -> List[np.ndarray]:
    documents = _documents(vocab_size)
    with IndexedWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
    return documents


@pytest.mark.parametrize("vocab_size", [4096, 65_499, 65_500, 200_000])
def test_both_files_equal_those_of_megatron_byte_for_byte(tmp_path: Path, vocab_size: int) -> None:
    core = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    documents = _write(tmp_path / "ours", vocab_size)
    theirs = tmp_path / "theirs"
    dtype = core.DType.optimal_dtype(vocab_size)
    builder = core.IndexedDatasetBuilder(str(bin_path(theirs)), dtype=dtype)
    for document in documents:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(idx_path(theirs)))
    assert np.dtype(dtype) == token_dtype(vocab_size)
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(theirs).read_bytes()


def test_megatron_reads_ours(tmp_path: Path) -> None:
    core = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    documents = _write(tmp_path / "train")
    theirs = core.IndexedDataset(str(tmp_path / "train"))
    assert len(theirs) == len(documents)
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    for index, document in enumerate(documents):
        assert theirs[index].tolist() == document.tolist()


def test_we_read_megatrons_documents_of_several_sequences(tmp_path: Path) -> None:
    core = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    prefix = tmp_path / "theirs.v1"  # a dot in the name must survive
    builder = core.IndexedDatasetBuilder(str(bin_path(prefix)), dtype=np.int32)
    builder.add_document(torch.arange(10), [4, 6])
    builder.add_document(torch.arange(100, 103), [3])
    builder.finalize(str(idx_path(prefix)))
    reader = IndexedReader(prefix)
    assert reader.document_lengths.tolist() == [10, 3]
    assert reader.document(0).tolist() == list(range(10))
    assert reader.document(1).tolist() == [100, 101, 102]


def test_reader_gives_back_documents_and_parts(tmp_path: Path) -> None:
    documents = _write(tmp_path / "train")
    reader = IndexedReader(tmp_path / "train")
    assert reader.num_documents == 5 and reader.num_tokens == 323
    assert reader.document_lengths.dtype == np.int64
    for index, document in enumerate(documents):
        assert reader.document(index).tolist() == document.tolist()
    assert reader.document(3, 100, 50).tolist() == documents[3][100:150].tolist()
    assert reader.document(3, 290).tolist() == documents[3][290:].tolist()
    for part in ((5,), (-1,), (0, 6), (0, 3, 3), (0, -1, 1), (0, 0, -1)):
        with pytest.raises(IndexError):
            reader.document(*part)


def test_a_dataset_without_tokens_can_be_read(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "none", 4096):
        pass
    reader = IndexedReader(tmp_path / "none")
    assert (reader.num_documents, reader.num_tokens) == (0, 0)


def test_writer_reports_what_it_wrote(tmp_path: Path) -> None:
    import hashlib

    with IndexedWriter(tmp_path / "train", 4096) as writer:
        writer.add_document([1, 2])
        writer.add_document([3])
    assert (writer.num_documents, writer.num_tokens) == (2, 3)
    assert writer.bin_sha256 == hashlib.sha256((tmp_path / "train.bin").read_bytes()).hexdigest()


@pytest.mark.parametrize("bad", [4096, -1])
def test_a_failed_write_leaves_the_old_dataset_and_no_rubbish(tmp_path: Path, bad: int) -> None:
    _write(tmp_path / "train")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="outside"):
        with IndexedWriter(tmp_path / "train", 4096) as writer:
            writer.add_document([1])
            writer.add_document([bad])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_index_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    renamed: List[str] = []
    real = os.replace

    def spy(source: str, target: str) -> None:
        renamed.append(Path(target).name)
        if len(renamed) == 3:  # the second writing, at its .bin
            assert not (tmp_path / "train.idx").exists(), "old index beside a new .bin"
        real(source, target)

    monkeypatch.setattr(os, "replace", spy)
    _write(tmp_path / "train")
    _write(tmp_path / "train")
    assert renamed == ["train.bin", "train.idx"] * 2


def _set(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))


_HEADER = 34  # bytes before the lengths of the 5 sequences
_DAMAGES = {
    "magic": ("idx", lambda path: _set(path, 0, b"X")),
    "version": ("idx", lambda path: _set(path, 9, struct.pack("<Q", 2))),
    "dtype": ("idx", lambda path: _set(path, 17, b"\x07")),
    "count": ("idx", lambda path: _set(path, 18, struct.pack("<Q", 4))),
    "huge count": ("idx", lambda path: _set(path, 18, struct.pack("<Q", 2**60))),
    "short index": ("idx", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "tiny index": ("idx", lambda path: path.write_bytes(b"MMIDIDX")),
    "length": ("idx", lambda path: _set(path, _HEADER, struct.pack("<i", 6))),
    "negative": ("idx", lambda path: _set(path, _HEADER, struct.pack("<i", -5))),
    "offset": ("idx", lambda path: _set(path, _HEADER + 20 + 8, struct.pack("<q", 3))),
    "boundary": ("idx", lambda path: _set(path, _HEADER + 60 + 8, struct.pack("<q", 9))),
    "last boundary": ("idx", lambda path: _set(path, _HEADER + 60 + 40, struct.pack("<q", 4))),
    "no index": ("idx", lambda path: path.unlink()),
    "short bin": ("bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
    "long bin": ("bin", lambda path: path.write_bytes(path.read_bytes() + b"\0\0")),
    "no bin": ("bin", lambda path: path.unlink()),
}


@pytest.mark.parametrize("name", _DAMAGES)
def test_damage_is_refused_with_the_file_named(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "train")
    kind, damage = _DAMAGES[name]
    path = tmp_path / f"train.{kind}"
    damage(path)
    with pytest.raises(Refused) as caught:
        IndexedReader(tmp_path / "train")
    message = str(caught.value)
    assert str(path) in message and "loopmoe data" in message and "\n" not in message


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Three sequences of 2**31 - 1 tokens in a sparse .bin, no disk or memory behind it."""
    size = 2**31 - 1
    prefix = tmp_path / "huge"
    with open(idx_path(prefix), "wb") as stream:
        stream.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 3, 4))
        stream.write(np.array([size] * 3, "<i4").tobytes())
        stream.write((np.arange(3, dtype="<i8") * size * 2).tobytes())
        stream.write(np.arange(4, dtype="<i8").tobytes())
    with open(bin_path(prefix), "wb") as stream:
        stream.truncate(3 * size * 2)
        stream.seek(-2, 2)
        stream.write(b"\x2a\0")
    reader = IndexedReader(prefix)
    assert reader.num_tokens == 3 * size > 2**32
    assert reader.document(2, size - 2).tolist() == [0, 42]


def test_a_full_disk_names_the_file_that_it_met(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        open("/dev/full", "wb", 0) as full,
    ):
        with IndexedWriter(tmp_path / "train", 50) as train, IndexedWriter(tmp_path / "valid", 50):
            train._stream = full
            train.add_document([1])
    assert caught.value.filename == f"{tmp_path}/train.bin"
