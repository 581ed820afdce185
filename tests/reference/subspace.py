"""Expert subspace projection, by least squares instead of a basis."""

from __future__ import annotations

import torch
from torch import Tensor


def residual(moved: Tensor, points: Tensor) -> Tensor:
    """What of a vector (P,) no combination of the steps between points (W + 1, P) reaches."""
    columns = (points[1:] - points[:-1]).T
    coefficients = torch.linalg.lstsq(columns, moved[:, None], driver="gelsd").solution
    return moved - (columns @ coefficients)[:, 0]


def step_objective(moved: Tensor, points: Tensor, blocks: list[slice], aim: float, weight: float) -> Tensor:
    """Mean over blocks of the squared residual and of the squared distance from the progress aimed at."""
    total = torch.zeros((), dtype=moved.dtype)
    for block in blocks:
        way = points[-1, block] - points[0, block]
        length = (way**2).sum()
        outside = (residual(moved[block], points[:, block]) ** 2).sum() / length
        progress = (moved[block] * way).sum() / length
        total = total + outside + weight * (progress - aim) ** 2
    return total / len(blocks)


def direction_objective(gradient: Tensor, points: Tensor, blocks: list[slice], weight: float) -> Tensor:
    """Mean over blocks of the share of energy outside, plus one minus the cosine of the descent inside with the way."""
    total = torch.zeros((), dtype=gradient.dtype)
    for block in blocks:
        g, way = gradient[block], points[-1, block] - points[0, block]
        inside = g - residual(g, points[:, block])
        cosine = (-inside * way).sum() / (inside.norm() * way.norm())
        total = total + 1 - inside.norm() ** 2 / g.norm() ** 2 + weight * (1 - cosine)
    return total / len(blocks)
