"""All that is measured without gradients, in one layout after another. Runs on ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, List

import numpy as np
import torch.distributed as dist

from loopmoe_train.evaluation.agreement import top_agreement
from loopmoe_train.evaluation.forward import next_token
from loopmoe_train.evaluation.perplexity import HeldOut, validate
from loopmoe_train.evaluation.probe import probe, training_mtp_losses, training_routing
from loopmoe_train.evaluation.sample import sample_text
from loopmoe_train.model.iterations import running
from loopmoe_train.parallel import groups
from loopmoe_train.train.run import build
from loopmoe_train.train.step import train_step
from tests.parity import worker


class _Letters:
    """A token for each of 95 letters; 95 ends documents."""

    eod_id = 95

    def encode(self, text: str) -> List[int]:
        return [ord(letter) - 32 for letter in text]

    def decode(self, ids: List[int]) -> str:
        return "".join(chr(32 + token) for token in ids)


def measure(layouts: Dict[str, List[str]]) -> Dict[str, Dict[str, Any]]:
    """Figures of every layout after one step of training."""
    return {name: _of(settings) for name, settings in layouts.items()}


def _of(settings: List[str]) -> Dict[str, Any]:
    worker.join()
    run = worker.golden(
        [f"cluster.devices={dist.get_world_size()}", "model.mtp_layers=1", "eval_batches=0",
         "observe.sample_tokens=12", *settings]
    )  # fmt: skip
    groups.make_groups(run, worker.timedelta(seconds=120))
    groups.seed_rank(run.seed)
    state = build(run, worker.VOCAB, lambda first, count: worker.samples(run, first, count))
    train_step(state, False)
    # 11 windows: the last pass, and the last group of a pipeline, reach past the end.
    loader: Any = SimpleNamespace(
        batch=lambda first, count: worker.samples(run, first, count),
        order=SimpleNamespace(samples_per_epoch=11),
    )
    held_out = [HeldOut("text", loader, True, 0.0, 1)]
    whole = validate(run, state.model, held_out, np.ones(worker.VOCAB, dtype=np.int64)).whole
    with running(state.model, 1):
        once = validate(run, state.model, held_out, np.ones(worker.VOCAB, dtype=np.int64)).whole
    greedy = [5, 17, 3]
    for _ in range(3):
        best = next_token(state.model, greedy, run.sequence_length, lambda x: int(x.argmax()))
        greedy.append(best)
    routing, gates = probe(run, state.model, loader, 1)
    return dict(
        loss=whole.loss,
        tokens=whole.tokens,
        once=once.loss,
        greedy=greedy,
        text=sample_text(run, state.model, _Letters()),  # over several chunks of the sequence
        agreement=top_agreement(run, state.model, loader, [1, 2]),
        load={f"{e.layer}": e.load.tolist() for e in routing.layers},
        overlap={f"{e.layer}": e.overlap.tolist() for e in routing.layers if e.overlap is not None},
        gates=gates,
        trained=training_routing(state.model),
        ahead=training_mtp_losses(4 // max(1, dist.get_world_size() // 2)),
    )
