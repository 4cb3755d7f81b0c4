"""Measured rates of operators on one device and software, as ``loopmoe bench ops`` writes them.

An operator is a kind, a layout and a size:

=========  ===================================  ====================================
kind       size                                 layouts
=========  ===================================  ====================================
matmul     rows, columns, inner                 forward (x W'), dgrad (g W), wgrad (g' x)
grouped    groups, rows, columns, inner         the same; rows etc. of one group (expert)
attention  sequence, heads, qk dim, v dim       forward, backward; causal; heads x batch
vector     bytes read and written               copy; norm and activation, each forward
                                                and backward
=========  ===================================  ====================================

Sizes are those of the product that is made: [rows, inner] x [inner, columns]. For wgrad the inner
dimension is therefore the tokens. Rates are FLOP/s, or bytes/s of vector operators; of a size
between measured ones the rate is interpolated.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from loopmoe_train.errors import Refused

FORMAT = "loopmoe operator rates 1"
_PRODUCT = ("forward", "dgrad", "wgrad")
LAYOUTS: Dict[str, Tuple[str, ...]] = {
    "matmul": _PRODUCT,
    "grouped": _PRODUCT,
    "attention": ("forward", "backward"),
    "vector": ("copy", "norm", "norm_backward", "activation", "activation_backward"),
}
DIMENSIONS = {"matmul": 3, "grouped": 4, "attention": 4, "vector": 1}
NAMES = tuple(f"{kind}/{layout}" for kind, layouts in LAYOUTS.items() for layout in layouts)

# How far a size may be from the nearest measured one: a factor of one dimension. Several add up as
# the sides of a right angle, in logarithms.
REACH = 8.0
# A point's weight falls with this power of its distance. Leaving points out of a table of 350 and
# predicting them from the others was nearest with 6, of 2 to 6 and local linear fits.
_NEARNESS = 6

Size = Tuple[int, ...]


class Point(NamedTuple):
    """One measured operator."""

    seconds: float
    spread: float  # of its repetitions: (upper - lower quartile) / median


@dataclass(frozen=True)
class Header:
    """Of what the rates are.

    Attributes:
        software: versions by name.
        processes: that measured at once, sharing the machine.
        threads: of one process; of a device with its own cores it says nothing.
        launch_us: that an operator takes which does nothing; not in the points' seconds.
    """

    hardware: str
    software: Dict[str, str]
    precision: str
    date: str
    processes: int = 1
    threads: int = 1
    launch_us: float = 0.0


def work(kind: str, layout: str, size: Size) -> float:
    """FLOPs of an operator, as the simulator counts them; bytes of a vector one."""
    if kind == "vector":
        return float(size[0])
    if kind == "attention":
        sequence, heads, qk, v = size
        forward = sequence * (sequence + 1) * heads * (qk + v)
        return 2.5 * forward if layout == "backward" else float(forward)
    return 2.0 * math.prod(size)


class Table:
    """Rates by operator; see the module's description."""

    def __init__(self, header: Header, points: Dict[str, Dict[Size, Point]]) -> None:
        self.header, self.points = header, points
        self._rates = {
            name: {size: _rate(name, size, point) for size, point in found.items()}
            for name, found in points.items()
        }
        # by dimension, then by point, which is the quickest to go through
        self._logs = {name: list(zip(*map(_logs, found))) for name, found in self._rates.items()}
        self._found: Dict[Tuple[str, Size], Optional[Tuple[float, bool]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.points.values()))

    def rate(self, name: str, size: Size) -> Optional[Tuple[float, bool]]:
        """Rate of ``"kind/layout"`` at a size, and whether just this size was measured.

        None: nothing within :data:`REACH` was.
        """
        key = (name, size)
        if key not in self._found:
            self._found[key] = self._look_up(name, size)
        return self._found[key]

    def _look_up(self, name: str, size: Size) -> Optional[Tuple[float, bool]]:
        exact = self._rates.get(name, {}).get(size)
        if exact is not None:
            return exact, True
        columns = self._logs.get(name)
        if not columns:
            return None
        squares = [0.0] * len(columns[0])
        for here, column in zip(_logs(size), columns):
            squares = [square + (log - here) ** 2 for square, log in zip(squares, column)]
        if min(squares) > math.log2(REACH) ** 2 + 1e-9:
            return None
        weights = [square ** (-_NEARNESS // 2) for square in squares]
        rates = self._rates[name].values()
        return sum(map(operator.mul, weights, rates)) / sum(weights), False

    def largest(self, name: str) -> Optional[float]:
        """The rate at the largest size, by the work in it; None: it was not measured."""
        kind, _, layout = name.partition("/")
        found = self._rates.get(name, {})
        return found[max(found, key=lambda size: work(kind, layout, size))] if found else None

    def best(self, kind: str, layout: str = "forward") -> Optional[float]:
        """The highest rate of a kind; None: it was not measured."""
        return max(self._rates.get(f"{kind}/{layout}", {}).values(), default=None)

    def text(self) -> str:
        """The file's text: one point a line, ``[[size], seconds, spread]``."""
        head = {"format": FORMAT, **vars(self.header)}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        kinds = []
        for name, found in self.points.items():
            rows = ",\n".join(
                f"   [{json.dumps(list(size))}, {point.seconds:.4g}, {point.spread:.3f}]"
                for size, point in found.items()
            )
            kinds.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
        return "\n".join(["{", *lines, ' "points": {', ",\n".join(kinds), " }", "}"]) + "\n"


def _rate(name: str, size: Size, point: Point) -> float:
    kind, _, layout = name.partition("/")
    return work(kind, layout, size) / point.seconds


def _logs(size: Size) -> Tuple[float, ...]:
    return tuple(math.log2(number) for number in size)


def load(name: str) -> Table:
    """A table by the name of a file, or of one that comes with the package (``cpu``).

    Raises:
        Refused: there is none, or the file is damaged.
    """
    folder = resources.files("loopmoe_train.sim") / "tables"
    shipped = folder / f"{name}.json"
    is_name = "/" not in name and not name.endswith(".json")
    try:
        if is_name and shipped.is_file():
            text = shipped.read_text(encoding="utf-8")
        else:
            text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        known = sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".json"))
        raise Refused(
            f"cluster.efficiency.table={name}: cannot be read ({why})",
            f"name a file of `loopmoe bench ops --json FILE`, or {', '.join(known)}",
        ) from error
    return parse(text, f"cluster.efficiency.table={name}")


def parse(text: str, where: str) -> Table:
    """The table in a file's text; ``where`` names it in errors.

    Raises:
        Refused: it is not one, with the first thing that is wrong.
    """
    try:
        return _table(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Refused(
            f"{where}: not a table of operator rates: {why}",
            "measure it again with `loopmoe bench ops --json FILE`",
        ) from error


def _table(raw: Any) -> Table:
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ValueError(f'its "format" is not "{FORMAT}"')
    header = Header(
        str(raw["hardware"]),
        {str(key): str(value) for key, value in dict(raw["software"]).items()},
        str(raw["precision"]), str(raw["date"]), int(raw["processes"]), int(raw["threads"]),
        float(raw["launch_us"]),
    )  # fmt: skip
    points: Dict[str, Dict[Size, Point]] = {}
    for name, rows in dict(raw["points"]).items():
        if name not in NAMES:
            raise ValueError(f"{name!r} is no operator")
        points[name] = _points(name, rows)
    if not any(points.values()):
        raise ValueError("it has no points")
    return Table(header, points)


def _points(name: str, rows: List[Any]) -> Dict[Size, Point]:
    count = DIMENSIONS[name.partition("/")[0]]
    found: Dict[Size, Point] = {}
    for row in rows:
        try:
            numbers, seconds, spread = row
            size = tuple(numbers)
            whole = all(type(number) is int and number > 0 for number in size)
            fine = whole and len(size) == count and 0 < seconds < math.inf and 0 <= spread
        except (TypeError, ValueError):
            fine = False
        if not fine or size in found:
            raise ValueError(f"{name} has the point {json.dumps(row)[:80]}")
        found[size] = Point(float(seconds), float(spread))
    return found
