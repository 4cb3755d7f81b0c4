"""report.html: a run, or several beside each other, on one page that needs nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from loopmoe_train.errors import Refused
from loopmoe_train.observe.plots import plot_gates, plot_loss, plot_routing
from loopmoe_train.observe.report_html import comparison_page, run_page
from loopmoe_train.observe.rundata import RunData


def write_report(runs: Sequence[RunData], out: Path | None = None) -> Path:
    """Redraw the pictures of each run folder and write ``report.html``; returns its path.

    Args:
        runs: one run: its report. Several: a comparison.
        out: folder of report.html; default: the run folder, or for a comparison a new
            folder ``report-<names>`` beside the first run.

    Raises:
        Refused: if the report would replace that of another run, or cannot be written.
    """
    if not runs:
        raise Refused("no run folder was given", "name one, such as runs/quickstart")
    target = report_folder(runs, out)
    for run in runs:
        _draw_pictures(run)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if len(runs) == 1:
            page = run_page(runs[0])
        else:
            overlaid = target / "loss.png"
            plot_loss({run.name: run.metrics for run in runs}, overlaid, common_gzip(runs))
            page = comparison_page(runs, overlaid)
        part = target / "report.html.part"
        part.write_text(page, encoding="utf-8")
        os.replace(part, target / "report.html")
    except OSError as error:
        raise _unwritable(target, error, "pass --out with a folder you may write") from error
    return target / "report.html"


def report_folder(runs: Sequence[RunData], out: Path | None) -> Path:
    """Where report.html goes.

    Raises:
        Refused: if that would replace the report of another run, or of one run by a
            comparison.
    """
    if out is None:
        return runs[0].folder if len(runs) == 1 else runs[0].folder.parent / _joint_name(runs)
    out = Path(out).resolve()
    is_own = len(runs) == 1 and out == runs[0].folder
    if not is_own and (out / "metrics.jsonl").exists():
        raise Refused(
            f"--out {out} is the folder of a run, whose own report would be lost",
            "choose another folder for --out, or leave it out",
        )
    return out


def common_gzip(runs: Sequence[RunData]) -> float | None:
    """The gzip -9 yardstick if all runs that know it agree (the same validation text)."""
    known = [run.gzip_bits for run in runs if run.gzip_bits is not None]
    return known[0] if known and max(known) - min(known) < 1e-3 else None


def _joint_name(runs: Sequence[RunData]) -> str:
    """The same for the same runs, and another one for other runs."""
    names = [run.name.replace("/", "-") for run in runs]
    joint = "report-" + "-".join(names)
    if len(joint) <= 60:
        return joint
    digest = hashlib.sha256("\n".join(str(run.folder) for run in runs).encode()).hexdigest()
    return f"report-{names[0][:30]}-and-{len(runs) - 1}-more-{digest[:6]}"


def _draw_pictures(run: RunData) -> None:
    folder = run.folder
    try:
        plot_loss({run.name: run.metrics}, folder / "loss.png", run.gzip_bits)
        plot_routing(run.metrics, run.routing, folder / "routing.png")
        plot_gates(run.metrics, folder / "gates.png")
    except OSError as error:
        fix = "make the run folder writable, or copy it"
        raise _unwritable(Path(error.filename or folder), error, fix) from error


def _unwritable(path: Path, error: OSError, fix: str) -> Refused:
    return Refused(f"cannot write {path}: {error.strerror or error}", fix)
