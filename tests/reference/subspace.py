"""Expert subspace projection by the textbook: least squares instead of an orthonormal basis."""

from __future__ import annotations

import torch
from torch import Tensor


def residual(vector: Tensor, points: Tensor) -> Tensor:
    """Subtract from a vector (P,) the nearest combination of the steps between points (W + 1, P)."""
    columns = (points[1:] - points[:-1]).T
    coefficients = torch.linalg.lstsq(columns, vector[:, None], driver="gelsd").solution
    return vector - (columns @ coefficients)[:, 0]


def step_objective(displacement: Tensor, points: Tensor, blocks: list[slice], aim: float, weight: float) -> Tensor:
    """Average the squared residual plus the squared error of the progress over blocks."""
    total = torch.zeros((), dtype=displacement.dtype)
    for block in blocks:
        expert = points[-1, block] - points[0, block]
        squared_length = (expert**2).sum()
        outside = (residual(displacement[block], points[:, block]) ** 2).sum() / squared_length
        progress = (displacement[block] * expert).sum() / squared_length
        total = total + outside + weight * (progress - aim) ** 2
    return total / len(blocks)


def direction_objective(gradient: Tensor, points: Tensor, blocks: list[slice], weight: float) -> Tensor:
    """Average the energy share outside plus one minus the cosine of descent and expert inside, over blocks."""
    total = torch.zeros((), dtype=gradient.dtype)
    for block in blocks:
        g, expert = gradient[block], points[-1, block] - points[0, block]
        inside = g - residual(g, points[:, block])
        cosine = (-inside * expert).sum() / (inside.norm() * expert.norm())
        total = total + 1 - inside.norm() ** 2 / g.norm() ** 2 + weight * (1 - cosine)
    return total / len(blocks)
