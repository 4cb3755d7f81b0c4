"""Loss and bits per byte of trained runs on the whole of their held-out text.

usage: loopmoe evaluate RUN [RUN ...] [--json FILE]

  loopmoe evaluate runs/loopmoe_tiny runs/vanilla_tiny

Reads the newest checkpoint of each run folder on the layout it was trained on. gzip -9 of the
same text stands beside it as a yardstick. Where a run has several validation sets (data.mixture,
data.validation) each stands below. The figures also go to RUN/evaluation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

from loopmoe_train.errors import Refused


def run(argv: List[str]) -> int:
    """Evaluate every run named, print a table; returns the exit code."""
    from loopmoe_train.config.run_file import load, run_dir
    from loopmoe_train.data.mixture import open_mixture
    from loopmoe_train.launcher.supervise import launch
    from loopmoe_train.train.preflight import check_machine, check_text, newest_manifest

    words, out = list(argv), None
    if "--json" in words:
        at = words.index("--json")
        if at + 1 == len(words):
            raise Refused("--json: no file named", "loopmoe evaluate RUN --json FILE")
        out = Path(words[at + 1])
        del words[at : at + 2]
    wrong = [w for w in words if (w.startswith("-") or "=" in w) and not Path(w).is_dir()]
    if wrong or not words:
        raise Refused(
            f"{wrong[0]}: not a run folder" if wrong else "no run folder was given",
            "loopmoe evaluate RUN [RUN ...] [--json FILE]",
        )
    configs = [load(Path(word) / "run.yaml") for word in words]
    for config in configs:
        check_machine(config)
        if newest_manifest(config) is None:
            raise Refused(f"{run_dir(config)} has no checkpoint", "train it, or let it save")
        check_text(config, open_mixture(config))
    results: Dict[str, Any] = {}
    for word, config in zip(words, configs):
        # Logs of its own: the run may be training meanwhile.
        launch(config, module="loopmoe_train.train.evaluate", logs="logs/evaluate")
        results[word] = json.loads((Path(word) / "evaluation.json").read_text())
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    _show(results)
    return 0


def _show(results: Dict[str, Any]) -> None:
    rows = []
    for name, result in results.items():
        rows.append((name, result))
        rows += [(f"  {part}", {"step": result["step"], **figures})
                 for part, figures in result.get("sets", {}).items()]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    print(f"{'':{width}}{'step':>8}{'tokens':>10}{'loss':>9}{'bits/byte':>11}{'gzip -9':>9}")
    for name, row in rows:
        print(
            f"{name:{width}}{row['step']:8,}{row['tokens']:10,}{row['loss']:9.4f}"
            f"{row['bits_per_byte']:11.4f}{row['gzip9_bits_per_byte']:9.4f}"
        )
