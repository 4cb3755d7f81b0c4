"""What a checkpoint costs and what it notices. Rank part; cli/bench.py starts it.

Blocks of steps alternate: without a save, with one that the step waits for, with one in the
background. The stall of a save is what its block takes longer than the plain one beside it.
Afterwards the last checkpoint is damaged a thousand times, a different way each time.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List

import torch.distributed as dist
import xxhash

from loopmoe_train.bench.train import VOCAB, synthetic
from loopmoe_train.checkpoint.load import verify
from loopmoe_train.checkpoint.manifest import newest
from loopmoe_train.checkpoint.save import Saver
from loopmoe_train.checkpoint.state import Trained, capture
from loopmoe_train.checkpoint.tensors import write_shards
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import select
from loopmoe_train.errors import Refused
from loopmoe_train.model.build import layer_names
from loopmoe_train.parallel import groups
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build, checkpoints
from loopmoe_train.train.step import TrainState, train_step

STEPS_PER_BLOCK = 6
CORRUPTIONS = 1000


def measure(run: RunConfig) -> None:
    """Measure on all ranks; rank 0 writes ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    state = build(run, VOCAB, lambda first, count: synthetic(run, first, count))
    trained = Trained(state.model, state.optimizer, state.scheduler, layer_names(run))
    saver = Saver(checkpoints(run), keep=1, timeout_s=60)
    for _ in range(2):
        train_step(state, False)
    seconds: Dict[str, List[float]] = {"plain": [], "waiting": [], "background": []}
    for block in range(run.steps):
        for mode in seconds:
            seconds[mode].append(_block(state, trained, saver, mode))
        if dist.get_rank() == 0:
            shown = {mode: f"{times[-1]:.2f} s" for mode, times in seconds.items()}
            print(f"block {block + 1}/{run.steps}: {shown}", flush=True)
    table = _table(seconds, trained, checkpoints(run))
    if dist.get_rank() == 0:
        table["corruptions"] = _corrupt(checkpoints(run))
        (run_dir(run) / "bench.json").write_text(json.dumps(table, indent=1))
    dist.barrier()
    groups.leave()


def _block(state: TrainState, trained: Trained, saver: Saver, mode: str) -> float:
    """Seconds of a few steps, one save at their beginning; what is left is waited for outside."""
    dist.barrier()
    started = time.perf_counter()
    if mode != "plain":
        shards, common = capture(trained, {"step": state.step, "consumed": state.consumed})
        saver.start(state.step, shards, common, {}, {})
        if mode == "waiting":
            saver.finish()
    for _ in range(STEPS_PER_BLOCK):
        train_step(state, False)
    taken = time.perf_counter() - started
    saver.finish()
    dist.barrier()
    return taken


def _table(seconds: Dict[str, List[float]], trained: Trained, root: Path) -> Dict[str, Any]:
    """Medians; and the cost of hashing beside that of writing, for this rank's file."""
    shards, _ = capture(trained, {"step": 0, "consumed": 0})
    scratch = root / f"scratch-{dist.get_rank()}"
    started = time.perf_counter()
    write_shards(scratch, shards)
    written = time.perf_counter() - started
    scratch.unlink()
    started = time.perf_counter()
    for shard in shards:
        xxhash.xxh3_128_hexdigest(shard.tensor.view(-1).numpy())
    hashed = time.perf_counter() - started
    plain = seconds["plain"]
    stalls = {
        mode: [later - before for later, before in zip(times, plain)]
        for mode, times in seconds.items()
        if mode != "plain"
    }
    return {
        "step_s": statistics.median(plain) / STEPS_PER_BLOCK,
        "bytes": sum(shard.tensor.nbytes for shard in shards),
        "stall_s": {mode: statistics.median(values) for mode, values in stalls.items()},
        "stall_range_s": {mode: [min(values), max(values)] for mode, values in stalls.items()},
        "blocks": len(plain),
        "write_s": written,
        "hash_s": hashed,
    }


def _corrupt(root: Path) -> Dict[str, int]:
    """Flip, cut or lengthen a file of the newest checkpoint, verify, put it right again."""
    folder = newest(root)
    assert folder is not None
    contents = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    numbers, found = random.Random(1), 0
    for index in range(CORRUPTIONS):
        # Every file as often as the others, though most bytes are in the tensors.
        path = list(contents)[index % len(contents)]
        changed = bytearray(contents[path])
        kind = numbers.choice(("flip", "flip", "flip", "cut", "lengthen"))
        if kind == "flip":
            changed[numbers.randrange(len(changed))] ^= 1 << numbers.randrange(8)
        elif kind == "cut":
            del changed[numbers.randrange(len(changed)) :]
        else:
            changed += b"\0"
        path.write_bytes(changed)
        try:
            verify(folder)
        except Refused:
            found += 1
        path.write_bytes(contents[path])
    verify(folder)
    return {"planted": CORRUPTIONS, "found": found}


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
