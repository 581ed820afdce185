"""The squared MMD by the textbook: a double loop over rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def squared_mmd(synthetic: Tensor, real: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the biased estimator for one class, from rows (n, D) and (B, D)."""

    def mean_kernel(first: Tensor, second: Tensor) -> Tensor:
        return sum(kernel(x, y) for x in first for y in second) / (len(first) * len(second))

    return mean_kernel(synthetic, synthetic) - 2 * mean_kernel(synthetic, real) + mean_kernel(real, real)


def gaussian_mixture(synthetic: Tensor, real: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mixture whose bandwidth is the mean squared distance of distinct rows of both batches."""
    rows = torch.cat([synthetic, real]).detach()
    squares = [float(((x - y) ** 2).sum()) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
    bandwidth = math.fsum(squares) / len(squares)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        distance = ((x - y) ** 2).sum()
        return sum(torch.exp(-distance / (bandwidth * width)) for width in (0.25, 0.5, 1, 2, 4))

    return kernel


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """Return the second-order kernel, which compares means and covariances."""
    return ((x * y).sum() / len(x) + 1) ** 2
