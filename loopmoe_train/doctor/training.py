"""The run itself, before it is started: settings, memory, data, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Optional

from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.dataset import SPLITS, DatasetInfo, load_dataset
from loopmoe_train.data.mixture import MANY_PASSES, Mixture, open_mixture
from loopmoe_train.data.verify import verify_dataset
from loopmoe_train.doctor.check import Check, failed, look, passed, warned
from loopmoe_train.errors import Refused
from loopmoe_train.sim import memory as peaks
from loopmoe_train.sim.machine import GIB, machine_of
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.workload import workload_of


def settings(run: RunConfig) -> List[Check]:
    """The rules that ``loopmoe train`` refuses by; each complaint is one FAIL."""
    found = problems(run)
    if found:
        return [failed("run/config", what, "change the setting that is named") for what in found]
    return [passed("run/config", f"{run.model.name} on {run.cluster.devices} {run.cluster.device}")]


def simulated_bytes(run: RunConfig) -> float:
    """Bytes of a device at the fullest moment: tensors, the allocator's own, runtime, buffers.

    Raises:
        Refused: the cluster file does not describe the machine.
    """
    work, machine = workload_of(run), machine_of(run.cluster)
    return peaks.of_device(estimate(work, machine).peak, work, machine)


def memory(run: RunConfig) -> Check:
    """The simulated peak against the cluster file."""
    try:
        need, machine = simulated_bytes(run), machine_of(run.cluster)
    except Refused as error:
        return warned("run/memory", f"not simulated: {error.what}", error.fix)
    what = (
        f"{need / GIB:.2f} GiB simulated on the fullest rank, {machine.memory / GIB:.1f} GiB by "
        f"cluster={run.cluster.name}"
    )
    fix = "loopmoe plan finds a layout that fits; or memory=selective, or micro_batch_size=1"
    if need > machine.memory:
        return failed("run/memory", what, fix)
    if need * (1 + peaks.MARGIN) > machine.memory:
        return warned("run/memory", f"{what}; the simulator errs by {peaks.MARGIN:.0%}", fix)
    return passed("run/memory", what)


def data(run: RunConfig, whole: bool) -> Iterator[Check]:
    """Datasets, tokenizer and vocabulary.

    Args:
        whole: read and hash every byte, not only sizes and the tokenizer.
    """
    mixture = _opened(run)
    if mixture is None:
        yield passed("run/data", f"{run.data.path}: not prepared yet; `loopmoe train` prepares it")
        yield from _given_tokenizer(run)
        return
    infos = [*(one.info for one in mixture.members), *mixture.extra.values()]
    for info in infos:
        strange = _tokenizer(run, info, alone=not run.data.mixture)
        yield strange or passed(
            "run/tokenizer",
            f"{info.path}: {info.tokenizer_fingerprint[:12]}, {info.vocab_size} ids",
        )
        if strange is None:
            yield from look("run/data", lambda info=info: [_dataset(info, whole)])  # type: ignore[misc]
    fits = _vocabulary(run, mixture)
    yield from fits
    if not fits[0].fix:
        yield from _steps(run, mixture)


def _opened(run: RunConfig) -> Optional[Mixture]:
    """The datasets; None if the only one is still to be made.

    Raises:
        Refused: one of several is not there, or they do not fit one another.
    """
    single = not run.data.mixture and not run.data.validation
    if single and load_dataset(Path(run.data.path)) is None:
        return None
    return open_mixture(run)


def _tokenizer(run: RunConfig, info: DatasetInfo, alone: bool) -> Optional[Check]:
    """What is wrong with the tokenizer of a dataset, or of the one the run names."""
    try:
        there = info.tokenizer().fingerprint
    except Refused as error:
        return failed("run/tokenizer", error.what, error.fix or "loopmoe data --force")
    if there != info.tokenizer_fingerprint:
        return failed(
            "run/tokenizer",
            f"{info.tokenizer_path} ({there[:12]}) is not the one that made the dataset "
            f"({info.tokenizer_fingerprint[:12]})",
            f"restore it, or: loopmoe data --force data.path={info.path}",
        )
    named = run.tokenizer.path
    if alone and named is not None:
        from loopmoe_train.data.tokenizer import Tokenizer

        given = Tokenizer(Path(named)).fingerprint
        if given != there:
            return failed(
                "run/tokenizer",
                f"tokenizer.path={named} ({given[:12]}) is not that of {info.path} ({there[:12]})",
                f"tokenizer.path={info.tokenizer_path}, or another data.path",
            )
    return None


def _given_tokenizer(run: RunConfig) -> Iterator[Check]:
    if run.tokenizer.path is not None:
        from loopmoe_train.data.tokenizer import Tokenizer

        given = Tokenizer(Path(run.tokenizer.path))
        yield passed("run/tokenizer", f"{given.path}: {given.vocab_size} ids")


def _dataset(info: DatasetInfo, whole: bool) -> Check:
    """One dataset; sizes only unless ``whole``.

    Raises:
        Refused: a file is not the one that was written.
    """
    if whole:
        verified = verify_dataset(Path(info.path))
        return passed("run/data", f"{info.path}: {_tokens(info)}, every byte as written, "
                      f"{verified.decoded} documents read back")  # fmt: skip
    for name, split in zip(SPLITS, (info.train, info.valid)):
        reader = info.reader(name)
        if (reader.num_documents, reader.num_tokens) != (split.documents, split.tokens):
            raise Refused(
                f"{info.prefix(name)}.idx is not the one dataset.json names",
                f"loopmoe data --force data.path={info.path}",
            )
    return passed("run/data", f"{info.path}: {_tokens(info)} (sizes; hashed without --quick)")


def _tokens(info: DatasetInfo) -> str:
    return f"{info.train.tokens:,} tokens"


def _steps(run: RunConfig, mixture: Mixture) -> Iterator[Check]:
    samples = run.steps * run.global_batch_size
    for member, passes in zip(mixture.members, mixture.passes(samples, run.sequence_length)):
        if passes > MANY_PASSES:
            yield warned(
                "run/data",
                f"{member.name} is read {passes:.1f} times in {run.steps} steps; beyond "
                f"{MANY_PASSES} passes repeated text teaches little",
                f"steps={int(run.steps * MANY_PASSES / passes)}, or give data.source more text",
            )


def _vocabulary(run: RunConfig, mixture: Mixture) -> List[Check]:
    from loopmoe_train.train.preflight import check_text

    def fits() -> List[Check]:
        check_text(run, mixture)
        size = run.model.vocab_size or mixture.tokenizer_of.vocab_size
        return [passed("run/vocabulary", f"{mixture.tokenizer_of.vocab_size} ids in {size}")]

    return look("run/vocabulary", fits)
