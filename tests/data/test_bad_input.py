"""Everything that can be wrong with data, as the command line meets it: one line, the right exit
code, nothing half-written. A table, so that a new mishap is one more row."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Set, Tuple

import psutil
import pytest

from loopmoe_train.cli import main
from loopmoe_train.data.dataset import DatasetInfo

SETTINGS = ["tokenizer.vocab_size=420", "data.valid_percent=20", "data.workers=1"]
NO_CACHE = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


# name -> (what happens to the prepared dataset `d`, words of the line); `train` and `verify` are
# both asked, and the file or folder named must be the guilty one
DAMAGED: Dict[str, Tuple[Callable[[Path], None], str]] = {
    "bin empty": (lambda d: _write(d / "train.bin", b""), "d/train.bin"),
    "bin cut": (lambda d: os.truncate(d / "valid.bin", 100), "d/valid.bin"),
    "bin missing": (lambda d: (d / "train.bin").unlink(), "d/train.bin"),
    "bin a folder": (
        lambda d: ((d / "train.bin").unlink(), (d / "train.bin").mkdir()) and None,
        "d/train.bin",
    ),
    "idx empty": (lambda d: _write(d / "train.idx", b""), "d/train.idx"),
    "idx cut": (lambda d: os.truncate(d / "valid.idx", 60), "d/valid.idx"),
    "idx of another split": (
        lambda d: _write(d / "valid.idx", (d / "train.idx").read_bytes()),
        "d/valid.",
    ),
    "idx text": (lambda d: _write(d / "train.idx", b"not an index " * 40), "d/train.idx"),
    "card empty": (lambda d: _write(d / "dataset.json", b""), "d/dataset.json"),
    "card cut": (lambda d: os.truncate(d / "dataset.json", 200), "d/dataset.json"),
    "card binary": (lambda d: _write(d / "dataset.json", bytes(range(256))), "d/dataset.json"),
    "card a list": (lambda d: _write(d / "dataset.json", b"[1]"), "d/dataset.json"),
    "card of another format": (
        lambda d: _edit(d / "dataset.json", b'"format": 1', b'"format": 9'),
        "another format",
    ),
    "card with a word for a number": (
        lambda d: _edit(d / "dataset.json", b'"skipped_files": 0', b'"skipped_files": "no"'),
        "skipped_files",
    ),
    "card without a key": (
        lambda d: _edit(d / "dataset.json", b'"gzip9_bits_per_byte"', b'"gzip"'),
        "gzip9_bits_per_byte",
    ),
    "card without its settings": (
        lambda d: _edit(d / "dataset.json", b'"tokenizer.vocab_size"', b'"vocab"'),
        "tokenizer.vocab_size",
    ),
    "tokenizer empty": (lambda d: _write(d / "tokenizer.model", b""), "d/tokenizer.model"),
    "tokenizer cut": (lambda d: os.truncate(d / "tokenizer.model", 999), "d/tokenizer.model"),
    "tokenizer text": (lambda d: _write(d / "tokenizer.model", b"hello"), "d/tokenizer.model"),
    "tokenizer missing": (lambda d: (d / "tokenizer.model").unlink(), "d/tokenizer.model"),
    "tokenizer of somebody else": (
        lambda d: _write(d / "tokenizer.model", _foreign_tokenizer()),
        "d/tokenizer.model lacks",
    ),
}


def _foreign_tokenizer() -> bytes:
    """A SentencePiece model as its own defaults make it."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to learn from"] * 50), model_writer=model,
        vocab_size=30, model_type="bpe", minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


# words of the command -> words of the line; `{p}` is the test's folder
REFUSED: Dict[str, str] = {
    "data data.source={p}/nothing data.path={p}/new": "does not exist",
    "data data.source={p}/one.txt data.path={p}/new": "has 1 document(s)",
    "data data.source={p}/one.jsonl data.path={p}/new": "has 1 document(s)",
    "data data.source={p}/empty.txt data.path={p}/new": "holds no text",
    "data data.source={p}/random.bin data.path={p}/new": "random.bin is not utf-8 text (byte ",
    "data data.source={p}/zeros.bin data.path={p}/new": "zeros.bin is binary",
    "data data.source={p}/cut.jsonl.gz data.path={p}/new": "cut.jsonl.gz line ",
    "data data.source={p}/no.parquet data.path={p}/new": "no.parquet row 1: damaged Parquet",
    "data data.source={p}/no.jsonl.zst data.path={p}/new": "no.jsonl.zst line 1: the compressed",
    "data data.source={p}/bad.jsonl data.path={p}/new": "bad.jsonl line 2",
    "data data.source={p}/texts data.path={p}/one.txt": "cannot write in",
    "data data.source={p}/texts data.path={p}/new tokenizer.path={p}/one.txt": "one.txt is no",
    "data data.source={p}/texts data.path={p}/new tokenizer.path={p}/none": "cannot read the tok",
    "data 'data.mixture=[{{path:{p}/d}}]'": "prepared already",
    "data verfy": "there is no such verb",
    "data verify {p}/nothing": "nothing/dataset.json is missing",
    "data verify {p}/texts": "texts/dataset.json is missing",
    "data verify --force": "not a dataset folder",
    "train 'data.mixture=[{{path:{p}/d,weight:0}}]'": "weight=0.0: must be above 0",
    "train 'data.mixture=[{{path:{p}/d,weight:-2}}]'": "weight=-2.0: must be above 0",
    "train 'data.mixture=[{{path:{p}/d,weight:many}}]'": "many",
    "train 'data.mixture=[{{path:{p}/d,wieght:1}}]'": "wieght",
    "train 'data.mixture=[{{path:{p}/d}},{{path:{p}/d/}}]'": "/d twice",
    "train 'data.mixture=[{{weight:1}}]'": "names no folder",
    "train 'data.mixture=[{p}/d]'": "data.mixture",
    "train 'data.mixture=[{{path:{p}/d}},{{path:{p}/nothing}}]'": "nothing: no prepared dataset",
    "train 'data.mixture=[{{path:{p}/d}},{{path:{p}/twin}}]'": "hold the same dataset",
    "train 'data.mixture=[{{path:{p}/d}}]' data.validation={p}/nothing": "no prepared dataset",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, dataset: DatasetInfo) -> Path:
    """Bad files of every kind, and the sound dataset ``d`` with its copy ``twin``."""
    p = tmp_path_factory.mktemp("bad")
    for name in ("d", "twin"):
        shutil.copytree(dataset.path, p / name)
    lines = b"".join(b'{"text": "line %d"}\n' % number for number in range(2000))
    for name, content in {
        "one.txt": b"a text", "one.jsonl": b'{"text": "a"}\n', "empty.txt": b"",
        "random.bin": bytes(range(256)), "zeros.bin": b"abc\0def", "no.parquet": b"PAR1 no",
        "no.jsonl.zst": b"no archive", "cut.jsonl.gz": gzip.compress(lines)[:-900],
        "bad.jsonl": b'{"text": "a"}\n{"text": 1}\n',
    }.items():  # fmt: skip
        (p / name).write_bytes(content)
    (p / "texts").mkdir()
    for number in range(9):
        text = "".join(f"text {number} line {i}: {i * i}\n" for i in range(60))
        (p / "texts" / f"{number}.txt").write_text(text)
    return p


def _told(capsys: pytest.CaptureFixture[str], argv: List[str], code: int = 2) -> str:
    found = main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert found == code and len(lines) == 1, (found, lines)
    assert lines[0].startswith(f"loopmoe {argv[0]}: ") and "unexpected" not in lines[0]
    return lines[0]


def _files(folder: Path) -> Set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line(
    place: Path, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = _files(place)
    argv = [word.strip("'") for word in words.format(p=place).split()]
    if argv[0] == "data" and argv[1:2] != ["verify"] and "=" in argv[1]:
        argv += [word for word in SETTINGS if "mixture" not in words]
    assert REFUSED[words] in _told(capsys, argv)
    # an empty folder with its lock, or a run folder without a run, is all that may be new
    new = _files(place) - before
    assert new <= {"new", "new/.lock", "runs", "runs/quickstart", "runs/quickstart/.lock"}, new
    for name in ("new", "runs"):
        shutil.rmtree(place / name, ignore_errors=True)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_dataset_is_refused_by_name(
    name: str, dataset: DatasetInfo, second_dataset: DatasetInfo, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset.path, "d")
    damage, words = DAMAGED[name]
    damage(tmp_path / "d")
    before = _files(tmp_path / "d")
    assert words in _told(capsys, ["data", "verify", "d"])
    mixture = f"data.mixture=[{{path:{second_dataset.path},weight:3}},{{path:d}}]"
    assert words in _told(capsys, ["train", mixture])
    assert _files(tmp_path / "d") == before


def _prepare(place: Path, folder: Path, *more: str) -> List[str]:
    return [LOOPMOE, "data", f"data.source={place}/texts", f"data.path={folder}", *SETTINGS, *more]


@pytest.mark.parametrize(
    ("limit", "file"), [(0, "tokenizer.json"), (3000, "tokenizer.model"), (3000, "train.bin")]
)
def test_a_full_disk_leaves_nothing_half_written(
    place: Path, tmp_path: Path, limit: int, file: str
) -> None:
    """A limit of file sizes stands for the disk that fills up while ``file`` is written."""

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    folder = tmp_path / "d"
    if file == "train.bin":
        assert main(["tokenizer", *_prepare(place, folder)[2:]]) == 0
    done = subprocess.run(
        _prepare(place, folder), capture_output=True, text=True, check=False, preexec_fn=full,
        env=NO_CACHE,
    )  # fmt: skip
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 1 and "unexpected" not in line
    assert (
        f"cannot write {folder}/{file}: " in line
        and "File too large" in line
        and " -> free" in line
    )
    whole = {"tokenizer.json", "tokenizer.model", ".lock"}
    assert _files(folder) <= whole, "a temporary or half file was left"
    assert main(_prepare(place, folder)[1:]) == 0  # with space it is finished


@pytest.mark.parametrize(
    ("limit", "code", "words"),
    [(0, 2, "cannot be used as a run folder"), (100, 1, "cannot write {runs}/quickstart/run.yaml")],
)
def test_a_run_folder_on_a_full_disk(
    place: Path, tmp_path: Path, limit: int, code: int, words: str
) -> None:
    done = subprocess.run(
        [LOOPMOE, "train", f"runs_dir={tmp_path}", f"data.mixture=[{{path:{place}/d}}]",
         "sequence_length=32"],
        capture_output=True, text=True, check=False, env=NO_CACHE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == code and "File too large" in line
    assert words.format(runs=tmp_path) in line
    assert _files(tmp_path) == {"quickstart", "quickstart/.lock"}


def _long(dataset: DatasetInfo, folder: Path) -> List[str]:
    """A preparation that takes some seconds, with two workers."""
    given = f"tokenizer.path={dataset.tokenizer_path}"
    return [LOOPMOE, "data", f"data.path={folder}", given, "data.workers=2"]


def _being_tokenised(dataset: DatasetInfo, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        _long(dataset, folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not list(folder.glob(".train.bin.*.tmp")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_a_signal_leaves_nothing_half_written(
    dataset: DatasetInfo, tmp_path: Path, whole_group: bool
) -> None:
    """Ctrl-C reaches the workers too, `kill -TERM` the front door alone."""
    number = signal.SIGINT if whole_group else signal.SIGTERM
    folder = tmp_path / "d"
    process = _being_tokenised(dataset, folder)
    try:
        while not (workers := psutil.Process(process.pid).children(recursive=True)):
            time.sleep(0.01)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert err.splitlines() == [
        f"loopmoe data: interrupted by {number.name} -> run the same command again"
    ]
    assert _files(folder) == {"tokenizer.json", "tokenizer.model", ".lock"}
    assert not psutil.wait_procs(workers, timeout=10)[1], "a worker was left behind"


def test_who_waits_takes_over_from_a_killed_preparation(
    dataset: DatasetInfo, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    first = _being_tokenised(dataset, folder)
    first.send_signal(signal.SIGSTOP)  # it must not be done before the second has looked
    second = subprocess.Popen(_long(dataset, folder), stdout=subprocess.PIPE, text=True)
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == f"another process prepares {folder}, waiting for it\n"
        first.kill()
        second.communicate(timeout=200)
    finally:
        first.kill()
        first.wait()
        second.kill()
    assert second.returncode == 0 and main(["data", "verify", str(folder)]) == 0
    assert not [name for name in _files(folder) if name.endswith(".tmp")]


def test_two_preparations_at_once_make_one_dataset(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    both = [
        subprocess.Popen(_prepare(place, folder), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("training a bpe tokenizer" in out for out in outs) == 1, "both have built it"
    prints = {line for out in outs for line in out.splitlines() if line.startswith("fingerprint")}
    assert len(prints) == 1
    assert not [name for name in _files(folder) if name.endswith(".tmp")]
    assert main(["data", "verify", str(folder)]) == 0
