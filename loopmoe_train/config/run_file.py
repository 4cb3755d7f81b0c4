"""``run.yaml``: the composed run, written once by the front door and read by every rank."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict

import yaml

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.files import write_text
from loopmoe_train.redact import secrets

_HEADER = """\
# Written by loopmoe; the run as it was started, with nothing left to choose.
# mfu in metrics.jsonl = FLOPs of the model / (time x peak). FLOPs: 2 per matrix parameter that a
# token uses, every visit of a looped layer counted, plus causal attention scores, x 3 for forward
# and backward; recomputation does not count. Peak: cluster.peak_tflops_<precision> x devices, or,
# where that is null, a square matrix product measured on all ranks at once when training starts.
"""


def run_dir(config: RunConfig) -> Path:
    """Folder of the run: ``<runs_dir>/<name>``."""
    return Path(config.runs_dir) / config.name


def dump(config: RunConfig) -> str:
    """The run as YAML text."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def refuse_secrets(text: str, path: Path) -> None:
    """Keep secrets of the environment out of a file.

    Raises:
        Refused: ``text`` holds one, so that it must not become ``path``.
    """
    for name, value in secrets().items():
        if value in text:
            raise Refused(
                f"a setting holds the value of ${name}, which would go into {path}",
                "leave it in the environment, or choose another value",
            )


def save(config: RunConfig, path: Path) -> None:
    """Write ``path`` atomically.

    Raises:
        Refused: a setting holds a secret of the environment.
        RunFailed: the disk is full.
    """
    text = dump(config)
    refuse_secrets(text, path)
    try:
        write_text(path, _HEADER + text)
    except OSError as error:
        raise RunFailed(
            f"cannot write {path}: {error.strerror}", "free space there or choose another runs_dir="
        ) from error


def parse(text: str, where: str) -> RunConfig:
    """Typed configuration from YAML text; ``where`` names it in errors.

    Raises:
        Refused: the text is not YAML or does not fit the schema.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        raw: Dict[str, Any] = yaml.safe_load(text)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), raw)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise Refused(
            f"{where}: not a run configuration: {error}", "start again with `loopmoe train ...`"
        ) from error


def load(path: Path) -> RunConfig:
    """Read ``run.yaml``. A run is where its file is: a run folder may be moved or renamed.

    Raises:
        Refused: missing, unreadable, or not a run configuration.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refused(
            f"{path}: cannot be read ({error.strerror})",
            "name a run folder made by `loopmoe train`",
        ) from error
    config = parse(text, str(path))
    folder = path.resolve().parent if not path.parent.name else path.parent
    config.runs_dir, config.name = str(folder.parent), folder.name
    return config
