"""How often the loop body runs: as often as built, less, or another number in every step.

A visit is a module of its own, so running fewer iterations means leaving the later visits out of
the decoder's list for the length of a step; weights and their gradient buffers stay as they are.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from torch import nn

from loopmoe_train.config.schema import LoopConfig
from loopmoe_train.model.build import bare


def drawn_iterations(loop: LoopConfig, seed: int, step: int) -> int:
    """Iterations of a training step: uniform from ``min_iterations`` to ``iterations``.

    A function of (seed, step) alone: the same on every rank, and in a continued run.
    """
    if loop.min_iterations is None:
        return loop.iterations
    return random.Random(f"{seed}:{step}").randint(loop.min_iterations, loop.iterations)


@contextmanager
def running(model: List[Any], count: int, backprop: Optional[int] = None) -> Iterator[None]:
    """Let the loop body run ``count`` times, at most as often as built.

    Args:
        model: the chunks of this rank.
        backprop: gradients go through the last so many iterations only; None: through all.
    """
    decoders = [bare(chunk).decoder for chunk in model]
    built = [decoder.layers for decoder in decoders]
    cut = None if backprop is None or backprop >= count else count - backprop + 1
    for decoder, layers in zip(decoders, built):
        _use(decoder, [layer for layer in layers if layer.visit.iteration <= count])
        for layer in layers:
            layer.cuts_gradient = layer.starts_body and layer.visit.iteration == cut
    try:
        yield
    finally:
        for decoder, layers in zip(decoders, built):
            for layer in layers:
                layer.cuts_gradient = False
            decoder.layers = layers
            decoder.num_layers_per_pipeline_rank = len(layers)


def _use(decoder: Any, layers: List[nn.Module]) -> None:
    if len(layers) < len(decoder.layers):
        decoder.layers = nn.ModuleList(layers)
        decoder.num_layers_per_pipeline_rank = len(layers)
