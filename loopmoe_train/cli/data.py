"""loopmoe data [setting=value ...] [--force]

Tokenise a corpus into Megatron .bin/.idx files; a dataset that is there already is checked byte
by byte instead. --force builds it again, whatever is in the folder.

  data.source=DIR          python-stdlib, a folder, .txt, .jsonl ("text" field), a glob, a list
  data.path=DIR            where the dataset goes
  data.valid_percent=5     share of documents held out
  data.workers=2           processes that tokenise
  tokenizer.vocab_size=N   tokenizer.kind=bpe|unigram, tokenizer.train_bytes=N
"""

from __future__ import annotations

from typing import List

from loopmoe_train.config.compose import compose
from loopmoe_train.data.dataset import DatasetInfo


def run(argv: List[str]) -> int:
    """Prepare the dataset of the configuration and print what it holds; returns the exit code."""
    from loopmoe_train.data.prepare import ensure_prepared

    config = compose([word for word in argv if word != "--force"])
    info = ensure_prepared(config, print, force="--force" in argv, verify=True)
    _print_table(info)
    return 0


def _print_table(info: DatasetInfo) -> None:
    print(f"dataset      {info.path}")
    print(f"fingerprint  {info.fingerprint}")
    print(f"tokenizer    {info.settings['tokenizer.kind']}, {info.vocab_size} tokens")
    print(f"{'split':<8}{'documents':>12}{'bytes':>16}{'tokens':>16}{'bytes/token':>14}")
    for name, split in (("train", info.train), ("valid", info.valid)):
        print(
            f"{name:<8}{split.documents:>12,}{split.bytes:>16,}{split.tokens:>16,}"
            f"{split.bytes_per_token:>14.3f}"
        )
    print(f"gzip -9 needs {info.gzip9_bits_per_byte:.3f} bits per byte of the validation text")
