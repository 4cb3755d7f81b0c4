"""Loss and bits per byte of trained runs on the whole of their held-out text.

usage: loopmoe evaluate RUN [RUN ...] [loop.iterations=1..6] [--json FILE]

  loopmoe evaluate runs/loopmoe_tiny runs/vanilla_tiny
  loopmoe evaluate runs/loopmoe_tiny loop.iterations=1..6   the loop run so often instead, and
                                                            how many tokens keep their prediction

Reads the newest checkpoint of each run folder on the layout it was trained on. gzip -9 of the
same text stands beside it as a yardstick. Where a run has several validation sets (data.mixture,
data.validation) each stands below. The figures also go to RUN/evaluation.json.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List

from loopmoe_train.config.schema import RunConfig
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
    asked = _iterations(words)
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
        _check_loop(config, asked)
    if asked:
        os.environ["LOOPMOE_ITERATIONS"] = ",".join(map(str, asked))
    results: Dict[str, Any] = {}
    for word, config in zip(words, configs):
        # Logs of its own: the run may be training meanwhile.
        launch(config, module="loopmoe_train.train.evaluate", logs="logs/evaluate")
        results[word] = json.loads((Path(word) / "evaluation.json").read_text())
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    _show(results)
    return 0


def _iterations(words: List[str]) -> List[int]:
    """Take ``loop.iterations=...`` out of ``words``: 1..4, or 1,2,8."""
    found = [w for w in words if w.startswith("loop.iterations=") and not Path(w).is_dir()]
    counts: List[int] = []
    for word in found:
        words.remove(word)
        match = re.fullmatch(r"(\d+)\.\.(\d+)|\d+(,\d+)*", word.partition("=")[2])
        if match is None:
            raise Refused(f"{word}: not numbers of iterations", "loop.iterations=1..6, or =1,2,8")
        if match[1]:
            counts += range(int(match[1]), int(match[2]) + 1)
        else:
            counts += map(int, match[0].split(","))
        if not counts or min(counts) < 1:
            raise Refused(f"{word}: there is nothing below 1", "loop.iterations=1..6, or =1,2,8")
    return sorted(set(counts))


def _check_loop(config: RunConfig, asked: List[int]) -> None:
    loop, moe = config.model.loop, config.model.moe
    if asked and loop.iterations == 1:
        raise Refused(
            f"{config.name} has no loop (model.loop.iterations=1)", "leave out loop.iterations="
        )
    if asked and max(asked) > loop.iterations and moe.balance_over == "visit":
        raise Refused(
            f"{config.name} has a selection bias for each of its {loop.iterations} iterations and "
            f"none for iteration {max(asked)}",
            f"use loop.iterations=1..{loop.iterations}",
        )


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
    for name, result in results.items():
        counts = result.get("by_iterations", [])
        if counts:
            print(f"\n{name}, the loop run")
            print(f"{'times':>8}{'loss':>9}{'bits/byte':>11}{'same token':>12}")
        for row in counts:
            print(
                f"{row['iterations']:8}{row['loss']:9.4f}{row['bits_per_byte']:11.4f}"
                f"{row['agreement']:12.1%}"
            )
