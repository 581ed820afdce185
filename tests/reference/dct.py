"""Cosine coefficients by the textbook: sums over pixels, opponent colours and cosines, one number at a time."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

OPPONENTS = {
    1: [[1.0]],
    3: [
        [1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)],  # brightness
        [1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)],  # red against blue
        [1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)],  # green against both
    ],
}


def wave(frequency: int, point: int, size: int) -> float:
    """Return the value of an orthonormal cosine at the centre of a pixel (DCT-II)."""
    length = math.sqrt((1 if frequency == 0 else 2) / size)
    return length * math.cos(math.pi * frequency * (2 * point + 1) / (2 * size))


def coefficient(image: Tensor, colour: int, down: int, across: int) -> float:
    """Return one coefficient of an image (C, H, W): the sum over its pixels of value times wave."""
    channels, height, width = image.shape
    return sum(
        OPPONENTS[channels][colour][c] * wave(down, y, height) * wave(across, x, width) * float(image[c, y, x])
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    )


def positions(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return (colour, down, across) of every position, in the order of a flat image."""
    return list(itertools.product(*map(range, shape)))


def best_places(rows: Tensor, kept: int) -> list[int]:
    """Return the positions with the largest mean square over the rows (n, C, H, W) of a class, in rising order."""
    energies = [
        sum(coefficient(row, *position) ** 2 for row in rows) / len(rows) for position in positions(rows.shape[1:])
    ]
    return sorted(sorted(range(len(energies)), key=lambda place: (-energies[place], place))[:kept])


def stored(row: Tensor, places: list[int]) -> list[float]:
    """Return the coefficients of a row (C, H, W) at some places."""
    return [coefficient(row, *positions(tuple(row.shape))[place]) for place in places]


def decode(coefficients: list[float], places: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Return the image (C, H, W) that is the sum of the waves at some places, each times its coefficient."""
    channels, height, width = shape
    image = torch.zeros(shape, dtype=torch.float64)
    for c, y, x in positions(shape):
        for value, place in zip(coefficients, places, strict=True):
            colour, down, across = positions(shape)[place]
            image[c, y, x] += value * OPPONENTS[channels][colour][c] * wave(down, y, height) * wave(across, x, width)
    return image
