"""From a corpus to a dataset folder: scan, train the tokenizer, tokenise, seal.

Order of writing: tokenizer.json, tokenizer.model, the .bin/.idx pairs, dataset.json. A folder
without the last one is unfinished and is simply built again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.corpus import Corpus, Document, Scan, reread, scan, split_documents
from loopmoe_train.data.dataset import (
    SPLITS,
    DatasetInfo,
    SplitInfo,
    check_dataset,
    dataset_fingerprint,
    dataset_settings,
    load_dataset,
    save_dataset,
)
from loopmoe_train.data.indexed import IndexedWriter, bin_path, idx_path
from loopmoe_train.data.progress import progress
from loopmoe_train.data.tokenise import Tokens, Work, tokenise
from loopmoe_train.data.tokenizer import Tokenizer, train_tokenizer
from loopmoe_train.data.verify import verify_dataset
from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.files import atomic_write, remove_leftovers
from loopmoe_train.interrupts import interruptible

Print = Callable[[str], None]


def ensure_prepared(
    config: RunConfig, console_print: Print, force: bool = False, verify: bool = False
) -> DatasetInfo:
    """The dataset of ``config.data``; built when it is not there yet.

    Args:
        config: its ``data`` and ``tokenizer`` sections decide.
        console_print: receives plain lines about the progress.
        force: build it even if something is there.
        verify: check the bytes of an existing dataset, not only its sizes.

    Raises:
        Refused: the folder holds a dataset with other settings, a damaged one or foreign files;
            or the corpus cannot be read or split.
        RunFailed: a tokenising process died, or the disk is full.
        Interrupted: by SIGINT or SIGTERM; nothing half-written is left.
    """
    folder = Path(config.data.path)
    with interruptible(), _only_one(folder, console_print):
        if not force:
            found = load_dataset(folder)
            if found is not None:
                _check_settings(found, config)
                if verify:
                    verify_dataset(folder)
                else:
                    check_dataset(found)
                return found
            _refuse_foreign_files(folder)
        return _build(config, folder, console_print, force)


def ensure_tokenizer(config: RunConfig, console_print: Print, force: bool = False) -> Tokenizer:
    """The tokenizer of ``config.data.path``; trained on the training split when missing.

    ``force`` trains it again, which also unseals a dataset that is in the folder.

    Raises:
        Refused: as :func:`ensure_prepared`.
    """
    folder = Path(config.data.path)
    with interruptible(), _only_one(folder, console_print):
        found = None if force else load_dataset(folder)
        if found is not None:
            _check_settings(found, config)
            check_dataset(found)
            return found.tokenizer()
        if not force:
            _refuse_foreign_files(folder)
        corpus, seen, held_out = _scan(config, console_print)
        (folder / "dataset.json").unlink(missing_ok=True)
        return _tokenizer_for(config, folder, corpus, seen, held_out, console_print, force)


def _build(config: RunConfig, folder: Path, console_print: Print, force: bool) -> DatasetInfo:
    corpus, seen, held_out = _scan(config, console_print)
    (folder / "dataset.json").unlink(missing_ok=True)
    tokenizer = _tokenizer_for(config, folder, corpus, seen, held_out, console_print, force)
    for split in SPLITS:
        for name in (bin_path(folder / split), idx_path(folder / split)):
            remove_leftovers(name)
    works = (
        Work(document.text, int(size), bool(held))
        for document, size, held in zip(reread(corpus, seen), seen.sizes, held_out, strict=True)
    )
    results = tokenise(works, tokenizer.path, config.data.workers)
    with progress("tokenise", seen.num_bytes, console_print) as advance:
        train, valid, gzip_size = _write(results, folder, tokenizer.vocab_size, advance)
    settings = dataset_settings(config)
    info = DatasetInfo(
        path=str(folder),
        fingerprint=dataset_fingerprint(
            seen.fingerprint,
            tokenizer.fingerprint,
            settings,
            [train.bin_sha256, valid.bin_sha256],
        ),
        corpus_fingerprint=seen.fingerprint,
        tokenizer_fingerprint=tokenizer.fingerprint,
        settings=settings,
        train=train,
        valid=valid,
        gzip9_bits_per_byte=8 * gzip_size / valid.bytes,
        skipped_files=len(corpus.skipped),
    )
    save_dataset(info)
    return info


def _scan(config: RunConfig, console_print: Print) -> Tuple[Corpus, Scan, np.ndarray]:
    corpus = Corpus(config.data.source)
    with progress("read", None, console_print) as advance:
        seen = scan(corpus, advance)
    held_out = split_documents(seen.keys, config.data.valid_percent)
    console_print(f"corpus: {len(held_out)} documents, {seen.num_bytes / 1e6:.1f} MB")
    if corpus.skipped:
        console_print(
            f"left out {len(corpus.skipped)} binary or unreadable files, e.g. {corpus.skipped[0]}"
        )
    return corpus, seen, held_out


def _write(
    results: Iterator[Tokens], folder: Path, vocab_size: int, advance: Callable[[int], None]
) -> Tuple[SplitInfo, SplitInfo, int]:
    """Both splits, and the gzip'ed bytes of the validation documents."""
    sizes = [0, 0]
    gzip_size = 0
    with IndexedWriter(folder / "train", vocab_size) as train:
        with IndexedWriter(folder / "valid", vocab_size) as valid:
            writers = (train, valid)
            for tokens in results:
                writers[tokens.held_out].add_document(tokens.ids)
                sizes[tokens.held_out] += tokens.size
                gzip_size += tokens.gzip_size
                advance(tokens.size)
    infos = [
        SplitInfo(writer.num_documents, writer.num_tokens, size, writer.bin_sha256)
        for writer, size in zip(writers, sizes, strict=True)
    ]
    return infos[0], infos[1], gzip_size


def _tokenizer_for(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    seen: Scan,
    held_out: np.ndarray,
    console_print: Print,
    force: bool,
) -> Tokenizer:
    """The one of ``tokenizer.path``, or the one in the folder if it was trained on this corpus
    with these settings, else a new one."""
    model, card = folder / "tokenizer.model", folder / "tokenizer.json"
    origin = {**dataset_settings(config), "corpus_fingerprint": seen.fingerprint}
    if not force and model.exists():
        expected = {**origin, "fingerprint": hashlib.sha256(model.read_bytes()).hexdigest()}
        if _read_card(card) == expected:
            return Tokenizer(model)
    if config.tokenizer.path is not None:
        content = Path(config.tokenizer.path).read_bytes()
    else:
        content = _train(config, corpus, seen, held_out, console_print)
    card_content = {**origin, "fingerprint": hashlib.sha256(content).hexdigest()}
    for path, data in ((card, json.dumps(card_content, indent=2).encode()), (model, content)):
        remove_leftovers(path)
        with atomic_write(path) as stream:
            stream.write(data)
    return Tokenizer(model)


def _train(
    config: RunConfig, corpus: Corpus, seen: Scan, held_out: np.ndarray, console_print: Print
) -> bytes:
    """A tokenizer of the training documents: the bytes of its file."""
    chosen = _training_documents(seen, held_out, config.tokenizer.train_bytes)
    size = min(int(seen.sizes[chosen].sum()), config.tokenizer.train_bytes)
    console_print(
        f"training a {config.tokenizer.kind} tokenizer of {config.tokenizer.vocab_size}"
        f" tokens on {size / 1e6:.1f} MB"
    )
    return train_tokenizer(
        _texts(reread(corpus, seen), chosen, config.tokenizer.train_bytes), config.tokenizer
    )


def _training_documents(seen: Scan, held_out: np.ndarray, budget: int) -> np.ndarray:
    """bool [documents]: training documents by hash order, until ``budget`` bytes are reached.

    Raises:
        Refused: the budget is not positive.
    """
    if budget <= 0:
        raise Refused(f"tokenizer.train_bytes={budget} is not positive", "use e.g. 4000000")
    candidates = np.flatnonzero(~held_out)
    candidates = candidates[np.argsort(seen.keys[candidates], kind="stable")]
    sizes = seen.sizes[candidates]
    chosen = np.zeros(len(held_out), dtype=bool)
    chosen[candidates[np.cumsum(sizes) - sizes < budget]] = True
    return chosen


def _texts(documents: Iterator[Document], chosen: np.ndarray, budget: int) -> Iterator[str]:
    for document, wanted in zip(documents, chosen, strict=True):
        if wanted and budget > 0:
            data = document.text.encode("utf-8")[:budget]
            budget -= len(data)
            yield data.decode("utf-8", "ignore")  # the cut may fall inside a character


def _read_card(card: Path) -> Dict[str, Any]:
    try:
        content = json.loads(card.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_settings(found: DatasetInfo, config: RunConfig) -> None:
    wanted = dataset_settings(config)
    differences = [
        f"{key} is {found.settings.get(key)} there, {value} here"
        for key, value in wanted.items()
        if found.settings.get(key) != value
    ]
    if differences:
        raise Refused(
            f"{found.path} holds another dataset: " + "; ".join(differences),
            "give another data.path=FOLDER, or replace it with `loopmoe data --force`",
        )


def _refuse_foreign_files(folder: Path) -> None:
    """Files with our names that no preparation of ours left unfinished are somebody's data."""
    names: List[str] = ["tokenizer.model"]
    names += [f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx")]
    present = [name for name in names if (folder / name).exists()]
    if present and not (folder / "tokenizer.json").exists():
        raise Refused(
            f"{folder} holds {', '.join(present)} but no dataset.json: not made by `loopmoe data`",
            "give another data.path=FOLDER, or overwrite them with `loopmoe data --force`",
        )


@contextmanager
def _only_one(folder: Path, console_print: Print) -> Iterator[None]:
    """Hold the folder's lock: processes on a machine wait for the one that builds."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(folder / ".lock", "wb")
    except OSError as error:
        if (folder / "dataset.json").exists():
            yield  # a finished dataset on a read-only disk needs no lock
            return
        raise Refused(
            f"cannot write in {folder}: {error.strerror}", "give another data.path=FOLDER"
        ) from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console_print(f"another process prepares {folder}, waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks
        with _writing(folder):
            yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Tell a full disk in one line; what was being written has been removed by then."""
    try:
        yield
    except BrokenPipeError:
        raise  # of our own output
    except OSError as error:
        raise RunFailed(
            f"cannot write {error.filename or folder}: {error.strerror or error}",
            "free space there or give another data.path=FOLDER, then run again",
        ) from error
