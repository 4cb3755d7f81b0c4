"""Text sampled from the model, to look at."""

from __future__ import annotations

from typing import Any, List

import torch

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.evaluation.forward import next_token


def sample_text(run: RunConfig, model: List[Any], tokenizer: Tokenizer) -> str:
    """Continue ``observe.sample_prompt`` by ``observe.sample_tokens`` tokens, temperature 0.8.

    Every rank runs it (the model is spread over them). Training's random numbers do not move.
    """

    def draw(logits: torch.Tensor) -> int:
        # Seeded by the position: another rank may hold the logits of the next one.
        generator = torch.Generator().manual_seed(run.seed + len(ids))
        return int(torch.multinomial(torch.softmax(logits / 0.8, dim=-1), 1, generator=generator))

    ids = [tokenizer.eod_id] + tokenizer.encode(run.observe.sample_prompt)
    ids = ids[-run.sequence_length :]
    start = len(ids)
    for _ in range(run.observe.sample_tokens):
        window = ids[-run.sequence_length :]
        ids.append(next_token(model, window, run.sequence_length, draw))
        if ids[-1] == tokenizer.eod_id:
            break
    return tokenizer.decode(ids[1:start]) + "⟦" + tokenizer.decode(ids[start:]) + "⟧"
