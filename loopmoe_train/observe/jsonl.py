"""JSON lines that survive a crash: strict JSON, a torn last line, rewinding to a step."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from loopmoe_train.errors import Refused

_TAIL = 65536  # bytes; a record is much shorter


def to_plain(value: Any) -> Any:
    """Turn a value into strict JSON: non-finite floats become null, 0-d arrays numbers.

    Raises:
        TypeError: for anything that has no plain form (a full tensor, an object).
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by name, without its step: what a curve can show."""
    plain = to_plain(record)
    return {
        name: float(value)
        for name, value in plain.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def last_steps(path: Path) -> dict[str, float]:
    """Name to the last step at which the file has a number of that name; {} without a file."""
    last: dict[str, float] = {}
    for line in _text(path).split("\n") if path.exists() else []:
        record = _parse(line)
        if record is not None and isinstance(record.get("step"), (int, float)):
            for name in scalars(record):
                last[name] = max(record["step"], last.get(name, record["step"]))
    return last


def last_record(path: Path) -> dict[str, Any]:
    """The last whole record of a file that is being written, from its end; {} without one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
    except OSError:
        return {}
    return next((record for record in map(_parse, reversed(lines)) if record is not None), {})


def dump_line(record: dict[str, Any]) -> str:
    """One record as one line, with its newline."""
    return json.dumps(to_plain(record), allow_nan=False) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    """The object on this line, or None if it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    try:
        # a crash can leave any bytes behind: they must not stop the lines before them
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Refused(
            f"cannot read {path}: {error.strerror or error}",
            "check the path of the run folder and its permissions",
        ) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of the file; a last line that a crash has torn is left out.

    Raises:
        Refused: if the file cannot be read or any other line is not a JSON object.
    """
    lines = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line.strip(" \t\r\0")]
    records = []
    for position, (number, line) in enumerate(lines):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif position + 1 < len(lines):
            raise Refused(
                f"{path} line {number} is not a JSON object",
                "delete that line (or restore the file) and try again",
            )
    return records


def rewind_jsonl(path: Path, keep_until_step: int | None) -> int:
    """Drop lines of later steps and lines that do not parse; returns how many went.

    The rewrite is atomic: a crash in it leaves the old file or the new one. A resumed run
    must never be stopped by its log, so here a broken line in the middle is dropped too.
    """
    if not path.exists():
        return 0
    old = _text(path)
    kept, dropped = [], 0
    for line in old.split("\n"):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None or _is_later(record.get("step"), keep_until_step):
            dropped += 1
        else:
            kept.append(line + "\n")
    new = "".join(kept)
    if new != old:
        replacement = path.with_name(path.name + ".rewind")
        with open(replacement, "w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        os.replace(replacement, path)
    return dropped


def _is_later(step: Any, limit: int | None) -> bool:
    return limit is not None and isinstance(step, (int, float)) and step > limit
