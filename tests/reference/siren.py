"""A coordinate network by the textbook: pixel by pixel, layer by layer, unit by unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def layers(shape: tuple[int, int, int], width: int) -> list[tuple[int, int]]:
    """Return the (outputs, inputs) of every layer: two hidden ones, three for a side of 64 pixels or more."""
    hidden = 3 if max(shape[1:]) >= 64 else 2
    return [(width, 2)] + [(width, width)] * (hidden - 1) + [(shape[0], width)]


def size(shape: tuple[int, int, int], width: int) -> int:
    """Return the number of weights and biases."""
    return sum(outputs * inputs + outputs for outputs, inputs in layers(shape, width))


def colour(weights: list[float], y: float, x: float, shape: tuple[int, int, int], width: int) -> list[float]:
    """Return the values of the channels at a point. Weights are by layer: the matrix row by row, then the bias."""
    later = 40.0 if max(shape[1:]) >= 64 else 10.0
    numbers, values = iter(weights), [y, x]
    for i, (outputs, inputs) in enumerate(layers(shape, width)):
        matrix = [[next(numbers) for _ in range(inputs)] for _ in range(outputs)]
        sums = [sum(m * value for m, value in zip(row, values, strict=True)) for row in matrix]
        sums = [total + next(numbers) for total in sums]
        last = i == len(layers(shape, width)) - 1
        frequency = 30.0 if i == 0 else later
        values = sums if last else [math.sin(frequency * total) for total in sums]
    assert next(numbers, None) is None
    return values


def image(weights: Tensor, shape: tuple[int, int, int], width: int) -> Tensor:
    """Return the image (C, H, W) of a network: its values at the centres of the pixels of [-1, 1] x [-1, 1]."""
    _, height, columns = shape
    decoded = torch.empty(shape, dtype=torch.float64)
    for i in range(height):
        for j in range(columns):
            y, x = -1 + (i + 0.5) * 2 / height, -1 + (j + 0.5) * 2 / columns
            decoded[:, i, j] = torch.tensor(colour(weights.tolist(), y, x, shape, width), dtype=torch.float64)
    return decoded
