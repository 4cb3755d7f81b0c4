"""The prepared datasets that a run trains on, and those it is only measured on.

A run on one dataset is a mixture of one. The members are kept in the order of their fingerprints,
so neither the order in which they were named nor the place of their folders decides anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Dict, List, Tuple, Union

from loopmoe_train.config.rules import dataset_names
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.dataset import DatasetInfo, check_dataset, load_dataset
from loopmoe_train.data.interleave import PERIOD_LIMIT, Interleave, parts_of
from loopmoe_train.data.prepare import Print, ensure_prepared
from loopmoe_train.errors import Refused

MANY_PASSES = 4  # up to here repeated text is worth almost as much as new (arXiv 2305.16264)


@dataclass(frozen=True)
class Member:
    """A dataset that is trained on; ``parts`` of every period of samples are its own."""

    name: str
    parts: int
    info: DatasetInfo


@dataclass(frozen=True)
class Mixture:
    """Members, by fingerprint, and datasets of which only the validation split is used, by name."""

    members: Tuple[Member, ...]
    extra: Dict[str, DatasetInfo]

    @property
    def period(self) -> int:
        """Samples after which every member has got exactly its share."""
        return sum(member.parts for member in self.members)

    @property
    def tokenizer_of(self) -> DatasetInfo:
        """A dataset whose tokenizer is that of all."""
        return self.members[0].info

    @property
    def shares(self) -> Dict[str, str]:
        """Fingerprint of each member -> its share of the samples, an exact fraction."""
        return {
            member.info.fingerprint: str(Fraction(member.parts, self.period))
            for member in self.members
        }

    @property
    def fingerprint(self) -> str:
        """Hex hash of everything the samples depend on; of one member, that member's own."""
        if len(self.members) == 1:
            return self.members[0].info.fingerprint
        return hashlib.sha256(json.dumps(self.shares, sort_keys=True).encode()).hexdigest()

    @property
    def identity(self) -> Union[str, Dict[str, str]]:
        """Fingerprint of the dataset; of several, the share of the samples of each."""
        return self.shares if len(self.members) > 1 else self.fingerprint

    @property
    def bytes_per_token(self) -> float:
        """Mean over the training samples."""
        weighted = sum(member.parts * member.info.train.bytes_per_token for member in self.members)
        return weighted / self.period

    def interleave(self) -> Interleave:
        """The assignment of samples to members."""
        return Interleave([member.parts for member in self.members])

    def passes(self, samples: int, sequence_length: int) -> List[float]:
        """How often ``samples`` samples read through the training text of each member."""
        counts = self.interleave().counts(samples)
        return [
            int(count) / ((member.info.train.tokens - 1) // sequence_length)
            for count, member in zip(counts, self.members)
        ]

    def describe(self, samples: int, sequence_length: int) -> List[str]:
        """A line per member on its share and passes, with a warning where they are many."""
        lines = []
        for member, passes in zip(self.members, self.passes(samples, sequence_length)):
            lines.append(
                f"data: {member.name}: {100 * member.parts / self.period:.4g} % of the samples, "
                f"{passes:.3g} passes over {member.info.train.tokens:,} tokens"
            )
            if passes > MANY_PASSES:
                advice = "lower its weight or steps" if len(self.members) > 1 else "lower steps"
                lines.append(
                    f"warning: {member.name} is read {passes:.1f} times; beyond {MANY_PASSES} "
                    f"passes repeated text teaches little -> {advice}, or add text"
                )
        return lines


def ensure_mixture(config: RunConfig, console_print: Print) -> Mixture:
    """:func:`open_mixture`; ``data.path`` is prepared when it is the one dataset of the run.

    Raises:
        Refused: as :func:`ensure_prepared` and :func:`open_mixture`, or a file is damaged.
    """
    if not config.data.mixture:
        for path in config.data.validation:
            _open(path, Path(config.data.path) / "tokenizer.model")  # before work is done in vain
        ensure_prepared(config, console_print)
    mixture = open_mixture(config)
    for info in (*(member.info for member in mixture.members), *mixture.extra.values()):
        check_dataset(info)
    return mixture


def open_mixture(config: RunConfig) -> Mixture:
    """What ``data.mixture`` (or ``data.path``) and ``data.validation`` name.

    Raises:
        Refused: a folder holds no finished dataset, two hold the same one, the tokenizers
            differ, or a weight is too small beside the others.
    """
    data = config.data
    paths = [member.path for member in data.mixture] or [data.path]
    weights = [member.weight for member in data.mixture] or [1.0]
    names = dataset_names(config)
    infos = [_open(path, Path(paths[0]) / "tokenizer.model") for path in (*paths, *data.validation)]
    _check_tokenizers(infos)
    _check_twins(infos)
    parts = parts_of(weights)
    for path, weight, part in zip(paths, weights, parts):
        if part == 0:
            raise Refused(
                f"data.mixture: weight={weight} of {path} is less than a sample in {PERIOD_LIMIT}",
                "raise it, or leave the member out",
            )
    members = [Member(*entry) for entry in zip(names, parts, infos)]
    members.sort(key=lambda member: member.info.fingerprint)
    return Mixture(tuple(members), dict(zip(names[len(paths) :], infos[len(paths) :])))


def _open(path: str, tokenizer: Path) -> DatasetInfo:
    """The dataset in ``path``; ``tokenizer`` is the one to make it with if there is none."""
    info = load_dataset(Path(path))
    if info is None:
        given = f" tokenizer.path={tokenizer}" if tokenizer.parent != Path(path) else ""
        raise Refused(
            f"{path}: no prepared dataset",
            f"prepare it with `loopmoe data data.source=TEXTS data.path={path}{given}`",
        )
    return info


def _check_tokenizers(infos: List[DatasetInfo]) -> None:
    first = infos[0]
    for info in infos[1:]:
        if info.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise Refused(
                f"{first.path} and {info.path} have different tokenizers "
                f"({first.tokenizer_fingerprint[:12]} and {info.tokenizer_fingerprint[:12]})",
                f"prepare {info.path} again with tokenizer.path={first.tokenizer_path} and --force",
            )


def _check_twins(infos: List[DatasetInfo]) -> None:
    seen: Dict[str, str] = {}
    for info in infos:
        if info.fingerprint in seen:
            raise Refused(
                f"{seen[info.fingerprint]} and {info.path} hold the same dataset",
                "name one of them; its weight may be higher",
            )
        seen[info.fingerprint] = info.path
