from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from loopmoe_train.data.corpus import (
    Corpus,
    Document,
    is_validation,
    path_key,
    reread,
    scan,
    split_documents,
)
from loopmoe_train.errors import Refused, RunFailed


def _refusal(source: str) -> str:
    with pytest.raises(Refused) as caught:
        list(Corpus([source]))
    message = str(caught.value)
    assert "\n" not in message and " -> " in message
    return message


def test_stdlib_is_source_without_its_tests() -> None:
    documents = {document.path: document.text for document in Corpus(["python-stdlib"])}
    assert documents["argparse.py"].encode() == Path(__import__("argparse").__file__).read_bytes()
    assert list(documents) == sorted(documents) and len(documents) > 400
    assert all(path.endswith(".py") for path in documents)
    banned = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not any(banned & set(path.split("/")) for path in documents)
    assert not any("_sysconfigdata" in path for path in documents)
    assert 8e6 < sum(map(len, documents.values())) < 20e6


def test_folder_is_read_recursively_sorted_and_without_binaries(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes(b"one\r\ntwo")
    (tmp_path / "a.md").write_text("grün", encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn")
    (tmp_path / "nul.bin").write_bytes(b"a\0b")
    corpus = Corpus([str(tmp_path)])
    assert list(corpus) == [Document("a.md", "grün"), Document("b/x.txt", "one\r\ntwo")]
    assert [Path(path).name for path in corpus.skipped] == ["latin.txt", "nul.bin"]


def test_jsonl_text_file_and_glob(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"text": "a", "id": 1}\n\n{"text": "b"}\n')
    (tmp_path / "one.txt").write_bytes(b"c\r\n")
    jsonl = [Document("two.jsonl:1", "a"), Document("two.jsonl:3", "b")]
    assert list(Corpus([str(tmp_path / "two.jsonl")])) == jsonl
    assert list(Corpus([str(tmp_path / "*")])) == [Document("one.txt", "c\r\n"), *jsonl]
    assert list(Corpus([str(tmp_path / "**")])) == [Document("one.txt", "c\r\n"), *jsonl]
    assert len(list(Corpus([str(tmp_path / "*.txt"), str(tmp_path / "two.jsonl")]))) == 3


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"text": 3}', '{"body": "x"}', '{"text": "\\ud800"}']
)
def test_bad_jsonl_line_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    assert f"{path} line 2" in _refusal(str(path))


def test_missing_empty_and_undecodable_sources_are_refused_by_name(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    assert missing in _refusal(missing)
    assert str(tmp_path / "*.nothing") in _refusal(str(tmp_path / "*.nothing"))
    assert str(tmp_path) in _refusal(str(tmp_path))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"gr\xfcn")
    assert f"{latin} is not utf-8" in _refusal(str(latin))
    with pytest.raises(Refused, match="data.source is empty"):
        list(Corpus([]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "locked.txt"
    path.write_text("x")
    path.chmod(0)
    assert f"cannot read {path}" in _refusal(str(path))


def test_split_follows_the_path_hash_and_its_share() -> None:
    paths = [f"folder/file{number}" for number in range(4000)]
    keys = np.array([path_key(path) for path in paths], np.uint64)
    held_out = split_documents(keys, 5.0)
    assert held_out.tolist() == [is_validation(path, 5.0) for path in paths]
    assert 150 < held_out.sum() < 250
    # a larger share keeps what was held out already
    assert not (held_out & ~split_documents(keys, 10.0)).any()


@pytest.mark.parametrize("percent", [0.0, 1e-9, 99.999999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_split_is_ever_empty(percent: float, count: int) -> None:
    keys = np.array([path_key(str(number)) for number in range(count)], np.uint64)
    held_out = split_documents(keys, percent)
    assert 0 < held_out.sum() < count
    assert (held_out == split_documents(keys, percent)).all()


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="1 document"):
        split_documents(np.array([5], np.uint64), 5.0)
    for percent in (-1.0, 100.0, float("nan")):
        with pytest.raises(Refused, match="valid_percent"):
            split_documents(np.array([5, 6], np.uint64), percent)


def test_fingerprint_sees_text_path_and_order_but_not_the_place(tmp_path: Path) -> None:
    def fingerprint(name: str, files: dict) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for path, text in files.items():
            (folder / path).write_text(text)
        return scan(Corpus([str(folder)])).fingerprint

    base = fingerprint("base", {"a": "1", "b": "2"})
    assert fingerprint("moved", {"a": "1", "b": "2"}) == base
    others = [
        fingerprint("text", {"a": "1", "b": "3"}),
        fingerprint("path", {"a": "1", "c": "2"}),
        fingerprint("swapped", {"a": "2", "b": "1"}),
        fingerprint("joined", {"a": "12"}),
    ]
    assert len({base, *others}) == 5


def test_a_corpus_that_changes_between_two_readings_is_noticed(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    corpus = Corpus([str(tmp_path)])
    seen = scan(corpus)
    assert seen.sizes.tolist() == [4, 4]
    assert list(reread(corpus, seen)) == list(corpus)
    for text in ("SAME", "longer"):
        (tmp_path / "b.txt").write_text(text)
        with pytest.raises(RunFailed, match="changed"):
            list(reread(corpus, seen))
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("new")
    with pytest.raises(RunFailed, match="changed"):
        list(reread(corpus, seen))
    (tmp_path / "c.txt").unlink()
    (tmp_path / "b.txt").unlink()
    with pytest.raises(RunFailed, match="changed"):
        list(reread(corpus, seen))
