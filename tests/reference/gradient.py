"""Gradient matching by the textbook: one class, one tensor and one row at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient_matching(
    net: nn.Module,
    real: dict[int, Tensor],
    synthetic: dict[int, Tensor],
    distance: str,
    targets: dict[int, Tensor] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Sum the distance between the gradients of the real and the synthetic batch (n, C, H, W) over classes.

    The synthetic rows of a class may have target probabilities (n, K), which are learned at a temperature.
    """
    total = torch.zeros((), dtype=torch.float64)
    parameters = list(net.parameters())
    for label, batch in real.items():
        real_gradient = torch.autograd.grad(mean_loss(net, batch, label), parameters)
        loss = synthetic_loss(net, synthetic[label], label, targets, temperature)
        synthetic_gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        total = total + DISTANCES[distance](synthetic_gradient, real_gradient)
    return total


def convolution_matching(
    net: nn.Module,
    real: dict[int, Tensor],
    synthetic: dict[int, Tensor],
    distance: str,
    targets: dict[int, Tensor] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Sum the differences of the gradients of the weights of convolutions, squared ("mse") or absolute ("l1")."""
    total = torch.zeros((), dtype=torch.float64)
    for module in net.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        for label, batch in real.items():
            (goal,) = torch.autograd.grad(mean_loss(net, batch, label), module.weight)
            loss = synthetic_loss(net, synthetic[label], label, targets, temperature)
            (got,) = torch.autograd.grad(loss, module.weight, create_graph=True)
            for difference in (got - goal).reshape(-1):
                total = total + (difference**2 if distance == "mse" else difference.abs())
    return total


def mean_loss(net: nn.Module, rows: Tensor, label: int) -> Tensor:
    """Return the mean cross-entropy, one row at a time."""
    return sum(-F.log_softmax(net(row[None])[0], 0)[label] for row in rows) / len(rows)


def mean_soft_loss(net: nn.Module, rows: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy with probabilities (n, K) at a temperature, times its square, row by row."""
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(rows, targets, strict=True):
        total = total - (target * F.log_softmax(net(row[None])[0] / temperature, 0)).sum()
    return temperature**2 * total / len(rows)


def synthetic_loss(
    net: nn.Module, rows: Tensor, label: int, targets: dict[int, Tensor] | None, temperature: float
) -> Tensor:
    """Return the mean loss of the synthetic rows of a class, by their target probabilities if they have some."""
    if targets is None:
        return mean_loss(net, rows, label)
    return mean_soft_loss(net, rows, targets[label], temperature)


def layerwise(synthetic: tuple[Tensor, ...], real: tuple[Tensor, ...]) -> Tensor:
    """Sum one minus the cosine over the output rows of every tensor that is not a vector."""
    total = torch.zeros((), dtype=torch.float64)
    for synthetic_tensor, real_tensor in zip(synthetic, real, strict=True):
        if synthetic_tensor.ndim > 1:
            for synthetic_row, real_row in zip(synthetic_tensor, real_tensor, strict=True):
                total = total + one_minus_cosine(synthetic_row.reshape(-1), real_row.reshape(-1))
    return total


def one_minus_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Return one minus the cosine as in the authors' code, with 1e-6 in the denominator."""
    return 1 - (first * second).sum() / (first.norm() * second.norm() + 1e-6)


def vector(tensors: tuple[Tensor, ...]) -> Tensor:
    """Join all parameters to one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


DISTANCES = {
    "layerwise": layerwise,
    "cosine": lambda synthetic, real: one_minus_cosine(vector(synthetic), vector(real)),
    "mse": lambda synthetic, real: ((vector(synthetic) - vector(real)) ** 2).sum(),
    "l1": lambda synthetic, real: (vector(synthetic) - vector(real)).abs().sum(),
}
