"""``loopmoe report RUN [RUN ...]``: pictures and a page of one run, or a comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from loopmoe_train.cli.arguments import Parser
from loopmoe_train.observe.rundata import RunData

OWN_HELP = True  # argparse prints it

SHORT = (  # rows of the headline that fit a terminal
    "validation bits/byte",
    "gzip -9 bits/byte",
    "training loss (last)",
    "tokens",
    "tokens/s (median)",
    "wall time",
    "peak memory",
    "parameters",
    "active parameters",
    "status",
)


def run(argv: list[str]) -> int:
    """Write the report and print its headline; 0, or Refused for a run it cannot read."""
    arguments = _parser().parse_args(argv)
    show(arguments.runs, arguments.out)
    return 0


def show(folders: Sequence[Path], out: Path | None = None) -> None:
    """Draw, write the page and print the headline of these run folders.

    Raises:
        Refused: a run cannot be read, or the report cannot be written.
    """
    from loopmoe_train.observe.report import write_report
    from loopmoe_train.observe.rundata import load_runs
    from loopmoe_train.observe.trace import found_profiles

    runs = load_runs(folders)
    page = write_report(runs, out)
    _print_headline(runs)
    for run in runs:
        for rank, profile in found_profiles(run.folder).items():
            for line in profile.lines():
                print(f"{run.name}, rank {rank}: {line}")
    print(f"report: {_shown(page)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="loopmoe report",
        description="Redraw loss.png, routing.png and gates.png of run folders and write "
        "report.html; of several runs, a comparison.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="runs/<name>")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of report.html (default: the run folder; of several runs "
        "report-<names> beside the first)",
    )
    return parser


def _print_headline(runs: Sequence[RunData]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for one in runs:
        table.add_column(Text(one.name), overflow="fold")
    columns = [dict(one.headline()) for one in runs]
    for name in SHORT:
        table.add_row(name, *(Text(column[name]) for column in columns))
    sets = [one.set_bits() for one in runs]
    for name in dict.fromkeys(name for one in sets for name in one):
        cells = (f"{one[name]:.4f}" if name in one else "not measured" for one in sets)
        table.add_row(Text(f"validation bits/byte: {name}"), *map(Text, cells))
    Console(highlight=False).print(table)


def _shown(page: Path) -> Path:
    """Relative where that is shorter to read and still right."""
    return page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
