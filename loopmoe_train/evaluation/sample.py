"""Text sampled from the model, to look at."""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
import torch.distributed as dist

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.device.accelerator import accel


@torch.no_grad()
def sample_text(run: RunConfig, model: List[Any], tokenizer: Tokenizer) -> str:
    """Continue ``observe.sample_prompt`` by ``observe.sample_tokens`` tokens, temperature 0.8.

    Every rank runs it (experts are spread over them) and draws the same tokens from a
    generator of its own, so training's random numbers do not move. The window always has
    ``sequence_length`` tokens; what lies after the last token is hidden by causality.
    """
    chunk = model[0]
    chunk.eval()
    generator = torch.Generator().manual_seed(run.seed)
    ids = [tokenizer.eod_id] + tokenizer.encode(run.observe.sample_prompt)
    ids = ids[-run.sequence_length :]
    start = len(ids)
    for _ in range(run.observe.sample_tokens):
        window = ids[-run.sequence_length :]
        tokens, positions = padded(window, run.sequence_length)
        logits = chunk(tokens, positions, None)[0, len(window) - 1].float().cpu()
        probs = torch.softmax(logits / 0.8, dim=-1)
        drawn = torch.multinomial(probs, 1, generator=generator).to(tokens.device)
        # Ranks could differ in the last bit of a probability.
        dist.broadcast(drawn, src=0)
        ids.append(int(drawn))
        if ids[-1] == tokenizer.eod_id:
            break
    chunk.train()
    return tokenizer.decode(ids[1:start]) + "⟦" + tokenizer.decode(ids[start:]) + "⟧"


def padded(window: List[int], length: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions [1, length] on the device; zeros after the window."""
    tokens = torch.tensor([window + [0] * (length - len(window))])
    positions = torch.arange(length).unsqueeze(0)
    return tokens.to(accel.current_device()), positions.to(accel.current_device())
