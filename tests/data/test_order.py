from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import List, Tuple

import numpy as np
import pytest

from loopmoe_train.data.order import Piece, SampleOrder
from loopmoe_train.errors import Refused

LENGTHS = np.array([7, 0, 30, 1, 12, 55, 0, 3, 21, 8])  # 137 tokens
S = 5
EPOCH = (137 - 1) // S


def _order(**changes: object) -> SampleOrder:
    arguments: dict = dict(document_lengths=LENGTHS, sequence_length=S, seed=3, fingerprint="f")
    return SampleOrder(**{**arguments, **changes})


def _all(order: SampleOrder, first: int, count: int) -> List[List[Piece]]:
    return [order.sample(index) for index in range(first, first + count)]


def _tokens(pieces: List[Piece]) -> List[Tuple[int, int]]:
    return [(d, offset + i) for d, offset, length in pieces for i in range(length)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_serves_every_token_once_as_label(shuffle: bool, epoch: int) -> None:
    order = _order(shuffle=shuffle)
    assert order.samples_per_epoch == EPOCH
    inputs: Counter = Counter()
    labels: Counter = Counter()
    for pieces in _all(order, epoch * EPOCH, EPOCH):
        tokens = _tokens(pieces)
        assert len(tokens) == S + 1
        inputs.update(tokens[:-1])
        labels.update(tokens[1:])
    for served in (inputs, labels):
        assert set(served.values()) == {1}
        assert len(served) == EPOCH * S
        assert all(0 <= at < LENGTHS[document] for document, at in served)
    assert len(set(inputs) - set(labels)) == 1  # only the very first token is never a label


def test_windows_hold_whole_documents_in_a_row() -> None:
    for pieces in _all(_order(), 0, 3 * EPOCH):
        for before, after in zip(pieces, pieces[1:], strict=False):
            assert before.offset + before.length == LENGTHS[before.document]
            assert after.offset == 0
        assert all(piece.length > 0 for piece in pieces)


def test_it_is_a_pure_function_of_the_sample_number() -> None:
    whole = _all(_order(), 0, 4 * EPOCH)
    order = _order()
    for index in np.random.default_rng(0).permutation(4 * EPOCH):
        assert order.sample(int(index)) == whole[index]
    assert _order().sample(3 * EPOCH + 2) == whole[3 * EPOCH + 2]


def test_seed_fingerprint_and_epoch_change_it() -> None:
    orders = [
        _all(_order(), 0, EPOCH),
        _all(_order(), EPOCH, EPOCH),
        _all(_order(seed=4), 0, EPOCH),
        _all(_order(fingerprint="g"), 0, EPOCH),
        _all(_order(shuffle=False), 0, EPOCH),
    ]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert one != other
    # documents and windows are shuffled independently: places of documents differ by epoch
    assert sorted(map(tuple, orders[0])) != sorted(map(tuple, orders[1]))


def test_windows_are_shuffled_not_only_documents() -> None:
    order = _order(document_lengths=np.array([501]))
    begins = [order.sample(index)[0].offset for index in range(100)]
    assert sorted(begins) == list(range(0, 500, S)) and begins != sorted(begins)


def test_order_is_pinned() -> None:
    """A change here breaks resuming of every run that exists: raise the dataset format instead."""
    text = repr([[tuple(map(int, p)) for p in pieces] for pieces in _all(_order(), 0, 2 * EPOCH)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "8a2eb47581e98c50"


def test_unshuffled_order_is_sequential_in_every_epoch() -> None:
    order = _order(shuffle=False)
    assert order.sample(0) == [(0, 0, 6)]
    assert order.sample(1) == [(0, 5, 2), (2, 0, 4)]
    assert order.sample(EPOCH + 1) == order.sample(1)


def test_positions_beyond_32_bits() -> None:
    lengths = np.array([2**33 + 11, 5, 2**32], dtype=np.int64)
    order = SampleOrder(lengths, 2**20, 1, "f", shuffle=False)
    assert order.num_tokens == 2**33 + 2**32 + 16
    last = order.sample(order.samples_per_epoch - 1)
    assert last == [(2, 2**32 - 2**20 - 16 + 0, 2**20 + 1)]
    assert order.sample(2**13) == [(0, 2**33, 11), (1, 0, 5), (2, 0, 2**20 - 15)]
    shuffled = SampleOrder(lengths, 2**20, 1, "f")
    for index in range(0, shuffled.samples_per_epoch, 997):
        pieces = shuffled.sample(index)
        assert sum(piece.length for piece in pieces) == 2**20 + 1
        assert all(p.offset + p.length <= lengths[p.document] for p in pieces)


def test_a_split_that_is_too_short_is_refused() -> None:
    with pytest.raises(Refused, match="5 tokens.*sequence_length=5 needs 6 -> "):
        _order(document_lengths=np.array([2, 3]))
    assert _order(document_lengths=np.array([2, 4])).samples_per_epoch == 1
    assert _order(document_lengths=np.array([50])).samples_per_epoch == 9  # the last has no label
    assert _order(document_lengths=np.array([51])).samples_per_epoch == 10


def test_negative_sample_is_an_error() -> None:
    with pytest.raises(IndexError):
        _order().sample(-1)


def test_cache_is_used_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _all(_order(), 0, 2 * EPOCH)
    assert _all(_order(cache_dir=tmp_path), 0, 2 * EPOCH) == plain
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(SampleOrder, "_build", None)
    assert _all(_order(cache_dir=tmp_path), 0, 2 * EPOCH) == plain


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=4),
        dict(fingerprint="g"),
        dict(sequence_length=6),
        dict(document_lengths=LENGTHS[::-1]),
    ],
)
def test_cache_of_another_order_is_not_used(tmp_path: Path, change: dict) -> None:
    _all(_order(cache_dir=tmp_path), 0, EPOCH)
    assert _all(_order(cache_dir=tmp_path, **change), 0, 9) == _all(_order(**change), 0, 9)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    plain = _all(_order(), 0, EPOCH)
    _order(cache_dir=tmp_path).sample(0)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[60] ^= 1
    broken = {"truncated": good[:-8], "flipped": bytes(flipped), "empty": b"", "foreign": b"x" * 99}
    file.write_bytes(broken[damage])
    assert _all(_order(cache_dir=tmp_path), 0, EPOCH) == plain
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == good


def test_killed_writer_leaves_no_half_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(handle: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            _order(cache_dir=tmp_path).sample(0)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    order = _order(cache_dir=tmp_path / "file" / "below")
    assert order.sample(0) == _order().sample(0)
