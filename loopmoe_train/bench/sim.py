"""``loopmoe bench sim``: the simulator against published measurements."""

from __future__ import annotations

import json
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any, Dict, List, Optional

from loopmoe_train.errors import Refused
from loopmoe_train.files import write_text
from loopmoe_train.sim.published import scales, validate
from loopmoe_train.sim.published.baselines import BASELINES
from loopmoe_train.sim.published.rows import read

# What a change may not make worse: validation rows of the shipped file, factors fitted on its
# calibration rows. `tests/sim` holds them.
OWN_ROWS = "measured_rows.csv"


def own_rows() -> Path:
    """The rows that come with the package."""
    return Path(str(resources.files("loopmoe_train.sim.published") / OWN_ROWS))


def run(rows: Optional[str], out: Optional[str], calibrate: bool) -> Dict[str, Any]:
    """Predict and score; the table that :func:`show` prints.

    Args:
        rows: a CSV with the columns of the shipped one; None: the shipped one.
        out: a file for ``[{"id", "predicted"} | {"id", "skipped"}]``.
        calibrate: write the factors found on all rows into the package.

    Raises:
        Refused: a file cannot be read or written.
    """
    file = Path(rows) if rows is not None else own_rows()
    started = time.perf_counter()
    measured = read(file)
    found = validate.predict(measured, _progress(len(measured)))
    if calibrate:
        fitted = validate.calibrate(found, everything=True)
        factors = {name: round(value, 4) for name, value in fitted.items()}
        write_text(own_rows().parent / scales.FILE, json.dumps(factors, indent=1) + "\n")
    if out is not None:
        factors = scales.shipped()
        try:
            write_text(Path(out), json.dumps([_entry(one, factors) for one in found], indent=1))
        except OSError as error:
            raise Refused(f"--json {out}: {error.strerror}", "name another file") from error
    if not any(one.case is not None for one in found):
        reasons = sorted({one.skipped for one in found}) or ["it has no rows"]
        raise Refused(f"{file}: no row can be predicted: {'; '.join(reasons[:5])}")
    table = validate.report(found)
    table["seconds"] = time.perf_counter() - started
    return table


def _entry(one: validate.Prediction, factors: Dict[str, float]) -> Dict[str, Any]:
    if one.case is None:
        return {"id": one.row.id, "skipped": one.skipped}
    return {"id": one.row.id, "predicted": validate.in_unit(one, factors)}


def _progress(count: int) -> Any:
    def say(number: int) -> None:
        if sys.stderr.isatty() and number % 25 == 0:
            print(f"\r{number} of {count} rows", end="", file=sys.stderr, flush=True)

    return say


def show(table: Dict[str, Any]) -> None:
    """Print the table and the headline."""
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    print(
        f"\n{table['predicted']} of {table['rows']} rows predicted "
        f"({table['predicted'] / table['rows']:.0%}), {table['seconds']:.1f} s"
    )
    for reason, count in table["skipped"].items():
        print(f"  {count:4} skipped: {reason}")
    print(
        "\nvalidation rows: step time, absolute error as median / 9 of 10, and bias; factors "
        "from the calibration rows"
    )
    names = list(BASELINES)
    print(f"{'':22}{'rows':>5}{'no factor':>16}{'one factor':>16}{'bias':>8}"
          + "".join(f"{name:>24}" for name in names))  # fmt: skip
    for name, row in [*table["groups"].items(), ("all", table["all"])]:
        own = row["simulator"]
        print(f"{name:22}{own['rows']:5}{_both(row['raw']):>16}{_both(own):>16}{own['bias']:+8.1%}"
              + "".join(f"{_both(row[other]):>24}" for other in names))  # fmt: skip
    print("\norder of layouts of one model, size and batch (at least 5)")
    for method, row in table["ranking"].items():
        print(f"{method:22} tau-b {row['tau']:5.2f}, best predicted costs {row['regret']:.1%} more "
              f"than the best (at most {row['worst_regret']:.1%}), best among 3: "
              f"{row['top3']:.0%}; {row['groups']} groups")  # fmt: skip
    memory = table["memory"]
    print("\npeak memory")
    for name, row in [*memory["groups"].items(), ("all", memory["all"])]:
        print(f"{name:22}{row['rows']:5}  {_both(row):>14}  bias {row['bias']:+.1%}")
    for words, count in memory["confusion"].items():
        print(f"  {words}: {count}")
    own, rank = table["all"]["simulator"], table["ranking"]["simulator"]
    best = min(table["all"][name]["median"] for name in names)
    print(
        f"headline: error_median={own['median']:.4f} error_p90={own['p90']:.4f} "
        f"bias={own['bias']:+.4f} best_baseline={best:.4f} tau={rank['tau']:.3f} "
        f"regret={rank['regret']:.4f} memory_median={memory['all']['median']:.4f} "
        f"predicted={table['predicted'] / table['rows']:.3f}"
    )


def _both(row: Dict[str, float]) -> str:
    return f"{row['median']:.1%} / {row['p90']:.1%}"


def arguments(words: List[str]) -> Dict[str, Any]:
    """The options of ``loopmoe bench sim``.

    Raises:
        Refused: an unknown one, or one without its value.
    """
    found: Dict[str, Any] = {"rows": None, "out": None, "calibrate": False}
    left = iter(words)
    for word in left:
        if word == "--calibrate":
            found["calibrate"] = True
        elif word in ("--rows", "--json"):
            value = next(left, None)
            if value is None:
                raise Refused(f"{word}: no file named", f"loopmoe bench sim {word} FILE")
            found["rows" if word == "--rows" else "out"] = value
        else:
            raise Refused(
                f"bench sim: {word} is unknown", "use --rows CSV, --json OUT, --calibrate"
            )
    return found
