"""Other shapes of a model with as many parameters and FLOPs per token, by the speed that they
reach on a cluster: how Pangu Ultra MoE chose its shape (arXiv 2505.04519, section 3).

Hidden size, layers, number of experts and iterations are varied; the experts' width then follows
from the parameters, and how many a token takes from its FLOPs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from loopmoe_train.config.rules import problems
from loopmoe_train.config.schema import ModelConfig, RunConfig
from loopmoe_train.sim.machine import Machine
from loopmoe_train.sim.search import Scored, search
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters

_WIDTHS = (0.75, 0.875, 1.0, 1.125, 1.25)  # of the hidden size
_DEPTHS = (0.8, 0.9, 1.0, 1.1, 1.25)  # of the layers that are varied
_EXPERTS = (0.5, 1.0, 2.0)
_WIDTH_MULTIPLE = 128  # of an expert


@dataclass(frozen=True)
class Shaped:
    """A shape, what it has of the budget, and the layout it is fastest in.

    Attributes:
        parameters, flops: in all, and forward of one token; relative to the reference.
    """

    model: ModelConfig
    parameters: float
    flops: float
    best: Scored


def explore(
    run: RunConfig,
    machine: Machine,
    tolerance: float = 0.03,
    fixed: Optional[Dict[str, Any]] = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> List[Shaped]:
    """Shapes within ``tolerance`` of the parameters and FLOPs of ``run.model``, fastest first.

    Args:
        fixed: settings of the layout that every shape is run with; fewer make it slower.
        progress: told how many shapes of how many were simulated.
    """
    candidates = list(shapes(run, tolerance))
    found = []
    for number, model in enumerate(candidates):
        progress(number, len(candidates))
        changed = copy.deepcopy(run)
        changed.model = model
        best = search(changed, machine, 1, (), fixed).best
        if best:
            n, f = _budget(run, model)
            found.append(Shaped(model, n, f, best[0]))
    return sorted(found, key=lambda one: one.best.estimate.seconds)


def shapes(run: RunConfig, tolerance: float) -> Iterator[ModelConfig]:
    """The reference and all others within the budget that the rules of a model allow."""
    reference = run.model
    yield reference
    seen = {repr(reference)}
    for iterations in _iterations(reference):
        for wide in _WIDTHS:
            for deep in _DEPTHS:
                for many in _EXPERTS:
                    model = _shape(run, iterations, wide, deep, many)
                    if model is None:
                        continue
                    key = repr(model)
                    n, f = _budget(run, model)
                    if key in seen or abs(n - 1) > tolerance or abs(f - 1) > tolerance:
                        continue
                    seen.add(key)
                    changed = copy.deepcopy(run)
                    changed.model = model
                    if not problems(changed, layout=False):
                        yield model


def _iterations(model: ModelConfig) -> Sequence[int]:
    if model.loop.iterations == 1:
        return (1,)
    return sorted({2, 3, 4, model.loop.iterations})


def _budget(run: RunConfig, model: ModelConfig) -> tuple[float, float]:
    """Parameters and forward FLOPs of a token, relative to the run's own model."""
    vocabulary = run.model.vocab_size or run.tokenizer.vocab_size

    def both(one: ModelConfig) -> tuple[float, float]:
        flops = forward_flops_per_token(one, vocabulary, run.sequence_length)
        return parameters(one, vocabulary)["total"], sum(flops.values())

    (n, f), (own_n, own_f) = both(model), both(run.model)
    return n / own_n, f / own_f


def _shape(
    run: RunConfig, iterations: int, wide: float, deep: float, many: float
) -> Optional[ModelConfig]:
    """The shape with these sizes whose experts use up the budget; None: there is none."""
    model = copy.deepcopy(run.model)
    moe, attention = model.moe, model.attention
    heads = attention.num_heads
    step = 8 if heads % 8 == 0 else 1
    attention.num_heads = max(step, round(heads * wide / step) * step)
    model.hidden_size = round(model.hidden_size * wide / 128) * 128
    model.dense_ffn_hidden_size = round(model.dense_ffn_hidden_size * wide / 128) * 128
    moe.num_experts = max(moe.top_k, round(moe.num_experts * many))
    model.loop.iterations = iterations
    if iterations > 1:
        model.body_layers = max(1, round(model.body_layers * deep))
    else:
        model.prefix_layers = max(model.dense_layers + 1, round(model.prefix_layers * deep))
    changed = copy.deepcopy(run)
    changed.model = model
    # Experts take what the rest leaves of the parameters, then of the FLOPs.
    vocabulary = run.model.vocab_size or run.tokenizer.vocab_size
    own = parameters(run.model, vocabulary)["total"]
    moe.expert_hidden_size, width = _WIDTH_MULTIPLE, _WIDTH_MULTIPLE
    one = parameters(model, vocabulary)["total"]
    moe.expert_hidden_size = 2 * width
    per_width = parameters(model, vocabulary)["total"] - one
    width *= round((own - one) / per_width + 1)
    if width < _WIDTH_MULTIPLE:
        return None
    moe.expert_hidden_size = width
    flops = [0.0, 0.0]
    for place, top_k in enumerate((1, 2)):
        moe.top_k = top_k
        flops[place] = sum(forward_flops_per_token(model, vocabulary, run.sequence_length).values())
    wanted = sum(forward_flops_per_token(run.model, vocabulary, run.sequence_length).values())
    moe.top_k = round(1 + (wanted - flops[0]) / (flops[1] - flops[0]))
    return model if 1 <= moe.top_k <= moe.num_experts else None
