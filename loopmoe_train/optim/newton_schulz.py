"""The nearest orthogonal matrix, by a few matrix products: Newton-Schulz iteration."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

# Jordan et al. 2024 ("Muon"): f(s) = a s + b s^3 + c s^5 is steep at 0, so that small singular
# values grow fast, and keeps the others in a band around 1 instead of converging to it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Replace the singular values of each matrix by values near 1: ``U S V^T`` -> ``U ~1 V^T``.

    With five steps singular values from about 1 % of the Frobenius norm upwards end between 0.68
    and 1.21; smaller ones grow by up to a^steps; zero stays zero. The result does not depend on
    the scale of the input.

    Args:
        matrices: [..., n, m], each orthogonalised for itself.
        steps: iterations.
        dtype: of the matrix products; None: that of the input. The norms are taken before
            rounding to it.

    Returns:
        [..., n, m] in the dtype of the input.
    """
    a, b, c = COEFFICIENTS
    n, m = matrices.shape[-2:]
    x = matrices.reshape(-1, n, m)
    if n > m:  # the smaller side makes the smaller products
        x = x.mT
    tiny = torch.finfo(x.dtype).tiny
    # In two divisions: the squares of a tiny gradient would vanish, those of a huge one overflow.
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(tiny)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(tiny)
    x = x.to(dtype or x.dtype).contiguous()
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    if n > m:
        x = x.mT
    return x.reshape(matrices.shape).to(matrices.dtype)
