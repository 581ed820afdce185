"""Student's t distribution by plain numerical integration, and the confusion matrix by counting."""

from __future__ import annotations

import math


def probability_within(bound: float, degrees: int, steps: int = 20_000) -> float:
    """Integrate the density of t from -bound to bound by Simpson's rule."""
    log_scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(log_scale) / math.sqrt(degrees * math.pi)

    def density(t: float) -> float:
        return scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)

    width = 2 * bound / steps
    total = density(-bound) + density(bound)
    for i in range(1, steps):
        total += (4 if i % 2 else 2) * density(-bound + i * width)
    return total * width / 3


def confusion(labels: list[int], predictions: list[int], num_classes: int) -> list[list[int]]:
    """Count how many rows of a class (first index) were predicted to be of a class (second index)."""
    table = [[0] * num_classes for _ in range(num_classes)]
    for label, prediction in zip(labels, predictions, strict=True):
        table[label][prediction] += 1
    return table
