"""Inputs of the test and the benchmark: name -> (kind of routing, tokens, top k, experts)."""

import torch
from torch import Tensor

CASES = {
    "no token": ("random", 0, 2, 4),
    "one token": ("random", 1, 2, 4),
    "one expert": ("random", 9, 1, 1),
    "two tokens": ("random", 2, 4, 6),
    "two tokens, odd": ("random", 2, 3, 5),
    "odd": ("random", 37, 3, 7),
    "empty experts": ("few", 33, 2, 16),
    "all to one": ("all to one", 29, 1, 5),
    "skewed": ("skewed", 64, 4, 16),
    "dropped": ("dropped", 41, 4, 8),
    "all dropped": ("all dropped", 5, 2, 4),
    "out of range": ("out of range", 17, 2, 4),
}
# Longer than a chunk of the kernel.
LONG = {"several chunks": ("dropped", 1500, 6, 8)}


def experts_of(kind: str, tokens: int, top_k: int, experts: int, seed: int = 0) -> Tensor:
    """[tokens, top_k] int32, on the processor; a token's experts differ."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    if kind == "few":
        scores[:, experts // 3 :] -= 2
    elif kind == "skewed":
        scores *= 0.5 ** torch.arange(experts)
    elif kind == "all to one":
        scores[:, experts - 2] += 2
    chosen = scores.topk(top_k, dim=1).indices.to(torch.int32)
    if kind == "dropped":
        chosen[torch.rand(tokens, top_k, generator=generator) < 0.3] = -1
    elif kind == "all dropped":
        chosen.fill_(-1)
    elif kind == "out of range":
        chosen[torch.rand(tokens, top_k, generator=generator) < 0.2] = experts
    return chosen
