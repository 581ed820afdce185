"""Gradient matching as the textbook has it: one class, one tensor, one row at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient_matching(net: nn.Module, real: dict[int, Tensor], synthetic: dict[int, Tensor], distance: str) -> Tensor:
    """Sum over classes of the distance between the gradients of a real and of a synthetic batch (n, C, H, W)."""
    total = torch.zeros((), dtype=torch.float64)
    parameters = list(net.parameters())
    for label, batch in real.items():
        wanted = torch.autograd.grad(mean_loss(net, batch, label), parameters)
        own = torch.autograd.grad(mean_loss(net, synthetic[label], label), parameters, create_graph=True)
        total = total + DISTANCES[distance](own, wanted)
    return total


def mean_loss(net: nn.Module, rows: Tensor, label: int) -> Tensor:
    """Mean cross-entropy, one row at a time."""
    return sum(-F.log_softmax(net(row[None])[0], 0)[label] for row in rows) / len(rows)


def layerwise(own: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """One minus the cosine, for every output row of every tensor that is no vector."""
    total = torch.zeros((), dtype=torch.float64)
    for h, g in zip(own, wanted, strict=True):
        if h.ndim > 1:
            for h_row, g_row in zip(h, g, strict=True):
                total = total + one_minus_cosine(h_row.reshape(-1), g_row.reshape(-1))
    return total


def one_minus_cosine(h: Tensor, g: Tensor) -> Tensor:
    """The cosine as the authors' code has it, with 1e-6 in the denominator."""
    return 1 - (h * g).sum() / (h.norm() * g.norm() + 1e-6)


def vector(tensors: tuple[Tensor, ...]) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


DISTANCES = {
    "layerwise": layerwise,
    "cosine": lambda own, wanted: one_minus_cosine(vector(own), vector(wanted)),
    "mse": lambda own, wanted: ((vector(own) - vector(wanted)) ** 2).sum(),
}
