from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data import prepare
from loopmoe_train.data.corpus import Corpus, scan, split_documents
from loopmoe_train.data.dataset import DatasetInfo, load_dataset
from loopmoe_train.data.prepare import ensure_prepared, ensure_tokenizer
from loopmoe_train.errors import Interrupted, Refused, RunFailed
from tests.data.conftest import make_config

FILES = {
    "tokenizer.model", "tokenizer.json", "train.bin", "train.idx", "valid.bin", "valid.idx",
    "dataset.json",
}  # fmt: skip


def _silent(line: str) -> None:
    pass


def _files(folder: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def _refusal(config: RunConfig, **options: bool) -> str:
    with pytest.raises(Refused) as caught:
        ensure_prepared(config, _silent, **options)
    assert "\n" not in str(caught.value) and " -> " in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copy(dataset: DatasetInfo, tmp_path: Path) -> Path:
    """A dataset folder that the test may damage."""
    for name, content in _files(Path(dataset.path)).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_every_document_comes_back_in_its_split(dataset: DatasetInfo, corpus_folder: Path) -> None:
    corpus = Corpus([str(corpus_folder)])
    documents, seen = list(corpus), scan(corpus)
    held_out = split_documents(seen.keys, 20.0)
    tokenizer = dataset.tokenizer()
    for split, info, wanted in (("train", dataset.train, False), ("valid", dataset.valid, True)):
        reader = dataset.reader(split)
        texts = [d.text for d, held in zip(documents, held_out, strict=True) if held == wanted]
        assert reader.num_documents == info.documents == len(texts) > 0
        assert info.tokens == reader.num_tokens
        assert info.bytes == sum(len(text.encode()) for text in texts)
        total = 0
        for index, text in enumerate(texts):
            ids = reader.document(index)
            assert ids[-1] == tokenizer.eod_id and tokenizer.eod_id not in ids[:-1]
            assert tokenizer.decode(ids) == text
            total += int(tokenizer.token_bytes()[ids].sum())
        assert total == info.bytes
    assert dataset.skipped_files == 0 and dataset.corpus_fingerprint == seen.fingerprint


def test_yardstick_is_gzip_9_of_each_held_out_document(dataset: DatasetInfo) -> None:
    reader, tokenizer = dataset.reader("valid"), dataset.tokenizer()
    texts = [tokenizer.decode(reader.document(i)).encode() for i in range(reader.num_documents)]
    bits = 8 * sum(len(gzip.compress(text, 9, mtime=0)) for text in texts)
    assert dataset.gzip9_bits_per_byte == bits / sum(map(len, texts))


def test_tokenizer_learns_from_the_training_split_only(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus([str(corpus_folder)])
    held_out = split_documents(scan(corpus).keys, 20.0)
    allowed = {d.text for d, held in zip(corpus, held_out, strict=True) if not held}
    config = make_config(tmp_path, corpus_folder)
    real, heard = prepare.train_tokenizer, []

    def spy(texts, settings):
        heard[:] = list(texts)
        return real(heard, settings)

    monkeypatch.setattr(prepare, "train_tokenizer", spy)
    ensure_tokenizer(config, _silent)
    assert set(heard) == allowed
    config.tokenizer.train_bytes = 5000
    ensure_tokenizer(config, _silent, force=True)
    assert sum(len(text.encode()) for text in heard) in range(4997, 5001)
    assert all(any(whole.startswith(text) for whole in allowed) for text in heard)


def test_folder_is_complete_and_free_of_rubbish(dataset: DatasetInfo) -> None:
    assert set(_files(Path(dataset.path))) == FILES
    content = json.loads((Path(dataset.path) / "dataset.json").read_text())
    assert content["settings"]["tokenizer.vocab_size"] == dataset.vocab_size
    assert content["fingerprint"] == dataset.fingerprint
    assert load_dataset(Path(dataset.path)) == dataset


def test_two_processes_write_the_same_bytes_as_one(
    dataset: DatasetInfo, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loopmoe_train.data.tokenise._TASK_BYTES", 1000)  # many tasks
    config = make_config(tmp_path / "two", corpus_folder)
    config.data.workers = 2
    info = ensure_prepared(config, _silent)
    assert _files(tmp_path / "two") == _files(Path(dataset.path))
    assert replace(info, path=dataset.path) == dataset


def test_existing_dataset_is_reused_without_reading_the_corpus(
    copy: Path, dataset: DatasetInfo, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "scan", None)
    config = make_config(copy, corpus_folder)
    for verify in (False, True):
        info = ensure_prepared(config, _silent, verify=verify)
        assert info.fingerprint == dataset.fingerprint and info.path == str(copy)
    assert ensure_tokenizer(config, _silent).fingerprint == dataset.tokenizer_fingerprint


def test_another_dataset_is_refused_with_the_difference(copy: Path, corpus_folder: Path) -> None:
    config = make_config(copy, corpus_folder)
    config.tokenizer.vocab_size = 500
    config.data.valid_percent = 7.0
    before = _files(copy)
    message = _refusal(config)
    assert "tokenizer.vocab_size is 420 there, 500 here" in message
    assert "data.valid_percent is 20.0 there, 7.0 here" in message
    assert str(copy) in message and "data.path" in message and "--force" in message
    assert _files(copy) == before


def test_force_replaces_another_dataset(copy: Path, corpus_folder: Path) -> None:
    config = make_config(copy, corpus_folder)
    config.tokenizer.vocab_size = 500
    info = ensure_prepared(config, _silent, force=True)
    assert info.tokenizer().vocab_size == 500
    assert ensure_prepared(config, _silent, verify=True) == info


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in sorted(FILES - {"tokenizer.json"})
        for damage in (_truncate, Path.unlink)
        if (name, damage) != ("dataset.json", Path.unlink)  # that is an unfinished one, see below
    ],
)
def test_damage_is_refused_with_the_file_named(
    copy: Path, corpus_folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(copy / name)
    assert str(copy / name) in _refusal(make_config(copy, corpus_folder))


def test_verify_finds_a_flipped_bit(copy: Path, corpus_folder: Path) -> None:
    path = copy / "valid.bin"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(bytes(content))
    config = make_config(copy, corpus_folder)
    ensure_prepared(config, _silent)
    assert str(path) in _refusal(config, verify=True)


@pytest.mark.parametrize("missing", [["dataset.json"], ["dataset.json", "train.idx", "valid.bin"]])
def test_unfinished_dataset_is_finished(
    copy: Path, dataset: DatasetInfo, corpus_folder: Path, missing: List[str]
) -> None:
    for name in missing:
        (copy / name).unlink()
    (copy / ".train.bin.123-abcd.tmp").write_bytes(b"of a killed process")
    ensure_prepared(make_config(copy, corpus_folder), _silent)
    assert _files(copy) == _files(Path(dataset.path))


def test_tokenizer_of_the_verb_is_used_unless_its_corpus_changed(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, corpus_folder)
    tokenizer = ensure_tokenizer(config, _silent)
    assert set(_files(tmp_path)) == {"tokenizer.model", "tokenizer.json"}
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "train_tokenizer", None)
        info = ensure_prepared(config, _silent)
    assert info.tokenizer_fingerprint == tokenizer.fingerprint
    (tmp_path / "dataset.json").unlink()
    config.data.source = [str(corpus_folder / "part0"), str(corpus_folder / "part1")]
    assert ensure_prepared(config, _silent).tokenizer_fingerprint != tokenizer.fingerprint


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, corpus_folder: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"precious")
    config = make_config(tmp_path, corpus_folder)
    message = _refusal(config)
    assert str(tmp_path) in message and "train.bin" in message
    assert (tmp_path / "train.bin").read_bytes() == b"precious"
    assert ensure_prepared(config, _silent, force=True).train.documents > 0


def test_fingerprint_follows_text_and_settings_not_the_place(
    dataset: DatasetInfo, corpus_folder: Path, tmp_path: Path
) -> None:
    import shutil

    moved = shutil.copytree(corpus_folder, tmp_path / "moved")
    same = ensure_prepared(make_config(tmp_path / "same", moved), _silent)
    assert same.fingerprint == dataset.fingerprint
    config = make_config(tmp_path / "share", corpus_folder)
    config.data.valid_percent = 40.0
    assert ensure_prepared(config, _silent).fingerprint != dataset.fingerprint
    path = next(moved.rglob("1.py"))
    path.write_bytes(path.read_bytes() + b"#")
    edited = ensure_prepared(make_config(tmp_path / "edited", moved), _silent)
    assert edited.fingerprint != dataset.fingerprint


def test_interrupted_preparation_is_not_complete(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, corpus_folder)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("loopmoe_train.data.tokenise._tokenise_one", interrupted)
        with pytest.raises(Interrupted, match="interrupted by SIGINT") as caught:
            ensure_prepared(config, _silent)
    assert caught.value.exit_code == 130
    assert set(_files(tmp_path)) == {"tokenizer.model", "tokenizer.json"}
    assert ensure_prepared(config, _silent).train.documents > 0


def test_a_worker_that_dies_is_reported(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, corpus_folder)
    config.data.workers = 2
    monkeypatch.setattr("loopmoe_train.data.tokenise._start_worker", sys.exit)
    with pytest.raises(RunFailed, match="data.workers=1"):
        ensure_prepared(config, _silent)
    assert "dataset.json" not in _files(tmp_path)


def test_progress_without_a_terminal_is_plain_lines(tmp_path: Path, corpus_folder: Path) -> None:
    lines: List[str] = []
    ensure_prepared(make_config(tmp_path, corpus_folder), lines.append)
    assert any(line.startswith("tokenise: ") and "MB/s" in line for line in lines)
    assert not any("\n" in line or "\x1b" in line for line in lines)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, corpus_folder: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below"
    assert str(path) in _refusal(make_config(path, corpus_folder))


def test_preparing_needs_no_torch() -> None:
    code = "import sys, loopmoe_train.data.prepare as p; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
