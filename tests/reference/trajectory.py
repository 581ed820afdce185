"""Trajectories as the textbook has them: lists of tensors, one row and one step at a time, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = list[Tensor]
Step = list[tuple[Tensor, Tensor]]  # rows (C, H, W), each with its target: probabilities (K,)


def unflattened(net: nn.Module, vector: Tensor) -> Weights:
    """Cut a vector into a network's tensors."""
    found, start = [], 0
    for parameter in net.parameters():
        found.append(vector[start : start + parameter.numel()].reshape(parameter.shape))
        start += parameter.numel()
    assert start == len(vector)
    return found


def mean_loss(net: nn.Module, weights: Weights, step: Step, temperature: float = 1.0) -> Tensor:
    """Mean cross-entropy of the rows of a step."""
    named = dict(zip((name for name, _ in net.named_parameters()), weights, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for row, target in step:
        logits = torch.func.functional_call(net, named, (row[None],))[0]
        total = total - (target * F.log_softmax(logits / temperature, 0)).sum() * temperature**2
    return total / len(step)


def trained(
    net: nn.Module,
    start: Weights,
    steps: list[Step],
    rate: Tensor | float,
    temperature: float = 1.0,
    *,
    unrolled: bool = True,
) -> Weights:
    """Train by plain gradient descent; without unrolling, the weights that gradients are taken at count as given."""
    weights = [w.clone().requires_grad_() for w in start]
    for step in steps:
        here = weights if unrolled else [w.detach().requires_grad_() for w in weights]
        gradients = torch.autograd.grad(mean_loss(net, here, step, temperature), here, create_graph=True)
        weights = [w - rate * g for w, g in zip(weights, gradients, strict=True)]
    return weights


def distance_ratio(reached: Weights, start: Weights, target: Weights) -> Tensor:
    """Squared distance to the expert's end over the squared length of the expert's way."""
    missed = sum(((a - b) ** 2).sum() for a, b in zip(reached, target, strict=True))
    way = sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))
    return missed / way
