from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
import pytest
import torch

from loopmoe_train.config.schema import DataConfig
from loopmoe_train.data.batches import Batch, BatchLoader, rank_slice
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.data.indexed import IndexedReader, IndexedWriter
from loopmoe_train.data.order import SampleOrder

EOD = 1
DOCUMENTS = [[10, 11, EOD], [20, 21, 22, 23, EOD], [30, EOD], [40, 41, 42, 43, 44, 45, EOD]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> IndexedReader:
    prefix = tmp_path_factory.mktemp("batches") / "train"
    with IndexedWriter(prefix, 100) as writer:
        for document in DOCUMENTS:
            writer.add_document(document)
    return IndexedReader(prefix)


def _batch(reader: IndexedReader, first: int, count: int, s: int = 8, **config: bool) -> Batch:
    order = SampleOrder(reader.document_lengths, s, 0, "f", shuffle=False)
    return BatchLoader(reader, order, DataConfig(**config)).batch(first, count)


def test_batch_holds_the_text_in_order(reader: IndexedReader) -> None:
    stream = [token for document in DOCUMENTS for token in document]
    batch = _batch(reader, 0, 2)
    assert batch.tokens.tolist() == [stream[0:8], stream[8:16]]
    assert batch.labels.tolist() == [stream[1:9], stream[9:17]]
    assert batch.loss_mask.tolist() == [[1.0] * 8] * 2
    assert batch.position_ids.tolist() == [list(range(8))] * 2
    assert batch.attention_mask is None


def test_types_and_layout(reader: IndexedReader) -> None:
    batch = _batch(reader, 0, 2, reset_attention_mask=True)
    assert batch.attention_mask is not None
    assert batch.tokens.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64
    assert batch.loss_mask.dtype == torch.float32 and batch.attention_mask.dtype == torch.bool
    assert batch.attention_mask.shape == (2, 1, 8, 8)
    assert all(part.is_contiguous() for part in (batch.tokens, batch.labels))


def test_no_loss_for_the_first_token_of_the_next_document(reader: IndexedReader) -> None:
    batch = _batch(reader, 0, 2, eod_mask_loss=True)
    assert torch.equal(batch.loss_mask == 0, batch.tokens == EOD)
    # windows end right at a document's end: its eod is the last label, or the last input
    ends = _batch(reader, 0, 1, s=7, eod_mask_loss=True)
    assert ends.labels[0, -1] == EOD and ends.loss_mask[0].tolist() == [1, 1, 0, 1, 1, 1, 1]
    edge = _batch(reader, 0, 1, s=8, eod_mask_loss=True)
    assert edge.tokens[0, -1] == EOD and edge.loss_mask[0, -1] == 0


def test_attention_and_positions_stay_inside_a_document(reader: IndexedReader) -> None:
    batch = _batch(reader, 0, 2, reset_attention_mask=True)
    assert batch.attention_mask is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5]]
    for row, owner in enumerate([[0, 0, 0, 1, 1, 1, 1, 1], [2, 2, 3, 3, 3, 3, 3, 3]]):
        hidden = [[owner[q] != owner[k] or k > q for k in range(8)] for q in range(8)]
        assert batch.attention_mask[row, 0].tolist() == hidden


def test_switches_are_independent(reader: IndexedReader) -> None:
    assert _batch(reader, 0, 1, reset_attention_mask=True).loss_mask.min() == 1
    only_loss = _batch(reader, 0, 1, eod_mask_loss=True)
    assert only_loss.attention_mask is None
    assert only_loss.position_ids.tolist() == [list(range(8))]


def test_an_order_of_other_documents_is_an_error(reader: IndexedReader) -> None:
    with pytest.raises(ValueError, match="tokens"):
        BatchLoader(reader, SampleOrder(np.array([50]), 8, 0, "f"), DataConfig())


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_ranks_together_read_each_sample_of_a_global_batch_once(micro_batch_size: int) -> None:
    consumed, global_batch = 48, 16
    for dp_size in (1, 2, 4):
        micro_steps = global_batch // (micro_batch_size * dp_size)
        seen: List[int] = []
        for step in range(micro_steps):
            for rank in range(dp_size):
                part = rank_slice(consumed, step, micro_batch_size, rank, dp_size)
                assert len(part) == micro_batch_size
                seen.extend(part)
        assert seen == list(range(consumed, consumed + global_batch))


@pytest.mark.parametrize("rank", [-1, 2])
def test_rank_outside_its_group_is_an_error(rank: int) -> None:
    with pytest.raises(ValueError, match="dp_rank"):
        rank_slice(0, 0, 1, rank, 2)


def test_batches_do_not_depend_on_the_data_parallel_size(dataset: DatasetInfo) -> None:
    reader = dataset.reader("train")

    def epoch_end(dp_size: int) -> torch.Tensor:
        order = SampleOrder(reader.document_lengths, 16, 5, dataset.fingerprint)
        loader = BatchLoader(reader, order, DataConfig())
        consumed = order.samples_per_epoch - 3  # a global batch that straddles two epochs
        parts = [
            loader.batch(part.start, len(part)).tokens
            for step in range(8 // (2 * dp_size))
            for part in (rank_slice(consumed, step, 2, rank, dp_size) for rank in range(dp_size))
        ]
        return torch.cat(parts)

    alone = epoch_end(1)
    assert alone.shape == (8, 16)
    assert torch.equal(alone, epoch_end(2)) and torch.equal(alone, epoch_end(4))


def test_decoded_batches_are_text_of_the_corpus(dataset: DatasetInfo, corpus_folder: Path) -> None:
    reader, tokenizer = dataset.reader("valid"), dataset.tokenizer()
    order = SampleOrder(reader.document_lengths, 64, 0, dataset.fingerprint, shuffle=False)
    row = BatchLoader(reader, order, DataConfig()).batch(0, 1).tokens[0].tolist()
    text = tokenizer.decode(row[: row.index(tokenizer.eod_id)] if tokenizer.eod_id in row else row)
    corpus = [path.read_bytes().decode() for path in corpus_folder.rglob("*.py")]
    assert any(whole.startswith(text.rstrip("\ufffd")) for whole in corpus)
