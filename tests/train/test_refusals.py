"""What cannot work is refused in one line before a process is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.small_run import one_line, train

REFUSED = {
    "modle=loopmoe_tiny": "did you mean model",
    "model=loopmoe_tinny": "loopmoe_tiny",
    "optim.learning_rate=1": "optim.lr",
    "steps=many": "steps",
    "model.moe.top_k=99": "top_k=99 is more than",
    "parallel.expert_parallel_size=3": "expert_parallel_size=3 does not divide",
    "global_batch_size=6": "not a multiple",
    "model.moe.expert_hidden_size=62": "multiple of 4",
    "cluster=h100 cluster.devices=2": "no CUDA device",
    "experiment=nope": "bench_train",
    "--steps": "write steps=VALUE",
    "data.source=/nowhere": "holds another dataset",
    "data.source=/nowhere data.path=new": "does not exist",
    "sequence_length=4000000": "lower sequence_length",
    "tokenizer.vocab_size=430": "holds another dataset",
    "model.vocab_size=100": "below the tokenizer's",
    "checkpoint.resume=/nowhere": "not a whole checkpoint",
    "name=../up": "must be one folder name",
    "runs_dir=texts/json-decoder.py": "cannot be used as a run folder",
    "name=first": "already trained for 6 steps",
    "name=first optim=muon steps=9": "optimizer was 'adamw' when it was saved, is 'muon' now",
    "name=first checkpoint.resume=none": "a new run would mix",
    "name=first checkpoint.resume=runs/second/checkpoints/step-3 steps=9": "would mix",
    "name=first seed=2 steps=9": "seed was 1234 when it was saved, is 2 now",
    "name=first data.eod_mask_loss=true steps=9": "eod_mask_loss was False when it was saved",
    "checkpoint.resume=runs/first/checkpoints/step-3 data.reset_attention_mask=true": (
        "reset_attention_mask was False when it was saved, is True now"
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line_before_anything_starts(place: Path, run: Path, words: str) -> None:
    named = any(word.startswith("name=") for word in words.split())
    before = set(place.rglob("*"))
    name = f"refused-{list(REFUSED).index(words)}"
    done = train(place, *([] if named else [f"name={name}"]), *words.split())
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert REFUSED[words] in one_line(done)
    new = {str(path.relative_to(place)) for path in set(place.rglob("*")) - before}
    assert new <= {f"runs/{name}", f"runs/{name}/.lock", "new", "new/.lock"}, new
