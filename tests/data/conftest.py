"""A small corpus, its tokenizer and its dataset, made once for all tests of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List

import pytest

from loopmoe_train.config.schema import RunConfig, TokenizerConfig
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.data.prepare import ensure_prepared
from loopmoe_train.data.tokenizer import Tokenizer, train_tokenizer

VOCAB = 420


def make_texts() -> List[str]:
    """40 texts of code-like lines, all different, with other alphabets and line ends among them."""
    texts = []
    for number in range(40):
        lines = [f"def f{number}_{i}(value):\n    return value + {i * number}\n" for i in range(12)]
        texts.append("\n".join(lines) + f"# größe {number}\r\n\tÅ 漢字 ▁ 🙂\n" * (number % 3))
    return texts


def make_config(folder: Path, corpus: Path) -> RunConfig:
    """A run on ``corpus`` whose dataset goes to ``folder``."""
    config = RunConfig()
    config.data.source = [str(corpus)]
    config.data.path = str(folder)
    config.data.valid_percent = 20.0
    config.data.workers = 1
    config.tokenizer.vocab_size = VOCAB
    return config


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files, some in subfolders."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(make_texts()):
        path = folder / f"part{number % 3}" / f"{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of 420 tokens."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(make_texts(), TokenizerConfig(vocab_size=VOCAB)))
    return Tokenizer(path)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> DatasetInfo:
    """The prepared corpus. Tests must not change its files."""
    folder = tmp_path_factory.mktemp("dataset")
    return ensure_prepared(make_config(folder, corpus_folder), lambda line: None)


@pytest.fixture(scope="session")
def second_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus, a third of the size."""
    path = tmp_path_factory.mktemp("second") / "lines.jsonl"
    texts = [f"line {n}: " + "a b c d e f g " * (20 + n % 7) for n in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def second_dataset(
    tmp_path_factory: pytest.TempPathFactory, second_corpus: Path, dataset: DatasetInfo
) -> DatasetInfo:
    """The second corpus with the tokenizer of the first. Tests must not change its files."""
    config = make_config(tmp_path_factory.mktemp("datasets") / "lines", second_corpus)
    config.tokenizer.path = str(dataset.tokenizer_path)
    return ensure_prepared(config, lambda line: None)
