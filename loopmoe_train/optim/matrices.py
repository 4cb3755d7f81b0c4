"""Which parameters Muon updates, and which AdamW."""

from __future__ import annotations

import math

from torch import Tensor

from loopmoe_train.optim.muon import STACKED, as_matrices


def by_muon(name: str, parameter: Tensor) -> bool:
    """Muon takes matrices, and stacks of expert matrices, inside the layers.

    AdamW takes vectors (norms, biases) and the two tables whose rows stand for one token each:
    embedding and output head.

    Args:
        name: the parameter's, in the bare model.
    """
    return parameter.ndim >= 2 and ".layers." in name


def mark_stacked(name: str, parameter: Tensor) -> None:
    """Remember that a fused gate-and-up projection [2 * f, d] is two matrices.

    Experts keep the two apart in a dimension of their own. Other fused projections (query, key
    and value of grouped-query attention; gamma, beta and alpha of IterAdaLN) count as one.
    """
    if name.endswith("linear_fc1.weight"):
        setattr(parameter, STACKED, 2)


def cost(parameter: Tensor) -> float:
    """Multiply-adds of one Newton-Schulz step: two products n n m, one n n n, n the smaller."""
    matrices = as_matrices(parameter, getattr(parameter, STACKED, 1))
    n, m = sorted(matrices.shape[-2:])
    return math.prod(matrices.shape[:-2]) * n * n * (2.0 * m + n)
