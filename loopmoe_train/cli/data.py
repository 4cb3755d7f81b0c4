"""Prepare datasets and check them.

usage: loopmoe data [setting=value ...] [--force]
       loopmoe data verify [PATH ...] [setting=value ...]

The first tokenises a corpus into Megatron .bin/.idx files; a dataset that is there already is
checked byte by byte instead. --force builds it again, whatever is in the folder.

  data.source=DIR          python-stdlib, python-packages, a folder, .txt,
                           .jsonl[.gz|.zst] ("text" field),
                           .parquet ("text" column), a glob of these, a list
  data.path=DIR            where the dataset goes; relative to the folder of the command
  data.valid_percent=5     share of documents held out
  data.workers=2           processes that tokenise
  tokenizer.vocab_size=N   tokenizer.kind=bpe|unigram, tokenizer.train_bytes=N
  tokenizer.path=FILE      the tokenizer.model of another dataset, to train on both (data.mixture)

verify hashes every byte of the datasets in PATH ... (of the configuration, if none is given)
against dataset.json, checks the indexes against the text and decodes a sample of documents.
Exit code 2 and the name of the file if one is not as it was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import List

from loopmoe_train.config.compose import compose
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.errors import Refused

_COLUMNS = f"{'split':<8}{'documents':>12}{'bytes':>16}{'tokens':>16}{'bytes/token':>14}"


def run(argv: List[str]) -> int:
    """Prepare a dataset, or verify some, and print what they hold; returns the exit code."""
    if argv[:1] == ["verify"]:
        return _verify(argv[1:])
    if argv and "=" not in argv[0] and not argv[0].startswith("-"):
        raise Refused(
            f"data {argv[0]}: there is no such verb",
            "write `loopmoe data [setting=value ...]` or `loopmoe data verify [PATH ...]`",
        )
    return _prepare(argv)


def _prepare(argv: List[str]) -> int:
    from loopmoe_train.data.prepare import ensure_prepared

    config = compose([word for word in argv if word != "--force"])
    if config.data.mixture:
        raise Refused(
            "data.mixture: names datasets that are prepared already",
            "prepare each with data.source= and data.path=, check them with `loopmoe data verify`",
        )
    info = ensure_prepared(config, print, force="--force" in argv, verify=True)
    print(f"dataset      {info.path}")
    print(f"fingerprint  {info.fingerprint}")
    print(f"tokenizer    {info.settings['tokenizer.kind']}, {info.vocab_size} tokens")
    print(_COLUMNS)
    _print_splits(info)
    print(f"gzip -9 needs {info.gzip9_bits_per_byte:.3f} bits per byte of the validation text")
    return 0


def _verify(argv: List[str]) -> int:
    from loopmoe_train.data.progress import progress
    from loopmoe_train.data.verify import verify_dataset

    settings = [w for w in argv if (w.startswith("-") or "=" in w) and not Path(w).is_dir()]
    wrong = [word for word in settings if word.startswith("-")]
    if wrong:
        raise Refused(f"{wrong[0]}: not a dataset folder", "loopmoe data verify [PATH ...]")
    config = compose(settings)
    paths = [word for word in argv if word not in settings]
    if not paths:
        trained = [member.path for member in config.data.mixture] or [config.data.path]
        paths = [*trained, *config.data.validation]
    failures: List[Refused] = []
    for path in paths:
        try:
            with progress(f"verify {path}", None, print) as advance:
                verified = verify_dataset(Path(path), advance)
        except Refused as error:
            failures.append(error)
            continue
        print(_COLUMNS)
        _print_splits(verified.info)
        print(f"{path}: every byte is as it was written, {verified.decoded} documents decoded")
    if failures:
        more = f" (and {len(failures) - 1} more of {len(paths)})" if len(failures) > 1 else ""
        raise Refused(failures[0].what + more, failures[0].fix)
    return 0


def _print_splits(info: DatasetInfo) -> None:
    for name, split in (("train", info.train), ("valid", info.valid)):
        print(
            f"{name:<8}{split.documents:>12,}{split.bytes:>16,}{split.tokens:>16,}"
            f"{split.bytes_per_token:>14.3f}"
        )
