"""Trajectory matching by the textbook: lists of tensors, one row and one step at a time, in float64."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = list[Tensor]
Step = list[tuple[Tensor, Tensor]]  # rows (C, H, W), each with its target: probabilities (K,)


def unflattened(net: nn.Module, vector: Tensor) -> Weights:
    """Cut a vector into the tensors of a network."""
    weights, start = [], 0
    for parameter in net.parameters():
        weights.append(vector[start : start + parameter.numel()].reshape(parameter.shape))
        start += parameter.numel()
    assert start == len(vector)
    return weights


def mean_loss(net: nn.Module, weights: Weights, step: Step, temperature: float = 1.0) -> Tensor:
    """Return the mean cross-entropy of the rows of a step."""
    weights_by_name = dict(zip((name for name, _ in net.named_parameters()), weights, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for row, target in step:
        logits = torch.func.functional_call(net, weights_by_name, (row[None],))[0]
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
    """Train by gradient descent. If not unrolled, the weights at which gradients are taken count as constants."""
    weights = [w.clone().requires_grad_() for w in start]
    for step in steps:
        inputs = weights if unrolled else [w.detach().requires_grad_() for w in weights]
        gradients = torch.autograd.grad(mean_loss(net, inputs, step, temperature), inputs, create_graph=True)
        weights = [w - rate * g for w, g in zip(weights, gradients, strict=True)]
    return weights


def starts(minimum: int, first: int, last: int, steps: int, t: int) -> list[int]:
    """Return the snapshots at which a window may start in step t, where the upper bound grows one step at a time."""
    bound, grown = first, Fraction(first)
    for _ in range(t):
        grown += Fraction(last - first, steps)
        bound = min(math.floor(grown), last)
    return list(range(minimum, bound))


def mean_logits_of_correct(net: nn.Module, experts: list[Weights], row: Tensor, label: int) -> Tensor:
    """Return the mean logits (K,) of the experts that classify a row (C, H, W) right; of all if none does."""
    every = [logits_of(net, weights, row) for weights in experts]
    right = [logits for logits in every if int(logits.argmax()) == label]
    chosen = right or every
    return sum(chosen[1:], chosen[0]) / len(chosen)


def correct_first(
    net: nn.Module, experts: list[Weights], rows: Tensor, label: int, order: list[int], count: int
) -> list[int]:
    """Choose rows of a class in an order: those that the first expert gets right, then the second, ..., then any."""
    chosen: list[int] = []
    for weights in experts:
        for i in order:
            if i not in chosen and int(logits_of(net, weights, rows[i]).argmax()) == label:
                chosen.append(i)
    chosen += [i for i in order if i not in chosen]
    return [chosen[i % len(chosen)] for i in range(count)]


def logits_of(net: nn.Module, weights: Weights, row: Tensor) -> Tensor:
    """Return the logits (K,) of a row (C, H, W)."""
    weights_by_name = dict(zip((name for name, _ in net.named_parameters()), weights, strict=True))
    return torch.func.functional_call(net, weights_by_name, (row[None],))[0]


def descended(
    start: Tensor, gradients: list[Tensor], values: list[float], most: float, rate: float, momentum: float
) -> Tensor:
    """Descend along gradients with momentum, as if the steps whose value is above a bound had never been."""
    position, velocity = start.clone(), torch.zeros_like(start)
    for gradient, value in zip(gradients, values, strict=True):
        if value <= most:
            velocity = momentum * velocity + gradient
            position = position - rate * velocity
    return position


def distance_ratio(reached: Weights, start: Weights, target: Weights) -> Tensor:
    """Divide the squared distance to the expert's end by the squared distance from the start to that end."""
    remaining = sum(((a - b) ** 2).sum() for a, b in zip(reached, target, strict=True))
    total = sum(((a - b) ** 2).sum() for a, b in zip(start, target, strict=True))
    return remaining / total
