"""One rank of ``loopmoe evaluate``: build -> restore -> the whole validation split -> a file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any, Dict

import torch.distributed as dist

from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import select
from loopmoe_train.evaluation.agreement import top_agreement
from loopmoe_train.evaluation.perplexity import Validations, gzip_bits_per_byte, validate
from loopmoe_train.evaluation.wish import Wish
from loopmoe_train.files import write_text
from loopmoe_train.model.iterations import running
from loopmoe_train.parallel import groups
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build, restore
from loopmoe_train.train.step import TrainState
from loopmoe_train.train.text import Text, open_text

RESULT = "evaluation.json"


def evaluate(run: RunConfig) -> None:
    """Measure the newest checkpoint of ``run`` on all of its validation text.

    Writes ``evaluation.json`` into the run folder: step, loss (nats per token), bits_per_byte,
    tokens (predicted) and gzip9_bits_per_byte of the same text; ``sets`` has the same figures of
    each validation set by name, where there are several. With numbers of iterations asked for,
    ``by_iterations`` has them for so many iterations of the loop, and ``agreement``: the share of
    held-out tokens whose most probable successor is that of the trained number of iterations.
    With tasks asked for, ``tasks`` has their metrics, also in every row of ``by_iterations``.

    Raises:
        Refused: there is no whole checkpoint, or it does not fit.
    """
    run.checkpoint.resume, run.eval_batches = "auto", 0
    select(run.cluster.device)
    groups.join(run)
    try:
        text = open_text(run)
        wish = Wish.from_environment()
        asked = wish.iterations
        deepest = max([run.model.loop.iterations, *asked])
        state = build(_with_iterations(run, deepest), text.vocab_size, text.train.batch)
        restore(state, text, saved_by=run)
        result = _validate(run, state, text, run.model.loop.iterations)
        record = {"step": state.step, **_record(run, result, text)}
        record |= _tasks(run, state, text, wish, run.model.loop.iterations)
        if asked:
            agreement = top_agreement(run, state.model, text.probe, asked)
            record["by_iterations"] = [
                dict(iterations=count, **asdict(_validate(run, state, text, count).whole),
                     agreement=share, **_tasks(run, state, text, wish, count))
                for count, share in zip(asked, agreement)
            ]  # fmt: skip
        if dist.get_rank() == 0:
            write_text(run_dir(run) / RESULT, json.dumps(record, indent=1) + "\n")
    finally:
        groups.leave()


def _with_iterations(run: RunConfig, count: int) -> RunConfig:
    """A copy whose loop runs ``count`` times: the same weights, more or fewer visits."""
    loop = replace(run.model.loop, iterations=count, min_iterations=None)
    return replace(run, model=replace(run.model, loop=loop))


def _validate(run: RunConfig, state: TrainState, text: Text, count: int) -> Validations:
    with running(state.model, count):
        return validate(run, state.model, text.valid, text.token_bytes)


def _tasks(run: RunConfig, state: TrainState, text: Text, wish: Wish, count: int) -> Dict[str, Any]:
    if wish.tasks is None:
        return {}
    from loopmoe_train.evaluation.harness import score_tasks  # needs the extra `eval`

    with running(state.model, count):
        return {"tasks": score_tasks(run, state.model, text.tokenizer, wish.tasks)}


def _record(run: RunConfig, result: Validations, text: Text) -> Dict[str, Any]:
    sets = {
        one.name: {
            **asdict(result.sets[one.name]),
            "gzip9_bits_per_byte": one.gzip_bits_per_byte,
        }
        for one in text.valid
        if one.name in result.sets
    }
    yardstick = gzip_bits_per_byte(run, text.valid, text.tokenizer)
    whole = {**asdict(result.whole), "gzip9_bits_per_byte": yardstick}
    return {**whole, "sets": sets} if sets else whole


if __name__ == "__main__":
    leave(main(sys.argv[1:], evaluate))
