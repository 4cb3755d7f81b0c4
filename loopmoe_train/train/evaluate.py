"""One rank of ``loopmoe evaluate``: build -> restore -> the whole validation split -> a file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from loopmoe_train.checkpoint.manifest import newest
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import select
from loopmoe_train.errors import Refused
from loopmoe_train.evaluation.perplexity import validate
from loopmoe_train.parallel import groups
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build, checkpoints, restore
from loopmoe_train.train.stop import end_with_parent
from loopmoe_train.train.text import open_text

RESULT = "evaluation.json"


def evaluate(run: RunConfig) -> None:
    """Measure the newest checkpoint of ``run`` on all of its validation text.

    Writes ``evaluation.json`` into the run folder: step, loss (nats per token), bits_per_byte,
    tokens (predicted) and gzip9_bits_per_byte of the same text.

    Raises:
        Refused: there is no checkpoint, or it does not fit.
    """
    end_with_parent()
    if newest(checkpoints(run)) is None:
        raise Refused(f"{run_dir(run)} has no checkpoint", "train it, or let the training save")
    run.checkpoint.resume, run.eval_batches = "auto", 0
    select(run.cluster.device)
    groups.join(run)
    try:
        text = open_text(run)
        state = build(run, text.vocab_size, text.train.batch)
        restore(state, text)
        result = validate(run, state.model, text.valid, text.token_bytes)
        if dist.get_rank() == 0:
            record = {"step": state.step, **asdict(result)}
            record["gzip9_bits_per_byte"] = text.gzip_bits_per_byte
            _write(run_dir(run) / RESULT, record)
    finally:
        groups.leave()


def _write(path: Path, record: dict) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    leave(main(sys.argv[1:], evaluate))
