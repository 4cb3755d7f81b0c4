"""HTML of the report: one file, no script, nothing loaded from outside, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loopmoe_train.observe.rundata import RunData
from loopmoe_train.observe.trace import found_profiles

# The policy makes the browser itself refuse anything from outside.
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head>
<body><main>
<h1>{title}</h1>
{body}
</main></body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --line: #d5d5d5; --soft: #f4f5f7; --dim: #5c6370;
  --paper: #ffffff; --ink: #1b1f24; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3f47; --soft: #22262c; --dim: #a3abb8; --paper: #16181c; --ink: #e6e8eb; }
}
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; overflow-wrap: anywhere; }
p.dim, figcaption { color: var(--dim); }
figure { margin: 0 0 1.5rem; }
figcaption { margin-bottom: .6rem; }
img { max-width: 100%; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .28rem 1rem .28rem 0;
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; color: var(--dim); }
.groups { columns: 20rem; column-gap: 2rem; }
.groups section { break-inside: avoid; margin-bottom: 1rem; }
.groups h3 { font-size: 1rem; margin: .4rem 0; }
.groups table { font-size: .85rem; width: 100%; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
"""

_CAPTIONS = {
    "loss": (
        "Both curves should fall and flatten together; validation below the dashed line means "
        "that the model compresses the text (what eval_batches reads of it) better than gzip -9."
    ),
    "routing": (
        "Pale cells are evenly used experts, red ones are overloaded, blue ones starve and "
        "black ones are dead; max violation should fall towards 0, and a low overlap between "
        "iterations means that the loop consults other experts each time round."
    ),
    "gates": (
        "Alpha starts at 0 (attention off in the loop body) and should rise; curves that "
        "separate show that the iterations learned to do different things."
    ),
}


def run_page(run: RunData) -> str:
    """The page of one run; its pictures are already in the run folder."""
    parts = [
        _headlines([run]),
        _sets([run]),
        "<h2>Pictures</h2>",
        _pictures(run),
        _sample(run),
        _profiles(run),
        _config(run),
    ]
    return _page(f"Run {run.name}", parts)


def comparison_page(runs: Sequence[RunData], overlaid: Path) -> str:
    """Several runs beside each other; ``overlaid`` is the loss picture of all of them."""
    parts = [
        _headlines(runs),
        _sets(runs),
        "<h2>Loss of all runs</h2>",
        _figure(overlaid, "Lower is better at the same number of tokens."),
        "<h2>What differs in the configuration</h2>",
        _differences(runs),
    ]
    for run in runs:
        parts += [f"<h2>Run {escape(run.name)}</h2>", _pictures(run), _sample(run)]
    return _page("Comparison of " + ", ".join(run.name for run in runs), parts)


def _page(title: str, parts: Sequence[str]) -> str:
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts))


def _headlines(runs: Sequence[RunData]) -> str:
    columns = [dict(run.headline()) for run in runs]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    head = ["", *(run.name for run in runs)] if len(runs) > 1 else None
    return _table(rows, head)


def _sets(runs: Sequence[RunData]) -> str:
    """Bits per byte of every validation set, where a run has several."""
    columns = [run.set_bits() for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    if not names:
        return ""
    rows = [
        [name, *(f"{column[name]:.4f}" if name in column else "not measured" for column in columns)]
        for name in names
    ]
    return "<h2>Bits per byte of each validation set</h2>" + _table(
        rows, ["", *(run.name for run in runs)]
    )


def _table(rows: Sequence[Sequence[Any]], head: Sequence[Any] | None = None) -> str:
    lines = ['<div class="wide"><table>']
    if head is not None:
        cells = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in head)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _pictures(run: RunData) -> str:
    titles = {"loss": "Loss", "routing": "Expert routing", "gates": "Gates of the loop"}
    missing = {
        "loss": "" if run.metrics.valid else "No validation was recorded yet.",
        "routing": "" if run.routing or run.metrics.routing else "No routing was recorded.",
        "gates": "" if run.metrics.gates else "No loop gates were recorded.",
    }
    parts = []
    for name, title in titles.items():
        parts.append(f"<h3>{title}</h3>")
        caption = " ".join(filter(None, [_CAPTIONS[name], missing[name]]))
        parts.append(_figure(run.folder / f"{name}.png", caption))
    return "\n".join(parts)


def _figure(picture: Path, caption: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    text = escape(caption)
    return (
        f"<figure><figcaption>{text}</figcaption>"
        f'<img alt="{escape(picture.stem)}: {text}" src="data:image/png;base64,{data}"></figure>'
    )


def _sample(run: RunData) -> str:
    heading = "<h3>Text the model wrote</h3>"
    if run.sample is None:
        return heading + '<p class="dim">There is no sample.txt: none was written yet.</p>'
    return f"{heading}<pre>{escape(run.sample)}</pre>"


def _profiles(run: RunData) -> str:
    """Profiled steps of every rank that recorded some."""
    parts = []
    for rank, profile in found_profiles(run.folder).items():
        rows = [[o.name, f"{o.ms:.3f}", o.calls, f"{100 * o.share:.1f} %"]
                for o in profile.operators[:12]]  # fmt: skip
        parts += [
            f"<h2>Profile of rank {rank}</h2>",
            f"<p>{escape('; '.join(profile.lines()))}. "
            f"Perfetto (ui.perfetto.dev) shows profile/rank-{rank}.trace.json.</p>",
            _table(rows, ["operator", "ms", "calls", "share of the steps"]),
        ]
    return "\n".join(parts)


def _config(run: RunData) -> str:
    heading = "<h2>Configuration</h2>"
    if not run.config:
        return heading + '<p class="dim">There is no run.yaml in the run folder.</p>'
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in run.config.items():
        group, _, rest = key.partition(".")
        groups.setdefault(group if rest else "run", []).append((rest or key, _value(value)))
    sections = [
        f"<section><h3>{escape(group)}</h3>{_table(rows)}</section>"
        for group, rows in groups.items()
    ]
    return f'{heading}<div class="groups">' + "\n".join(sections) + "</div>"


def _differences(runs: Sequence[RunData]) -> str:
    known = [run for run in runs if run.config]
    if len(known) < len(runs):
        lacking = ", ".join(run.name for run in runs if not run.config)
        return f'<p class="dim">Not known: there is no run.yaml in {escape(lacking)}.</p>'
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [_value(run.config[key]) if key in run.config else "not set" for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    if not rows:
        return '<p class="dim">Nothing: all runs have the same configuration.</p>'
    return _table(rows, ["", *(run.name for run in runs)])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return "null" if value is None else str(value)
