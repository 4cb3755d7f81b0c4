"""``run.yaml``: the composed run, written once by the front door and read by every rank."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict

import yaml

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused


def run_dir(config: RunConfig) -> Path:
    """Folder of the run: ``<runs_dir>/<name>``."""
    return Path(config.runs_dir) / config.name


def dump(config: RunConfig) -> str:
    """The run as YAML text."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def save(config: RunConfig, path: Path) -> None:
    """Write ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(dump(config), encoding="utf-8")
    os.replace(partial, path)


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
    """Read ``run.yaml``.

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
    return parse(text, str(path))
