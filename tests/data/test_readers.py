"""Record files: the same documents from every container, and damage named by line or row."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard

from loopmoe_train.data.corpus import Corpus, scan
from loopmoe_train.errors import Refused

# long enough that damage in the middle comes after many good records
TEXTS = [
    f"text {number} " + f"{number * 7919 % 10007} " * 40 + "größe\r\n🙂" for number in range(600)
]
LINES = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)


def _zstd(data: bytes) -> bytes:
    """Two frames and between them one that holds no data, as parallel compressors write."""
    codec = zstandard.ZstdCompressor(level=3, write_checksum=True)  # as the zstd command does
    half = len(data) // 2
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    return codec.compress(data[:half]) + skippable + codec.compress(data[half:])


PACK: Dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": _zstd,
}  # fmt: skip


def _write(folder: Path, ending: str, texts: List[Any] = TEXTS) -> Path:
    path = folder / f"web{ending}"
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    if ending == ".parquet":
        options: Dict[str, Any] = {
            "row_group_size": 64,
            "write_page_checksum": True,
            "write_statistics": False,
        }
        parquet.write_table(pyarrow.table({"text": texts}), path, **options)
    else:
        pack: Dict[str, Callable[[bytes], bytes]] = {
            ".jsonl.gz": gzip.compress,
            ".jsonl.zst": _zstd,
        }
        path.write_bytes(pack.get(ending, bytes)(lines))
    return path


def _refusal(source: Path) -> str:
    with pytest.raises(Refused) as caught:
        list(Corpus([str(source)]))
    message = str(caught.value)
    assert "\n" not in message and " -> " in message
    return message


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_container_gives_the_texts(tmp_path: Path, ending: str) -> None:
    path = _write(tmp_path, ending)
    name = "web.parquet" if ending == ".parquet" else "web.jsonl"
    documents = list(Corpus([str(path)]))
    assert [document.text for document in documents] == TEXTS
    assert [document.path for document in documents] == [f"{name}:{i + 1}" for i in range(600)]
    assert list(Corpus([str(tmp_path)])) == list(Corpus([f"{tmp_path}/*"])) == documents


def test_compression_changes_nothing_the_container_does(tmp_path: Path) -> None:
    prints = []
    for ending in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        _write(folder, ending)
        # sorts between the plain and the compressed name of the other file
        (folder / "web.jsonl.md").write_text("beside")
        prints.append(scan(Corpus([str(folder)])).fingerprint)
    assert prints[0] == prints[1] == prints[2] != prints[3]


def test_the_same_file_plain_and_compressed_is_refused(tmp_path: Path) -> None:
    for ending in (".jsonl", ".jsonl.gz"):
        _write(tmp_path, ending)
    for source in (tmp_path, tmp_path / "*"):
        assert "web.jsonl and " in _refusal(source) and "web.jsonl.gz" in _refusal(source)


def test_gzip_members_and_a_long_zstd_window_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]))
    # a stream of unknown length states the window: more than the library allows by itself
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    codec = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "b.jsonl.zst").write_bytes(codec.compress(LINES) + codec.flush())
    assert [d.text for d in Corpus([str(tmp_path)])] == TEXTS * 2


def test_dictionary_and_large_string_columns_are_read(tmp_path: Path) -> None:
    for name, kind in (("a", pyarrow.large_string()), ("b", pyarrow.dictionary("int32", "string"))):
        column = pyarrow.array(TEXTS).cast(kind)
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
    assert [d.text for d in Corpus([str(tmp_path)])] == TEXTS * 2


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["file", "folder", "glob"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9999])
@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_archive_is_refused_with_its_line(
    tmp_path: Path, ending: str, share: float, place: str
) -> None:
    path = _write(tmp_path, ending)
    _cut(path, share)
    source = {"file": path, "folder": tmp_path, "glob": tmp_path / "web*"}[place]
    message = _refusal(source)
    assert f"{path} line " in message and "truncated" in message
    number = int(message.split(" line ")[1].split(":")[0])
    assert abs(number - 600 * share) < 300 or share > 0.99 and number > 400


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_damaged_archive_is_refused_with_its_place(
    tmp_path: Path, ending: str, share: float
) -> None:
    path = _write(tmp_path, ending)
    _flip(path, share)
    message = _refusal(path)
    assert f"{path} {'row' if ending == '.parquet' else 'line'} " in message
    assert "damaged" in message or "not a JSON object" in message


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file_is_refused(tmp_path: Path, share: float) -> None:
    path = _write(tmp_path, ".parquet")
    _cut(path, share)
    assert f"{path} row 1: damaged Parquet" in _refusal(path)


def test_parquet_without_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "web.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    assert f'{path} has no string column "text" but body' in _refusal(path)
    parquet.write_table(pyarrow.table({"text": [1]}), path)
    assert "of type int64" in _refusal(path)
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    assert f"{path} row 2: text is null" in _refusal(path)


def test_a_bad_line_inside_an_archive_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, ".jsonl.zst", ["fine", 3])
    assert f"{path} line 2" in _refusal(path)


@pytest.mark.parametrize(
    ("ending", "module"), [(".jsonl.zst", "zstandard"), (".parquet", "pyarrow")]
)
def test_a_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, module: str
) -> None:
    path = _write(tmp_path, ending)
    monkeypatch.setitem(sys.modules, module, None)
    message = _refusal(path)
    assert f"{path} needs {module}" in message and "loopmoe-train[data]" in message


def test_reading_stops_early_without_a_word(tmp_path: Path) -> None:
    for ending in (".jsonl.gz", ".jsonl.zst", ".parquet"):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        (tmp_path / "d").mkdir()
        documents = iter(Corpus([str(_write(tmp_path / "d", ending))]))
        assert next(documents).text == TEXTS[0]
        documents.close()  # type: ignore[attr-defined]
