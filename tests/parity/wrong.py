"""Constructions of a loop pipeline that look right and are silently wrong (facts of core 0.16.1).

Each takes the chunks of a stage as loopmoe_train builds them and makes them so.
"""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple

import torch

from loopmoe_train.model.visit_layer import LaterVisit


def _looped(chunks: List[Any]) -> Iterator[Tuple[Any, List[Tuple[Any, int]]]]:
    """Per looped layer its owner and (chunk, index there) of its visits in order."""
    places: dict = {}
    for chunk in chunks:
        for index, layer in enumerate(chunk.decoder.layers):
            if layer.visit.looped:
                places.setdefault(layer.visit.layer, []).append((chunk, index))
    for found in places.values():
        chunk, index = found[0]
        yield chunk.decoder.layers[index], found


def last_visit_owns(chunks: List[Any]) -> None:
    """Backward begins there, so its gradients look ready when one of K parts is in."""
    for owner, places in _looped(chunks):
        (first, begin), (last, end) = places[0], places[-1]
        visits = owner.visit, last.decoder.layers[end].visit
        owner.visit = visits[1]
        owner.layer_number = visits[1].index + 1
        for norm in (owner.input_layernorm, owner.pre_mlp_layernorm):
            norm.set_iteration(visits[1].iteration)
        first.decoder.layers[begin] = LaterVisit(owner.config, visit=visits[0], owners=[owner])
        last.decoder.layers[end] = owner


def every_chunk_registers(chunks: List[Any]) -> None:
    """Each chunk's DDP makes the gradient its own; the optimizer steps the weight twice."""
    for owner, places in _looped(chunks):
        for chunk, index in places[1:]:
            shell = chunk.decoder.layers[index]
            for name, child in owner.named_children():
                # Past add_module, which finds the owner's child through the shell.
                shell._modules.setdefault(name, child)


def every_visit_counts(chunks: List[Any]) -> None:
    """Core moves the one bias once per counter it finds: the last iteration's move stays."""
    for owner, places in _looped(chunks):
        for chunk, index in places[1:]:
            counts = torch.zeros_like(owner.mlp.router.local_tokens_per_expert)
            router = chunk.decoder.layers[index].mlp.router
            router._buffers["local_tokens_per_expert"] = counts
