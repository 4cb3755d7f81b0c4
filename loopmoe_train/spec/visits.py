"""The model as a list of visits (layer, iteration) in execution order.

Layout (arXiv 2606.04438, section 2): prefix layers, then the loop body as a whole
``iterations`` times, then suffix layers. Depth D = prefix + iterations * body + suffix
visits; U = prefix + body + suffix layers own weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from loopmoe_train.config.schema import ModelConfig


@dataclass(frozen=True)
class Visit:
    """One execution of one layer.

    Attributes:
        index: position in execution order, from 0.
        layer: the layer whose weights are used, from 0 (prefix, body, suffix).
        iteration: 1..K inside the loop body, else 1.
        looped: whether the layer belongs to a loop body (K > 1).
        dense: dense FFN instead of experts.
    """

    index: int
    layer: int
    iteration: int
    looped: bool
    dense: bool

    @property
    def owns_weights(self) -> bool:
        """The first visit of a layer registers its weights; later ones point at them."""
        return self.iteration == 1


def visits(model: ModelConfig) -> List[Visit]:
    """All visits of ``model`` in execution order."""
    order = list(range(model.prefix_layers))
    body = range(model.prefix_layers, model.prefix_layers + model.body_layers)
    iteration_of = [1] * model.prefix_layers
    for iteration in range(1, model.loop.iterations + 1):
        order += body
        iteration_of += [iteration] * model.body_layers
    first_suffix = model.prefix_layers + model.body_layers
    order += range(first_suffix, first_suffix + model.suffix_layers)
    iteration_of += [1] * model.suffix_layers
    looped = set(body) if model.loop.iterations > 1 else set()
    return [
        Visit(index, layer, iteration, layer in looped, layer < model.dense_layers)
        for index, (layer, iteration) in enumerate(zip(order, iteration_of))
    ]


def conditioned(model: ModelConfig) -> bool:
    """Whether body layers tell iterations apart by IterAdaLN."""
    return model.loop.iterations > 1 and model.loop.conditioning == "iter_adaln"
