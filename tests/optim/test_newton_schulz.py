"""Newton-Schulz against its definition by singular values, in float64."""

from __future__ import annotations

import pytest
import torch

from loopmoe_train.optim.newton_schulz import COEFFICIENTS, orthogonalize

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 5), (9, 31), (31, 9), (64, 48), (3, 40, 24), (2, 3, 17, 33)]


def by_svd(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """U f(f(...f(S / |S|))) V^T: what the iteration computes, without its matrix products."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s[..., None, :]) @ vh


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_it_is_the_polynomial_of_the_singular_values(shape: tuple[int, ...], steps: int) -> None:
    matrices = normal(*shape)
    found = orthogonalize(matrices, steps)
    assert found.shape == matrices.shape
    torch.testing.assert_close(found, by_svd(matrices, steps), rtol=1e-9, atol=1e-9)
    single = orthogonalize(matrices.float(), steps)
    torch.testing.assert_close(single.double(), by_svd(matrices, steps), rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(64, 48), (3, 40, 24), (9, 31)])
def test_singular_values_end_in_the_known_band(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonalize(normal(*shape)))
    assert values.min() > 0.67 and values.max() < 1.21


def test_the_direction_is_that_of_the_nearest_orthogonal_matrix() -> None:
    matrix = normal(40, 24)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u @ vh
    found = orthogonalize(matrix)
    cosine = (found * nearest).sum() / (found.norm() * nearest.norm())
    before = (matrix * nearest).sum() / (matrix.norm() * nearest.norm())
    assert cosine > 0.98 > before


def test_each_matrix_of_a_batch_is_for_itself() -> None:
    matrices = normal(6, 20, 12) * torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None, None]
    alone = torch.stack([orthogonalize(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_the_scale_does_not_matter(scale: float) -> None:
    matrix = normal(12, 20).float().clamp(-3, 3)
    torch.testing.assert_close(orthogonalize(matrix * scale), orthogonalize(matrix), rtol=0,
                               atol=1e-4)  # fmt: skip


def test_zero_stays_zero() -> None:
    batch = torch.stack([torch.zeros(6, 9), normal(6, 9).float()])
    found = orthogonalize(batch)
    assert not found[0].any()
    torch.testing.assert_close(found[1], orthogonalize(batch[1]))


def test_lower_precision_keeps_the_direction() -> None:
    matrix = normal(3, 48, 32).float()
    rounded = orthogonalize(matrix, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    exact = orthogonalize(matrix)
    cosine = (rounded * exact).sum() / (rounded.norm() * exact.norm())
    assert cosine > 0.99
    values = torch.linalg.svdvals(rounded)
    assert values.min() > 0.5 and values.max() < 1.3
