"""Layouts that cannot be are refused in one line with the reason, before anything is launched."""

from __future__ import annotations

from typing import List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused

FOUR = ["cluster.devices=4", "parallel=data", "model.body_layers=4", "global_batch_size=32"]
PIPELINE = ["parallel.pipeline_parallel_size=2"]

REFUSED = [
    # settings, words that the line must hold
    (["parallel.tensor_parallel_size=3"], ["tensor_parallel_size=3", "cluster.devices=4"]),
    (["parallel.tensor_parallel_size=4", *PIPELINE], ["= 8 does not divide cluster.devices=4"]),
    (["parallel.expert_tensor_parallel_size=2", "parallel.expert_parallel_size=4"],
     ["expert_tensor_parallel_size=2 x parallel.expert_parallel_size=4 = 8"]),
    (["parallel.tensor_parallel_size=2", "model.attention.num_heads=3"],
     ["num_heads=3 is not a multiple of parallel.tensor_parallel_size=2"]),
    (["parallel.tensor_parallel_size=2", "model.attention.q_lora_rank=63"], ["q_lora_rank=63"]),
    (["parallel.tensor_parallel_size=2", "model.attention.kv_lora_rank=63"], ["kv_lora_rank"]),
    (["parallel.tensor_parallel_size=2", "tokenizer.vocab_size=4097"], ["vocab_size=4097"]),
    (["parallel.tensor_parallel_size=2", "sequence_length=255"],
     ["sequence_length=255", "use 256"]),
    (["parallel.expert_tensor_parallel_size=2", "model.moe.expert_hidden_size=100"],
     ["expert_hidden_size=100", "multiple of 4 x"]),
    (["parallel.context_parallel_size=2", "sequence_length=250"], ["sequence_length=250", "252"]),
    (["parallel.context_parallel_size=2", "parallel.context_parallel=ring"],
     ["context_parallel=ring", "ulysses"]),
    (["parallel.context_parallel_size=4", "parallel.context_parallel=ulysses",
      "model.attention.num_heads=6"], ["num_heads=6", "ulysses"]),
    # pipeline
    (["parallel.pipeline_parallel_size=4", "model.body_layers=3"],
     ["model.body_layers=3 is less than 4 stages", "copy of its weights"]),
    (["parallel.virtual_pipeline_size=2"], ["virtual_pipeline_size=2 is for"]),
    (["parallel.pipeline_layout=[1,2]"], ["pipeline_layout=[1, 2] is for"]),
    ([*PIPELINE, "parallel.pipeline_layout=[14]"], ["1 slots are no multiple of 2 stages"]),
    ([*PIPELINE, "parallel.pipeline_layout=[7,6]"], ["holds 13 visits, the model has 14"]),
    ([*PIPELINE, "parallel.pipeline_layout=[0,14]"], ["every slot needs a visit"]),
    ([*PIPELINE, "parallel.pipeline_layout=[7,7]"],
     ["iteration 2 of layer 3 would be on stage 1, its weights are on stage 0"]),
    ([*PIPELINE, "model.loop.min_iterations=1"], ["min_iterations draws the iterations"]),
    ([*PIPELINE, "model.loop.state_injection=true"], ["state of another stage"]),
    ([*PIPELINE, "model.tie_embeddings=true", "model.mtp_layers=1"], ["tie_embeddings", "untie"]),
    (["cluster.devices=8", "parallel.tensor_parallel_size=8", "model.attention.num_heads=8",
      "model.mtp_layers=1", "model.hidden_size=260"],
     ["model.hidden_size (with model.mtp_layers)=260"]),
    ([*PIPELINE, "model.loop.share_iteration_mlp=true"], ["one MLP for layers of all stages"]),
    ([*PIPELINE, "global_batch_size=24", "micro_batch_size=4"],
     ["global_batch_size=24 makes 3 micro-batches", "a multiple of 2", "global_batch_size=32"]),
    ([*PIPELINE, "batch_ramp_from=8", "batch_ramp_samples=64"], ["batch_ramp_from=8 makes 1"]),
    (["model.loop.iterations=1", "parallel.pipeline_parallel_size=4",
      "parallel.virtual_pipeline_size=2"], ["6 layers do not fill 4 stages x 2 chunks"]),
    (["optim=muon", "parallel.tensor_parallel_size=2"], ["muon", "tensor_parallel_size=2"]),
    (["parallel.overlap_param_gather=true"], ["overlap_grad_reduce=true"]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=lambda x: " ".join(x))
def test_refused_with_the_reason(settings: List[str], words: List[str]) -> None:
    compose(FOUR)
    with pytest.raises(Refused) as caught:
        compose([*FOUR, *settings])
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    for word in words:
        assert word in line, line


ACCEPTED = [
    [*PIPELINE, "parallel.tensor_parallel_size=2", "parallel.expert_parallel_size=2"],
    [*PIPELINE, "parallel.pipeline_layout=[1,13]"],  # the whole body on one stage
    ["parallel.tensor_parallel_size=2", "parallel.expert_parallel_size=4"],
    ["parallel.pipeline_parallel_size=4", "global_batch_size=16"],
    ["model.loop.iterations=1", *PIPELINE, "global_batch_size=24"],  # 1F1B takes any number
    ["parallel.context_parallel_size=2", "parallel.context_parallel=ulysses"],
]


@pytest.mark.parametrize("settings", ACCEPTED, ids=" ".join)
def test_accepted(settings: List[str]) -> None:
    compose([*FOUR, *settings])
