"""Corpus: where text comes from, which documents are held out, and a fingerprint of it all.

A *source* is the word ``python-stdlib`` or ``python-packages``, a folder, a record file
(``.jsonl``, ``.jsonl.gz``, ``.jsonl.zst``, ``.parquet``: a document per line or row), any other
text file (one document), or a glob of these. A record file and its compressed form are the same
documents to the fingerprint.
"""

from __future__ import annotations

import glob
import hashlib
import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Container, Iterator, List, Sequence, Tuple

import numpy as np

from loopmoe_train.data.readers import plain_name, reader_of
from loopmoe_train.errors import Refused, RunFailed

PYTHON_STDLIB = "python-stdlib"
PYTHON_PACKAGES = "python-packages"  # the .py files of what is installed beside this package

# tests of the library and what is installed or built beside it are not its source
_TESTS = frozenset({"test", "tests", "idle_test", "__pycache__"})
_STDLIB_SKIPPED_FOLDERS = _TESTS | {"site-packages", "dist-packages"}
_STDLIB_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Document:
    """One text. ``path`` names it relative to its source, so moving a corpus changes nothing."""

    path: str
    text: str


@dataclass
class Corpus:
    """Documents of a list of sources, in a fixed order: sources as given, paths sorted inside.

    Iterating reads files lazily and can be repeated. Empty texts are left out. ``skipped`` holds
    the binary or unreadable files met inside folders by the last complete iteration.
    """

    sources: Sequence[str]
    skipped: List[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Document]:
        """Yield documents.

        Raises:
            Refused: a source is missing, empty, unreadable or damaged, or a record is bad.
        """
        if not self.sources:
            raise Refused(
                "data.source is empty", f"name a source, e.g. data.source=[{PYTHON_STDLIB}]"
            )
        skipped: List[str] = []
        for source in self.sources:
            found = False
            for document in _read_source(source, skipped):
                if document.text:
                    found = True
                    yield document
            if not found:
                raise Refused(
                    f"data.source '{source}' holds no text",
                    "point data.source at a folder, .txt, .jsonl or .parquet file with utf-8 text",
                )
        self.skipped = skipped


class _Fingerprint:
    """Hash over (path, text) of documents, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> int:
        """Take one document in; returns its utf-8 bytes."""
        data = document.text.encode("utf-8")
        path = document.path.encode("utf-8", "surrogateescape")
        self._digest.update(hashlib.sha256(path).digest() + hashlib.sha256(data).digest())
        return len(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Scan:
    """What one pass over a corpus tells, one entry per document in corpus order."""

    fingerprint: str  # over (path, text) of every document, in order
    sizes: np.ndarray  # int64 [documents], utf-8 bytes
    keys: np.ndarray  # uint64 [documents], hash of the path: decides split and subsets

    @property
    def num_bytes(self) -> int:
        """Utf-8 bytes of the whole corpus."""
        return int(self.sizes.sum())


def scan(corpus: Corpus, on_document: Callable[[int], None] = lambda size: None) -> Scan:
    """Read the corpus once; ``on_document`` gets the bytes of each document (for progress)."""
    fingerprint = _Fingerprint()
    sizes: List[int] = []
    keys: List[int] = []
    for document in corpus:
        size = fingerprint.add(document)
        sizes.append(size)
        keys.append(path_key(document.path))
        on_document(size)
    return Scan(fingerprint.hexdigest(), np.array(sizes, np.int64), np.array(keys, np.uint64))


def reread(corpus: Corpus, seen: Scan) -> Iterator[Document]:
    """Yield the documents that ``seen`` was made of, once more.

    Raises:
        RunFailed: they are no longer the same; at the latest at the end, so finish the loop
            before trusting what came out of it.
    """
    fingerprint = _Fingerprint()
    count = 0
    for count, document in enumerate(corpus, start=1):
        if count > len(seen.sizes) or fingerprint.add(document) != seen.sizes[count - 1]:
            break
        yield document
    if count != len(seen.sizes) or fingerprint.hexdigest() != seen.fingerprint:
        raise RunFailed("the corpus changed while it was read", "leave it alone and run again")


def path_key(path: str) -> int:
    """64-bit hash of a document path, uniform and the same on every machine."""
    data = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def is_validation(path: str, percent: float) -> bool:
    """Whether a document is held out, by the hash of its path alone."""
    return path_key(path) < _threshold(percent)


def split_documents(keys: np.ndarray, percent: float) -> np.ndarray:
    """Choose the validation documents: bool [documents], never all and never none.

    It is :func:`is_validation` of every document, except that a split which would be empty gets
    the document nearest to the threshold.

    Raises:
        Refused: fewer than two documents, or ``percent`` outside [0, 100).
    """
    if not 0 <= percent < 100:
        raise Refused(f"data.valid_percent={percent} is not in [0, 100)", "use e.g. 5")
    if len(keys) < 2:
        raise Refused(
            f"the corpus has {len(keys)} document(s), training and validation need one each",
            "add a source, or cut the text into several files or .jsonl lines",
        )
    held_out = keys < np.uint64(_threshold(percent))
    if not held_out.any():
        held_out[int(np.argmin(keys))] = True
    elif held_out.all():
        held_out[int(np.argmax(keys))] = False
    return held_out


def _threshold(percent: float) -> int:
    return min(int(percent / 100.0 * 2.0**64), 2**64 - 1)


def _read_source(source: str, skipped: List[str]) -> Iterator[Document]:
    if source == PYTHON_STDLIB:
        yield from _read_stdlib()
        return
    if source == PYTHON_PACKAGES:
        root = Path(sysconfig.get_paths()["purelib"])
        yield from _read_folder(root, skipped, without=_TESTS, suffix=".py")
        return
    path = Path(source).expanduser()
    matches = [path]
    if not path.exists() and glob.has_magic(source):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not matches or not matches[0].exists():
        raise Refused(
            f"data.source '{source}' does not exist (looked from {os.getcwd()})",
            "give a folder, .txt, .jsonl, .parquet, a glob of these, "
            f"'{PYTHON_STDLIB}' or '{PYTHON_PACKAGES}'",
        )
    # a recursive glob such as '**' names folders beside the files in them
    files_only = len(matches) > 1 and "**" in source
    for whole, match in _in_order([(str(match), match) for match in matches]):
        if match.is_dir():
            if not files_only:
                yield from _read_folder(match, skipped)
        else:
            yield from _read_file(match, Path(whole).name)


def _in_order(found: List[Tuple[str, Path]]) -> List[Tuple[str, Path]]:
    """(name, path) sorted by name, compression taken off the names.

    Raises:
        Refused: a record file is there twice, plain and compressed.
    """
    plain = sorted((plain_name(name), path) for name, path in found)
    for (name, path), (next_name, twin) in zip(plain, plain[1:]):
        if name == next_name:
            raise Refused(
                f"{path} and {twin} are the same documents by their name", "remove one of them"
            )
    return plain


def _read_file(path: Path, name: str) -> Iterator[Document]:
    """One file that must hold text."""
    read = reader_of(path)
    if read is None:
        yield Document(name, _read_text(path))
        return
    for number, text in read(path):
        yield Document(f"{name}:{number}", text)


def _read_stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name, path in _walk(root, _STDLIB_SKIPPED_FOLDERS):
        generated = any(part.startswith(_STDLIB_SKIPPED_PREFIXES) for part in name.split("/"))
        if path.suffix == ".py" and not generated:
            yield Document(name, _read_text(path))


def _read_folder(
    root: Path, skipped: List[str], without: Container[str] = (), suffix: str = ""
) -> Iterator[Document]:
    """Text files below ``root`` whose names end in ``suffix``, but for folders ``without``."""
    for name, path in _walk(root, without):
        if not name.endswith(suffix):
            continue
        if reader_of(path) is not None:
            yield from _read_file(path, name)
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped.append(str(path))
            continue
        if "\0" in text:
            skipped.append(str(path))
            continue
        yield Document(name, text)


def _walk(root: Path, without: Container[str] = ()) -> List[Tuple[str, Path]]:
    """Files below ``root`` as (posix path relative to it, path), in :func:`_in_order`.

    Hidden files and folders, and folders named in ``without``, are left out.
    """
    found: List[Tuple[str, Path]] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and name not in without
        ]
        for file in files:
            path = Path(folder, file)
            if not file.startswith(".") and path.is_file():
                found.append((path.relative_to(root).as_posix(), path))
    return _in_order(found)


def _read_text(path: Path) -> str:
    # decoded from bytes, because text mode would turn CRLF into LF
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is not utf-8 text (byte {error.start})", "convert it or leave it out"
        ) from None
    if "\0" in text:
        raise Refused(f"{path} is binary, not text (it holds a zero byte)", "leave it out")
    return text
