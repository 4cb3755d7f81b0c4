"""The disks of a run: room for what will be written, and how fast it is written."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.doctor.check import Check, failed, passed, warned
from loopmoe_train.spec.arithmetic import parameters

_GIB = 2.0**30
PROBE_BYTES = 16 * 2**20
_SLOW = 50e6  # bytes/s: below, a checkpoint of a gigabyte takes longer than 20 s
_DATA_FREE = 2 * _GIB


def checkpoint_bytes(run: RunConfig) -> float:
    """Bytes of one checkpoint of ``run``: weights, fp32 copies of them, two moments."""
    count = parameters(run.model, run.model.vocab_size or run.tokenizer.vocab_size)["total"]
    return float(count) * (12 if run.precision == "fp32" else 14)


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    folder = Path(os.path.abspath(folder))
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def run_folder(folder: Path, one: float, keep: int) -> Check:
    """Room for checkpoints of ``one`` bytes: ``keep`` stay (0: all) while one is written."""
    free = _free(folder)
    what = (
        f"{free / _GIB:.1f} GiB free at {existing(folder)}; a checkpoint has about "
        f"{one / _GIB:.2f} GiB"
    )
    if free < one:
        return failed("disk/run-folder", what, "free space there, or runs_dir=FOLDER elsewhere")
    if free < (max(keep, 1) + 1) * one:
        return warned(
            "disk/run-folder", f"{what}, and {keep or 'all'} of them are kept",
            "free space there, checkpoint.keep=1, or runs_dir=FOLDER elsewhere",
        )  # fmt: skip
    return passed("disk/run-folder", what)


def data(folder: Path, prepared: bool) -> Check:
    """Room for a dataset that is still to be prepared."""
    free = _free(folder)
    what = f"{free / _GIB:.1f} GiB free at {existing(folder)}"
    if prepared or free >= _DATA_FREE:
        return passed("disk/data", what + ("; the dataset is there" if prepared else ""))
    return warned(
        "disk/data",
        f"{what}; the tokens of a corpus take about as much as half its text",
        "free space there, or data.path=FOLDER elsewhere",
    )


def write_speed(folder: Path, size: int = PROBE_BYTES) -> Check:
    """Write ``size`` bytes to a file of ``folder``, sync it, remove it."""
    place = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as probe:
            block = os.urandom(2**20)
            started = time.perf_counter()
            for _ in range(max(1, size // len(block))):
                probe.write(block)
            probe.flush()
            os.fsync(probe.fileno())
            seconds = time.perf_counter() - started
    except OSError as error:
        return failed(
            "disk/write-speed",
            f"{size / 2**20:.0f} MiB cannot be written to {place}: {error.strerror}",
            "free space there, or runs_dir=FOLDER elsewhere",
        )
    rate = size / seconds
    what = f"{rate / 1e6:.0f} MB/s with a sync at {place}"
    if rate < _SLOW:
        return warned("disk/write-speed", what, "runs_dir=FOLDER on a faster disk")
    return passed("disk/write-speed", what)


def _free(folder: Path) -> float:
    about = os.statvfs(existing(folder))
    return float(about.f_frsize * about.f_bavail)


def is_prepared(run: RunConfig) -> bool:
    """Whether nothing is left to be tokenised."""
    return bool(run.data.mixture) or (Path(run.data.path) / "dataset.json").is_file()
