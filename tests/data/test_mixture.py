"""Mixtures: one order of samples for every layout, what they are made of, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List, Tuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import DataConfig, MixtureMember, RunConfig
from loopmoe_train.data.batches import BatchLoader, MixtureLoader, rank_slice
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.data.mixture import Mixture, ensure_mixture, open_mixture
from loopmoe_train.data.order import SampleOrder
from loopmoe_train.data.prepare import ensure_prepared
from loopmoe_train.errors import Refused
from tests.data.conftest import make_config

S = 16


def _config(*members: Tuple[str, float], validation: Tuple[str, ...] = ()) -> RunConfig:
    config = RunConfig(sequence_length=S)
    config.data.mixture = [MixtureMember(path, weight) for path, weight in members]
    config.data.validation = list(validation)
    return config


def _loader(info: DatasetInfo, seed: int = 5) -> BatchLoader:
    reader = info.reader("train")
    order = SampleOrder(reader.document_lengths, S, seed, info.fingerprint)
    return BatchLoader(reader, order, DataConfig())


def _mixed(mixture: Mixture, seed: int = 5) -> MixtureLoader:
    loaders = [_loader(member.info, seed) for member in mixture.members]
    return MixtureLoader(loaders, mixture.interleave())


@pytest.fixture(scope="module")
def mixture(dataset: DatasetInfo, second_dataset: DatasetInfo) -> Mixture:
    return open_mixture(_config((dataset.path, 5), (second_dataset.path, 2)))


@pytest.fixture(scope="module")
def loader(mixture: Mixture) -> MixtureLoader:
    return _mixed(mixture)


def _global_batch(
    loader: MixtureLoader, consumed: int, size: int, ranks: int, micro_batch_size: int
) -> torch.Tensor:
    """Tokens [size, s] of a global batch, in the order of its samples, as the ranks read it."""
    rows = {}
    for step in range(size // (micro_batch_size * ranks)):
        for rank in range(ranks):
            part = rank_slice(consumed, step, micro_batch_size, rank, ranks)
            rows.update(zip(part, loader.batch(part.start, len(part)).tokens))
    return torch.stack([rows[sample] for sample in sorted(rows)])


@settings(deadline=None, max_examples=25)
@given(consumed=st.integers(0, 10**6), layout=st.sampled_from([(1, 4), (2, 1), (4, 2), (8, 1)]))
def test_every_layout_sees_the_same_samples_from_anywhere(
    mixture: Mixture, loader: MixtureLoader, consumed: int, layout: Tuple[int, int]
) -> None:
    alone = _global_batch(loader, consumed, 8, 1, 8)
    # fresh objects: nothing that was read before may matter
    assert torch.equal(_global_batch(_mixed(mixture), consumed, 8, *layout), alone)


def test_every_member_walks_its_own_shuffled_epochs(
    mixture: Mixture, loader: MixtureLoader
) -> None:
    samples = 7 * 40
    rows: List[List[torch.Tensor]] = [[], []]
    for sample in range(samples):
        member, _ = loader.interleave.locate(sample)
        rows[member].append(loader.batch(sample, 1).tokens[0])
    for member, own in zip(mixture.members, rows):
        assert len(own) == samples * member.parts // 7
        alone = _loader(member.info).batch(0, len(own)).tokens
        assert torch.equal(torch.stack(own), alone)


def test_a_mixture_of_one_is_that_dataset(dataset: DatasetInfo) -> None:
    plain, single = RunConfig(), _config((dataset.path, 3))
    plain.data.path = dataset.path
    for mixture in (open_mixture(plain), open_mixture(single)):
        assert mixture.fingerprint == dataset.fingerprint
        assert mixture.bytes_per_token == pytest.approx(dataset.train.bytes_per_token)
        tokens = _mixed(mixture).batch(3, 9).tokens
        assert torch.equal(tokens, _loader(dataset).batch(3, 9).tokens)


def test_fingerprint_follows_members_and_shares_alone(
    mixture: Mixture, dataset: DatasetInfo, second_dataset: DatasetInfo, tmp_path: Path
) -> None:
    a, b = dataset.path, second_dataset.path
    moved = str(shutil.copytree(b, tmp_path / "moved"))
    for members in ([(b, 2), (a, 5)], [(a, 50), (b, 20)], [(a, 5), (moved, 2)]):
        same = open_mixture(_config(*members))
        assert same.fingerprint == mixture.fingerprint and same.shares == mixture.shares
        assert torch.equal(_mixed(same).batch(100, 5).tokens, _mixed(mixture).batch(100, 5).tokens)
    others = [open_mixture(_config((a, 2), (b, 5))), open_mixture(_config((a, 5)))]
    assert len({mixture.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert sorted(mixture.shares.values()) == ["2/7", "5/7"]


def test_bytes_per_token_are_those_of_the_samples(
    mixture: Mixture, dataset: DatasetInfo, second_dataset: DatasetInfo
) -> None:
    mean = (5 * dataset.train.bytes_per_token + 2 * second_dataset.train.bytes_per_token) / 7
    assert mixture.bytes_per_token == pytest.approx(mean)


def test_passes_are_told_and_many_are_warned_about(
    mixture: Mixture, second_dataset: DatasetInfo
) -> None:
    epoch = (second_dataset.train.tokens - 1) // S
    samples = epoch * 7 // 2 * 5  # five passes over the member with 2 of 7 samples
    lines = mixture.describe(samples, S)
    (line,) = [line for line in lines if line.startswith("data: lines:")]
    assert "28.57 % of the samples, 5 passes" in line
    assert f"over {second_dataset.train.tokens:,} tokens" in line
    warnings = [line for line in lines if line.startswith("warning:")]
    assert any("lines is read 5.0 times" in line for line in warnings)
    fewer = mixture.describe(samples * 4 // 5, S)
    assert not [line for line in fewer if line.startswith("warning: lines")]


def test_extra_validation_sets_are_no_members(
    dataset: DatasetInfo, second_dataset: DatasetInfo
) -> None:
    found = open_mixture(_config((dataset.path, 1), validation=(second_dataset.path,)))
    assert [member.info for member in found.members] == [dataset]
    assert found.extra == {"lines": second_dataset}
    assert found.fingerprint == dataset.fingerprint


def _refusal(config: RunConfig) -> str:
    with pytest.raises(Refused) as caught:
        ensure_mixture(config, lambda line: None)
    assert "\n" not in str(caught.value) and " -> " in str(caught.value)
    return str(caught.value)


def test_members_that_do_not_fit_are_refused_by_name(
    dataset: DatasetInfo, second_dataset: DatasetInfo, second_corpus: Path, tmp_path: Path
) -> None:
    a, b = dataset.path, second_dataset.path
    missing = _refusal(_config((a, 1), (str(tmp_path / "none"), 1)))
    assert f"{tmp_path}/none: no prepared dataset" in missing
    assert f"data.path={tmp_path}/none tokenizer.path={dataset.tokenizer_path}" in missing
    copy = str(shutil.copytree(a, tmp_path / "copy"))
    assert f"{a} and {copy} hold the same dataset" in _refusal(_config((a, 1), (copy, 1)))
    assert "less than a sample in" in _refusal(_config((a, 1), (b, 1e-9)))
    own = ensure_prepared(make_config(tmp_path / "own", second_corpus), lambda line: None)
    for config in (_config((a, 1), (own.path, 1)), _config((a, 1), validation=(own.path,))):
        message = _refusal(config)
        assert f"{a} and {own.path} have different tokenizers" in message
        assert f"tokenizer.path={dataset.tokenizer_path}" in message
    bin_file = Path(copy) / "valid.bin"
    bin_file.write_bytes(bin_file.read_bytes()[:-2])
    assert str(bin_file) in _refusal(_config((copy, 1), (b, 1)))


MISTAKES = {
    "weight=0.0: must be above 0": [("a", 0.0)],
    "weight=-1.0: must be above 0": [("a", 1.0), ("b", -1.0)],
    "weight=nan: must be above 0": [("a", float("nan"))],
    "weight=inf: must be above 0": [("a", float("inf"))],
    "data.mixture[1]: names no folder": [("a", 1.0), ("", 1.0)],
    "/a twice": [("a", 1.0), ("b", 1.0), ("./a/", 2.0)],
    "two datasets are called 'a'": [("x/a", 1.0), ("y/a", 1.0)],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_wrong_members_are_told_before_a_file_is_read(words: str) -> None:
    found = problems(_config(*MISTAKES[words]))
    assert len(found) == 1 and words in found[0], found


def test_names_tell_folders_apart() -> None:
    config = _config(("x/a", 1.0), ("y/a", 1.0))
    config.data.mixture[1].name = "other"
    assert problems(config) == []
    config.data.mixture[1].name = "x/y"
    assert "must not hold a /" in problems(config)[0]
    assert "twice" in problems(_config(("a", 1.0), validation=("a",)))[0]
