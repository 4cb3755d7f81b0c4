"""Measure on this machine.

usage: loopmoe bench train [--against megatron] [--json FILE] [setting=value ...]
       loopmoe bench resume [--kills N] [--json FILE] [setting=value ...]
       loopmoe bench start [--rounds N] [--json FILE] [setting=value ...]
       loopmoe bench checkpoint [--json FILE] [setting=value ...]
       loopmoe bench iter_adaln [--json FILE] [setting=value ...]
       loopmoe bench pipeline [--json FILE] [setting=value ...]
       loopmoe bench sim [--rows CSV] [--json OUT]
       loopmoe bench ops [--quick] [--json FILE] [setting=value ...]
       loopmoe bench moe [--json FILE] [setting=value ...]
       loopmoe bench kernels [--quick] [--json FILE] [setting=value ...]
       loopmoe bench optimizer [--quick] [--json FILE] [setting=value ...]

  train   tokens/s of 2 ranks with expert parallelism against megatron-core's own GPTModel
          (local specs, DotProductAttention, SequentialMLP), and against the same given
          torch's fused attention and grouped matrix product; interleaved pairs, medians.
          megatron is the default peer and the only one.
  resume  time from the kill of a random rank to its notice and to the next step, 10 kills.
  start   from `loopmoe train` to the end of the first step, by launcher, in 5 rounds that take
          turns: local, torchrun, mpirun, torchrun with a command for each of two nodes (here), and
          mpirun over launcher.hosts=[a,b] if those are given.
  checkpoint  what a save costs the steps around it, and how many of 1,000 corruptions are found.
  iter_adaln  what IterAdaLN costs of FLOPs, a step's time and what is kept for backward, and what
          its fused norm saves; loopmoe_tiny in one process, model=NAME for another.
  pipeline  idle time and memory of the loop pipeline against its body on one stage and against
          untied layers: by replay of the schedules, of core's schedules on ranks that wait
          instead of computing, and of a real model on two stages.
  sim     the simulator on published runs beside three baselines; --rows: on those of another file
          with the same columns, --json: its prediction, or why there is none, for every row.
  ops     rates of matrix products, grouped products, attention and vector operators by size, in
          one process (cluster.devices=2: in two at once, as training shares a processor), in 7
          rounds (steps=7); --quick: a few small ones. --json FILE writes the table for the
          simulator: cluster.efficiency.table=FILE. On a GPU: cluster=h100 precision=bf16.
  moe     a MoE layer, forward and backward, against megatron-core's on the same weights, in one
          process; and the bytes that every dispatcher sends between nodes, on four ranks.
  kernels  how near the ops of loopmoe_kernels, forward and backward, come to the bandwidth of a
          copy measured in the same rounds (15: steps=15), beside their definitions as torch runs
          and compiles them and installed peers; --quick: one small size. The picture is
          kernels.png in the run folder, or FILE with .png. On a GPU: cluster=h100 precision=bf16.
  optimizer  AdamW on the host, elements/s: DeepSpeed's where it is installed, torch's one by one
          (which core uses there), foreach and fused, and both as optim.offload=cpu runs them;
          15 rounds (steps=15), one process; launcher.threads_per_rank=N for more threads.

Every benchmark prints a table and ends with one line `headline: name=value ...`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused

INTERVAL_S = 300  # what a save's stall is set against
_ITER_ADALN = [
    "name=bench-iter-adaln", "cluster.devices=1", "parallel=data", "steps=15",
    "optim.warmup_steps=1",
]  # fmt: skip
_OPS = ["name=bench-ops", "cluster.devices=1", "parallel=data", "steps=7", "optim.warmup_steps=1"]
_KERNELS = [
    "name=bench-kernels", "cluster.devices=1", "parallel=data", "steps=15", "optim.warmup_steps=1",
]  # fmt: skip
_OPTIMIZER = [
    "name=bench-optimizer", "cluster.devices=1", "parallel=data", "steps=15",
    "optim.warmup_steps=1",
]  # fmt: skip
_MOE_LAYER = [
    "name=bench-moe-layer", "cluster.devices=1", "parallel=data", "steps=15",
    "optim.warmup_steps=1", "micro_batch_size=4", "global_batch_size=4", "model.moe.num_experts=64",
    "model.moe.top_k=8",
]  # fmt: skip
_EXCHANGE = [
    "name=bench-exchange", "cluster.devices=4", "parallel=data", "steps=9", "optim.warmup_steps=1",
    "parallel.expert_parallel_size=4", "micro_batch_size=4", "global_batch_size=16",
    "model.moe.num_experts=64", "model.moe.top_k=8", "model.hidden_size=256",
]  # fmt: skip
_PIPELINE = [
    "name=bench-pipeline", "cluster.devices=4", "parallel=data", "steps=5", "optim.warmup_steps=1",
    "micro_batch_size=1", "global_batch_size=4",
]  # fmt: skip
_PIPELINE_MODEL = [
    "name=bench-pipeline-model", "cluster.devices=2", "parallel=pipeline", "steps=7",
    "optim.warmup_steps=1", "model.body_layers=2", "model.loop.iterations=4",
    "micro_batch_size=1", "global_batch_size=8",
]  # fmt: skip


def run(argv: List[str]) -> int:
    """Run one benchmark; returns the exit code."""
    if argv[:1] == ["sim"]:
        from loopmoe_train.bench import sim

        sim.show(sim.run(**sim.arguments(argv[1:])))
        return 0
    names, overrides, out, kills, rounds, quick = [], [], None, 10, 5, False
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
            kills = _count(word, next(words, ""))
        elif word == "--rounds":
            rounds = _count(word, next(words, ""))
        elif word == "--quick":
            quick = True
        elif "=" in word:
            overrides.append(word)
        else:
            names.append(word)
    if out is not None and not os.access(os.path.dirname(os.path.abspath(out)), os.W_OK):
        raise Refused(f"--json {out}: its folder cannot be written to", "name another file")
    show: Callable[[Dict[str, Any]], None]
    if names == ["train"]:
        own = ["experiment=bench_train", *overrides]
        table, show = _on_ranks("loopmoe_train.bench.train", own, _whole_layers), _show
    elif names == ["checkpoint"]:
        own = ["experiment=bench_train", "name=bench-checkpoint", *overrides]
        table, show = _on_ranks("loopmoe_train.bench.checkpoint", own), _show_checkpoint
    elif names == ["iter_adaln"]:
        own = [*_ITER_ADALN, *overrides]
        table = _on_ranks("loopmoe_train.bench.iter_adaln", own, _whole_layers)
        show = _show_iter_adaln
    elif names == ["pipeline"]:
        from loopmoe_train.bench import pipeline

        own = [*_PIPELINE, *overrides]
        waits = _on_ranks("loopmoe_train.bench.pipeline_waits", own)
        real = _on_ranks("loopmoe_train.bench.pipeline_model", [*_PIPELINE_MODEL, *overrides])
        table, show = {"grid": pipeline.grid(), "waits": waits, "model": real}, pipeline.show
    elif names == ["moe"]:
        from loopmoe_train.bench import moe_show

        layer = _on_ranks("loopmoe_train.bench.moe_layer", [*_MOE_LAYER, *overrides])
        across = _on_ranks("loopmoe_train.bench.exchange", [*_EXCHANGE, *overrides])
        table, show = {"layer": layer, "exchange": across}, moe_show.show
    elif names == ["optimizer"]:
        from loopmoe_train.bench import optimizer_show

        own = [*_OPTIMIZER, *(["steps=2"] if quick else []), *overrides]
        table = _on_ranks("loopmoe_train.bench.optimizer", own, options={"quick": quick})
        show = optimizer_show.show
    elif names == ["ops"]:
        return _ops(overrides, quick, out)
    elif names == ["kernels"]:
        return _kernels(overrides, quick, out)
    elif names == ["start"]:
        from loopmoe_train.bench import start

        table, show = start.measure(overrides, rounds), start.show
    elif names == ["resume"]:
        from loopmoe_train.bench import resume
        from loopmoe_train.launcher.supervise import launch

        table, show = resume.measure(overrides, kills, launch), resume.show
    else:
        raise Refused(
            f"bench {' '.join(names)}: there is no such benchmark",
            "use `bench train`, `bench resume`, `bench start`, `bench checkpoint`, "
            "`bench iter_adaln`, `bench pipeline`, `bench moe`, `bench ops`, `bench kernels` or "
            "`bench optimizer`",
        )
    if out is not None:
        Path(out).write_text(json.dumps(table, indent=1) + "\n")
    show(table)
    return 0


def _ops(overrides: List[str], quick: bool, out: Optional[str]) -> int:
    from loopmoe_train.bench import ops_show
    from loopmoe_train.sim.table import parse

    if out is not None and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
        raise Refused(f"--json {out}: no file can be there", "name a file in a folder that exists")
    own = [*_OPS, *(["steps=2"] if quick else []), *overrides]
    found = _on_ranks("loopmoe_train.bench.ops", own, options={"quick": quick})
    table = parse(json.dumps(found), "bench.json")
    if out is not None:
        Path(out).write_text(table.text())
    ops_show.show(table)
    return 0


def _kernels(overrides: List[str], quick: bool, out: Optional[str]) -> int:
    from loopmoe_train.bench import kernels_show
    from loopmoe_train.config.compose import compose
    from loopmoe_train.config.run_file import run_dir
    from loopmoe_train.observe.plots.kernels import plot_kernels

    own = [*_KERNELS, *(["steps=2"] if quick else []), *overrides]
    found = _on_ranks("loopmoe_train.bench.kernels", own, options={"quick": quick})
    picture = run_dir(compose(own)) / "kernels.png"
    if out is not None:
        Path(out).write_text(json.dumps(found, indent=1) + "\n")
        picture = Path(out).with_suffix(".png")
    title = f"{found['hardware']}, {found['precision']}; tokens over hidden size"
    plot_kernels(found["rows"], kernels_show.STREAMS, picture, title)
    print(f"\npicture: {picture}")
    kernels_show.show(found)
    return 0


def _count(option: str, word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise Refused(f"{option} {word}: not a number from 1 on", f"e.g. {option} 10")
    return int(word)


def _whole_layers(config: RunConfig) -> None:
    """Refuse layouts that cut layers, sequences or the model: both sides have whole ones."""
    parallel = config.parallel
    for name in ("tensor_parallel_size", "context_parallel_size", "pipeline_parallel_size"):
        if getattr(parallel, name) > 1:
            raise Refused(
                f"parallel.{name}={getattr(parallel, name)}: this benchmark is for data and expert "
                "parallelism",
                "leave it out; `loopmoe bench pipeline` measures pipelines",
            )


def _on_ranks(
    module: str,
    overrides: List[str],
    check: Optional[Callable[[RunConfig], None]] = None,
    options: Optional[Dict[str, Any]] = None,
) -> Any:
    """Launch a benchmark; what it wrote. ``options`` are no settings: a file beside run.yaml."""
    from loopmoe_train.config.compose import compose
    from loopmoe_train.config.run_file import run_dir, save
    from loopmoe_train.launcher.supervise import launch
    from loopmoe_train.train.claim import claim

    config = compose(overrides)
    if check is not None:
        check(config)
    claim(config)
    save(config, run_dir(config) / "run.yaml")
    if options is not None:
        (run_dir(config) / "options.json").write_text(json.dumps(options))
    launch(config, module=module)
    return json.loads((run_dir(config) / "bench.json").read_text())


def _show_checkpoint(table: Dict[str, Any]) -> None:
    stall, corruptions = table["stall_s"], table["corruptions"]
    share = {mode: stall[mode] / INTERVAL_S for mode in stall}
    print(f"\n{table['bytes'] / 1e6:.1f} MB on rank 0, medians of {table['blocks']} blocks")
    print(f"step without a save    {table['step_s']:.3f} s")
    for mode, text in (("waiting", "step waits for it"), ("background", "written behind")):
        low, high = table["stall_range_s"][mode]
        print(f"stall, {text:17} {stall[mode]:.3f} s ({low:.3f} to {high:.3f}), "
              f"{100 * share[mode]:.2f} % of a save every {INTERVAL_S // 60} minutes")  # fmt: skip
    hashing = table["hash_s"] / table["write_s"]
    print(f"hashing                {100 * hashing:.1f} % of the time of writing")
    print(f"corruptions            {corruptions['found']} of {corruptions['planted']} found")
    print(
        f"headline: stall_sync_s={stall['waiting']:.3f} stall_async_s={stall['background']:.3f} "
        f"hash_share={hashing:.3f} corruptions_found={corruptions['found']} "
        f"corruptions_planted={corruptions['planted']}"
    )


def _show(table: Dict[str, Any]) -> None:
    print(f"\n{table['parameters'] / 1e6:.2f}M parameters, medians of {table['pairs']} pairs")
    print(f"{'':22}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ours / it':>12}{'range':>16}")
    names = {"ours": "loopmoe_train", "core": "megatron-core", "core_given": "  + fused, grouped"}
    for side, row in table["sides"].items():
        span = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        print(f"{names[side]:22}{row['tokens_per_s']:10,.0f}{row['low']:10,.0f}{row['high']:10,.0f}"
              f"{row['ours_over_it']:12.3f}{span:>16}")  # fmt: skip
    parts = [f"{kind} {share:.0%}" for kind, share in table["where"].items() if share]
    print(f"a step of ours on rank 0: {', '.join(parts)}")
    sides = table["sides"]
    print(
        f"headline: ratio={sides['core']['ours_over_it']:.3f} "
        f"ratio_given={sides['core_given']['ours_over_it']:.3f} "
        f"tokens_per_s={sides['ours']['tokens_per_s']:.0f} "
        f"core_tokens_per_s={sides['core']['tokens_per_s']:.0f}"
    )


def _show_iter_adaln(table: Dict[str, Any]) -> None:
    names = {
        "none": "no conditioning",
        "composed": "IterAdaLN, composed norm",
        "fused": "IterAdaLN, fused norm",
    }
    print(f"\n{table['model']}, medians of {table['blocks']} blocks")
    print(f"{'':26}{'step':>10}{'lowest':>10}{'highest':>10}{'kept for backward':>20}")
    for side, row in table["sides"].items():
        print(f"{names[side]:26}{row['step_s']:8.3f} s{row['low']:8.3f} s{row['high']:8.3f} s"
              f"{row['kept_bytes'] / 2**20:16.1f} MiB")  # fmt: skip
    kept = {side: row["kept_bytes"] for side, row in table["sides"].items()}
    memory = 1 - kept["none"] / kept["fused"]
    saved = 1 - kept["fused"] / kept["composed"]

    def share(figures: Dict[str, float]) -> str:
        return f"{figures['median']:.1%} ({figures['low']:.1%} to {figures['high']:.1%})"

    print(f"share of FLOPs            {table['flops_share']:.1%}")
    print(f"share of a step, composed {share(table['time_share'])}")
    print(f"share of a step, fused    {share(table['fused_time_share'])}")
    print(f"the fused norm saves      {share(table['fused_saves'])} of a step, {saved:.1%} of what "
          "is kept")  # fmt: skip
    print(
        f"headline: flops_share={table['flops_share']:.4f} "
        f"time_share={table['fused_time_share']['median']:.4f} kept_share={memory:.4f} "
        f"fused_saves_time={table['fused_saves']['median']:.4f} fused_saves_kept={saved:.4f}"
    )
