"""``dataset.json``: what a prepared folder holds. Its presence means the folder is complete."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, get_type_hints

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.indexed import IndexedReader
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.errors import Refused
from loopmoe_train.files import atomic_write

FORMAT = 1
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class SplitInfo:
    """One split: counts, and the hash of its .bin."""

    documents: int
    tokens: int  # end-of-document tokens included
    bytes: int  # utf-8 text
    bin_sha256: str

    @property
    def bytes_per_token(self) -> float:
        """Utf-8 bytes that a token stands for on average."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class DatasetInfo:
    """A complete dataset in ``path``: tokenizer.model, train.bin/.idx, valid.bin/.idx."""

    path: str
    fingerprint: str  # over the corpus, the tokenizer, the settings and both .bin files
    corpus_fingerprint: str
    tokenizer_fingerprint: str
    settings: Dict[str, Any]  # those of `dataset_settings`
    train: SplitInfo
    valid: SplitInfo
    gzip9_bits_per_byte: float  # of the validation documents, each compressed alone: a yardstick
    skipped_files: int  # binary or unreadable ones in source folders

    @property
    def tokenizer_path(self) -> Path:
        """The SentencePiece model."""
        return Path(self.path) / "tokenizer.model"

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer."""
        return int(self.settings["tokenizer.vocab_size"])

    def prefix(self, split: str) -> Path:
        """Path of a split (``train`` or ``valid``) without .bin/.idx."""
        return Path(self.path) / split

    def tokenizer(self) -> Tokenizer:
        """Open the tokenizer."""
        return Tokenizer(self.tokenizer_path)

    def reader(self, split: str) -> IndexedReader:
        """Open a split (``train`` or ``valid``)."""
        return IndexedReader(self.prefix(split))


def dataset_settings(config: RunConfig) -> Dict[str, Any]:
    """The settings that decide a dataset's content, by their names in the configuration.

    Raises:
        Refused: ``tokenizer.path`` names no tokenizer of ours.
    """
    corpus = {
        "data.source": list(config.data.source),
        "data.valid_percent": float(config.data.valid_percent),
    }
    if config.tokenizer.path is not None:
        given = Tokenizer(Path(config.tokenizer.path))
        return {
            **corpus,
            "tokenizer.kind": "given",
            "tokenizer.vocab_size": given.vocab_size,
            "tokenizer.fingerprint": given.fingerprint,
        }
    return {
        **corpus,
        "tokenizer.kind": config.tokenizer.kind,
        "tokenizer.vocab_size": config.tokenizer.vocab_size,
        "tokenizer.train_bytes": config.tokenizer.train_bytes,
    }


def dataset_fingerprint(
    corpus_fingerprint: str,
    tokenizer_fingerprint: str,
    settings: Dict[str, Any],
    bin_hashes: List[str],
) -> str:
    """Hex hash of everything that batches depend on.

    The words of data.source are left out: a corpus that moved is the same corpus.
    """
    content = {key: value for key, value in settings.items() if key != "data.source"}
    parts = [FORMAT, corpus_fingerprint, tokenizer_fingerprint, content, bin_hashes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save_dataset(info: DatasetInfo) -> None:
    """Write ``dataset.json`` atomically; call it last."""
    content = {"format": FORMAT, **asdict(info)}
    del content["path"]  # the folder may be moved
    with atomic_write(Path(info.path) / "dataset.json") as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")


def load_dataset(path: Path) -> Optional[DatasetInfo]:
    """Read ``dataset.json``; None when there is none.

    Raises:
        Refused: it is not what this version writes.
    """
    file = Path(path) / "dataset.json"
    try:
        content = json.loads(file.read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        splits = {name: _typed(SplitInfo, content.pop(name)) for name in SPLITS}
        info: DatasetInfo = _typed(DatasetInfo, {"path": str(path), **splits, **content})
        if type(info.settings["tokenizer.vocab_size"]) is not int:
            raise ValueError("tokenizer.vocab_size is not a number")
        return info
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KeyError as error:
        raise Refused(f"{file} is damaged (no {error})", "run `loopmoe data --force`") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{file} is damaged ({error})", "run `loopmoe data --force`") from None


def _typed(kind: Any, content: Dict[str, Any]) -> Any:
    """An instance of the dataclass ``kind`` whose values have the types it names."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        wanted = getattr(hints[item.name], "__origin__", hints[item.name])
        if type(content[item.name]) is not wanted:
            raise ValueError(f"{item.name} is {content[item.name]!r}"[:200])
        if wanted is int and content[item.name] < 0:
            raise ValueError(f"{item.name} is negative")
    if kind is SplitInfo and not content["tokens"]:
        raise ValueError("a split has no tokens")
    return kind(**content)


def check_dataset(info: DatasetInfo) -> None:
    """Compare sizes and the tokenizer with ``dataset.json``: quick, whatever the size.

    :mod:`loopmoe_train.data.verify` reads every byte.

    Raises:
        Refused: a file is missing or is not the one that was written, with its name.
    """
    fix = "run `loopmoe data --force` to build it again"
    if info.tokenizer().fingerprint != info.tokenizer_fingerprint:
        raise Refused(f"{info.tokenizer_path} is not the tokenizer of this dataset", fix)
    for name, split in zip(SPLITS, (info.train, info.valid), strict=True):
        reader = info.reader(name)
        if (reader.num_documents, reader.num_tokens) != (split.documents, split.tokens):
            raise Refused(f"{info.prefix(name)}.idx is not the one dataset.json names", fix)
