"""Where records go: metrics.jsonl, Weights & Biases, or several at once."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from loopmoe_train.errors import RunFailed
from loopmoe_train.observe.jsonl import dump_line, rewind_jsonl, to_plain
from loopmoe_train.redact import redact


class Sink(Protocol):
    """Takes records of a run until it is closed."""

    def write(self, record: dict[str, Any]) -> None:
        """Store one record (see :mod:`loopmoe_train.observe.metrics` for the names)."""

    def close(self, status: str = "done") -> None:
        """Finish; calling it twice does no harm. ``status`` is "done" or why the run ended."""


class JsonlSink:
    """One JSON object a line, flushed per record, so a killed run loses at most a line.

    Args:
        path: the file; its folder is created.
        keep_until_step: resume: lines with a later step are dropped first. None keeps all
            (a torn last line always goes); -1 starts the file afresh.

    Attributes:
        dropped: number of lines that were dropped on opening.

    Raises:
        RunFailed: if the file cannot be opened or written.
    """

    def __init__(self, path: Path | str, keep_until_step: int | None = None) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.dropped = rewind_jsonl(self.path, keep_until_step)
            self._file = open(self.path, "a", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error

    def write(self, record: dict[str, Any]) -> None:
        line = dump_line(record)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def close(self, status: str = "done") -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            pass  # every record was flushed already; not all file systems know fsync
        self._file.close()

    def _failed(self, error: OSError) -> RunFailed:
        return RunFailed(
            f"cannot write {self.path}: {error.strerror or error}",
            "free disk space or permissions there and start again: the run resumes",
        )


# Nothing but the numbers that are logged leaves the process: no command line, host
# statistics, package list, source code, git remote or console output.
_WANDB_SETTINGS = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    # a wait on the network is bounded, or it would hold up the other ranks
    "init_timeout": 60.0,
    "login_timeout": 30.0,
    "finish_timeout": 60.0,
}


class WandbSink:
    """Weights & Biases, never at the cost of the run.

    The first exception of wandb becomes one warning line and switches this sink off.
    A resumed run continues under the same id, kept in ``run_dir/wandb_id``. What wandb has
    been given cannot be taken back: steps that a resumed run repeats are not sent again, and
    keep the values first sent.

    Args:
        mode: "offline" (files under run_dir/wandb, for ``wandb sync``), "online" or "off".
        config: plain nested dict shown beside the curves; pass the run configuration and
            nothing from the environment.
        sent: of a run that is continued, name to last step of what metrics.jsonl held
            (:func:`loopmoe_train.observe.jsonl.last_steps`); None starts a new wandb run.
        warn: takes the warning line; default: stderr.
    """

    def __init__(
        self,
        mode: str,
        project: str,
        name: str,
        run_dir: Path | str,
        config: dict[str, Any] | None = None,
        sent: dict[str, float] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._warn = warn or to_stderr
        self._run: Any = None
        self._sent: dict[str, float] = {}
        if mode == "off":
            return
        id_file = Path(run_dir) / "wandb_id"
        try:
            if sent is None:
                id_file.unlink(missing_ok=True)
            elif id_file.exists():
                self._sent = sent
            self._run = _start_wandb(mode, project, name, Path(run_dir), config or {})
        except Exception as error:  # whatever it is, the run is worth more than its curves
            self._give_up("start", error)

    def write(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            # the step travels as a value: wandb's own counter refuses to go back on resume
            step = record["step"]
            new = {k: v for k, v in to_plain(record).items() if step > self._sent.get(k, -1)}
            if len(new) > 1:  # more than the step
                self._run.log(new)
        except Exception as error:
            self._give_up("log", error)

    def close(self, status: str = "done") -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if status == "done" else 1)
        except Exception as error:
            self._give_up("finish", error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        reason = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        self._warn(f"wandb could not {action} ({reason}); training goes on, see metrics.jsonl")


class MultiSink:
    """Hands every record to each sink, in order."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def write(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(record)

    def close(self, status: str = "done") -> None:
        """Close all of them, also when one fails; the first failure is raised at the end."""
        first: Exception | None = None
        for sink in self.sinks:
            try:
                sink.close(status)
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


def to_stderr(line: str) -> None:
    """Where a sink's warning goes unless told otherwise."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _start_wandb(mode: Any, project: str, name: str, run_dir: Path, config: dict[str, Any]) -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb

    run_dir.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        mode=mode,
        project=project,
        name=name,
        id=_run_id(run_dir / "wandb_id"),
        # offline, wandb would warn that it ignores `resume`; the id alone joins the parts
        resume="allow" if mode == "online" else None,
        dir=str(run_dir),
        config=to_plain(config),
        settings=_settings(wandb.Settings),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _run_id(path: Path) -> str:
    if path.exists():
        stored = path.read_text(encoding="utf-8").strip()
        if stored.isalnum():
            return stored
    fresh = secrets.token_hex(4)
    path.write_text(fresh + "\n", encoding="utf-8")
    return fresh


def _settings(settings_class: Any) -> Any:
    """The settings above that this version of wandb knows (older ones say ``_x``)."""
    known = set(getattr(settings_class, "model_fields", None) or settings_class.__annotations__)
    chosen = {}
    for name, value in _WANDB_SETTINGS.items():
        for spelling in (name, name.replace("x_", "_", 1)):
            if spelling in known:
                chosen[spelling] = value
                break
    return settings_class(**chosen)
