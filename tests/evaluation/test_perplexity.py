"""Validation of several sets: against the definition, and the same figures on two ranks."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest

from loopmoe_train.config.schema import DataConfig, MixtureMember, RunConfig
from loopmoe_train.data.batches import BatchLoader
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.data.indexed import IndexedReader, IndexedWriter
from loopmoe_train.data.order import SampleOrder
from loopmoe_train.evaluation.perplexity import HeldOut, Validations, gzip_bits_per_byte, validate
from loopmoe_train.train.text import open_text
from tests.data.conftest import corpus_folder, dataset, second_corpus, second_dataset
from tests.dist import ranks

__all__ = ["corpus_folder", "dataset", "second_corpus", "second_dataset"]

VOCAB = 50
S = 8
# tokens of each set: one ends inside a pass of 4 windows, one is smaller than a pass
SETS = {"web": 101, "code": 60, "extra": 20}


def _model() -> Any:
    """Loses as many nats on a token as its id says."""
    from tests.evaluation.known_model import KnownModel

    return KnownModel(lambda tokens, labels: labels.float() / 7)


def _run(eval_batches: int) -> RunConfig:
    run = RunConfig(sequence_length=S, micro_batch_size=2, global_batch_size=4)
    run.eval_batches = eval_batches
    run.data = DataConfig(eod_mask_loss=True)
    return run


def _held_out(folder: Path, run: RunConfig) -> List[HeldOut]:
    found = []
    for name in SETS:
        reader = IndexedReader(folder / name)
        order = SampleOrder(reader.document_lengths, S, 0, name, shuffle=False)
        found.append(HeldOut(name, BatchLoader(reader, order, run.data), name != "extra", 2.0, 1))
    return found


def measure(folder: Path, batches: List[int]) -> List[Validations]:
    """Runs on a rank of its own: joins the others, then validates on each limit."""
    from loopmoe_train.device.accelerator import select
    from loopmoe_train.parallel import groups

    joined = RunConfig()
    joined.cluster.devices = 2
    select("cpu")
    groups.join(joined)
    return [_validated(folder, limit) for limit in batches]


def _validated(folder: Path, limit: int) -> Validations:
    run = _run(limit)
    return validate(run, [_model()], _held_out(folder, run), np.arange(VOCAB))


def _definition(folder: Path, limit: int) -> Dict[str, Tuple[float, float, int]]:
    """Nats, bytes and tokens of each set, token by token."""
    found = {}
    for name, count in SETS.items():
        stream = np.fromfile(folder / f"{name}.bin", np.uint16).astype(int)
        windows = (count - 1) // S
        if limit:
            windows = min(windows, 4 * limit)
        pairs = list(zip(stream, stream[1:]))[: windows * S]
        # inside a window the first token of the next document does not count
        labels = [label for token, label in pairs if token != 1]
        found[name] = (sum(labels) / 7, float(sum(labels)), len(labels))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(3)
    for name, count in SETS.items():
        tokens = random.integers(2, VOCAB, count)
        tokens[::13] = 1
        with IndexedWriter(folder / name, VOCAB) as writer:
            for document in np.split(tokens, np.flatnonzero(tokens == 1) + 1):
                writer.add_document(document)
    return folder


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_figures_are_those_of_the_definition(one_rank: None, folder: Path, limit: int) -> None:
    found, wanted = _validated(folder, limit), _definition(folder, limit)
    assert list(found.sets) == list(SETS)
    wanted["whole"] = tuple(a + b for a, b in zip(wanted["web"], wanted["code"]))  # type: ignore
    for name, (nats, size, tokens) in wanted.items():
        figures = found.whole if name == "whole" else found.sets[name]
        assert figures.tokens == tokens
        assert figures.loss == pytest.approx(nats / tokens, rel=1e-6)
        assert figures.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_one_set_is_the_whole(one_rank: None, folder: Path) -> None:
    run = _run(0)
    found = validate(run, [_model()], _held_out(folder, run)[:1], np.arange(VOCAB))
    assert found.sets == {} and found.whole.tokens == _definition(folder, 0)["web"][2]


def _gzip(texts: List[bytes]) -> float:
    return 8 * sum(len(gzip.compress(t, 9, mtime=0)) for t in texts) / sum(map(len, texts))


@pytest.mark.parametrize("limit", [0, 1, 1000])
def test_the_yardstick_is_of_the_text_that_is_predicted(
    dataset: DatasetInfo,  # noqa: F811
    second_dataset: DatasetInfo,  # noqa: F811
    limit: int,
) -> None:
    run = _run(limit)
    run.data.mixture = [MixtureMember(i.path, 1.0) for i in (dataset, second_dataset)]
    text = open_text(run)
    wanted = []
    for info in (dataset, second_dataset):
        reader, left = info.reader("valid"), 4 * S + 1 if limit == 1 else info.valid.tokens
        for number in range(reader.num_documents):
            tokens = reader.document(number)[:left]
            left -= len(tokens)
            wanted += [text.tokenizer.decode(tokens).encode()] if len(tokens) else []
    found = gzip_bits_per_byte(run, text.valid, text.tokenizer)
    assert found == pytest.approx(_gzip(wanted), rel=1e-12)


def test_two_ranks_find_the_same(one_rank: None, folder: Path) -> None:
    results = ranks.run("tests.evaluation.test_perplexity:measure", 2, folder, [0, 1])
    for found in results:
        for two, limit in zip(found, (0, 1)):
            assert two == _validated(folder, limit)
