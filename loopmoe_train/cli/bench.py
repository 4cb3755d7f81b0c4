"""Measure on this machine.

usage: loopmoe bench train [--against megatron] [--json FILE] [setting=value ...]
       loopmoe bench resume [--kills N] [--json FILE] [setting=value ...]

  train   tokens/s of 2 ranks with expert parallelism against megatron-core's own GPTModel
          (local specs, DotProductAttention, SequentialMLP), and against the same given
          torch's fused attention and grouped matrix product; interleaved pairs, medians.
  resume  time from the kill of a random rank to its notice and to the next step, 10 kills.

Every benchmark prints a table and ends with one line `headline: name=value ...`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List

from loopmoe_train.errors import Refused


def run(argv: List[str]) -> int:
    """Run one benchmark; returns the exit code."""
    names, overrides, out, kills = [], [], None, 10
    words = iter(argv)
    for word in words:
        if word == "--json":
            out = next(words, None)
            if out is None:
                raise Refused("--json: no file named", "loopmoe bench train --json FILE")
        elif word == "--against":
            peer = next(words, None)
            if peer != "megatron":
                raise Refused(f"--against {peer}: unknown peer", "use --against megatron")
        elif word == "--kills":
            kills = _count(next(words, ""))
        elif "=" in word:
            overrides.append(word)
        else:
            names.append(word)
    show: Callable[[Dict[str, Any]], None]
    if names == ["train"]:
        table, show = _train(overrides), _show
    elif names == ["resume"]:
        from loopmoe_train.bench import resume
        from loopmoe_train.launcher.supervise import launch

        table, show = resume.measure(overrides, kills, launch), resume.show
    else:
        raise Refused(
            f"bench {' '.join(names)}: there is no such benchmark", "use `bench train` or `resume`"
        )
    if out is not None:
        Path(out).write_text(json.dumps(table, indent=1) + "\n")
    show(table)
    return 0


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise Refused(f"--kills {word}: not a number of kills", "loopmoe bench resume --kills 10")
    return int(word)


def _train(overrides: List[str]) -> Dict[str, Any]:
    from loopmoe_train.config.compose import compose
    from loopmoe_train.config.run_file import run_dir, save
    from loopmoe_train.launcher.supervise import launch

    config = compose(["experiment=bench_train", *overrides])
    save(config, run_dir(config) / "run.yaml")
    launch(config, module="loopmoe_train.bench.train")
    table: Dict[str, Any] = json.loads((run_dir(config) / "bench.json").read_text())
    return table


def _show(table: Dict[str, Any]) -> None:
    print(f"\n{table['parameters'] / 1e6:.2f}M parameters, medians of {table['pairs']} pairs")
    print(f"{'':22}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ours / it':>12}{'range':>16}")
    names = {"ours": "loopmoe_train", "core": "megatron-core", "core_given": "  + fused, grouped"}
    for side, row in table["sides"].items():
        span = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(f"{names[side]:22}{row['tokens_per_s']:10,.0f}{row['low']:10,.0f}{row['high']:10,.0f}"
              f"{row['ours_over_it']:12.3f}{span:>16}")  # fmt: skip
    sides = table["sides"]
    print(
        f"headline: ratio={sides['core']['ours_over_it']:.3f} "
        f"ratio_given={sides['core_given']['ours_over_it']:.3f} "
        f"tokens_per_s={sides['ours']['tokens_per_s']:.0f} "
        f"core_tokens_per_s={sides['core']['tokens_per_s']:.0f}"
    )
