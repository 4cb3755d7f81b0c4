"""The checkpoint from which a run would go on: read to the last byte, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from loopmoe_train.checkpoint.load import verify
from loopmoe_train.checkpoint.manifest import committed, differences
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.dataset import load_dataset
from loopmoe_train.data.mixture import open_mixture
from loopmoe_train.doctor.check import Check, failed, passed, warned
from loopmoe_train.errors import Refused
from loopmoe_train.train.preflight import identity


def checkpoint(run: RunConfig) -> Iterator[Check]:
    """The checkpoint that ``checkpoint.resume`` means: whole, and of these settings."""
    wish = run.checkpoint.resume
    root = run_dir(run) / "checkpoints"
    if wish == "none":
        yield passed("run/checkpoint", "checkpoint.resume=none: none is wanted")
        return
    folders = committed(root) if wish == "auto" else [Path(wish)]
    if not folders:
        yield passed("run/checkpoint", f"none in {root}: the run begins at step 0")
        return
    for number, folder in enumerate(folders):
        try:
            manifest = verify(folder)
        except Refused as error:
            older = number + 1 < len(folders)
            fix = (
                "nothing to do: the run goes on from the whole one below, and makes the steps anew"
                if older
                else "restore it from a copy, checkpoint.resume=none name=ANOTHER, or delete it: "
                f"rm -r {folder}"
            )
            yield (warned if older else failed)("run/checkpoint", error.what, fix)
            continue
        changed = _changed(run, manifest.about)
        if changed:
            yield failed(
                "run/checkpoint", f"{folder} is of other settings: {changed}",
                "set them back, or name=ANOTHER",
            )  # fmt: skip
        else:
            parts = len(manifest.shards)
            yield passed(
                "run/checkpoint",
                f"{folder}: step {manifest.step}, {parts} parts of tensors, every byte as written; "
                "any layout can load it",
            )
        return


def _changed(run: RunConfig, about: object) -> str:
    """Settings that are not those of the checkpoint; the dataset's are left out while it is not
    there."""
    if not run.data.mixture and load_dataset(Path(run.data.path)) is None:
        return ""
    return "; ".join(differences(about, identity(run, open_mixture(run)))[:4])
