"""Coreset rules by brute force."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray


def herding(features: NDArray[np.float64], n: int) -> list[int]:
    """In every round try each remaining row, and take the one that brings the mean closest."""
    selection: list[int] = []
    for _ in range(n):
        remaining = [i for i in range(len(features)) if i not in selection]
        gaps = [np.linalg.norm(features.mean(0) - features[[*selection, i]].mean(0)) for i in remaining]
        selection.append(remaining[int(np.argmin(gaps))])
    return selection


def radius(features: NDArray[np.float64], centres: list[int]) -> float:
    """Return the largest distance of any row to its nearest centre."""
    return max(min(float(np.linalg.norm(row - features[c])) for c in centres) for row in features)


def best_radius(features: NDArray[np.float64], n: int) -> float:
    """Return the smallest radius of any `n` rows."""
    return min(radius(features, list(centres)) for centres in itertools.combinations(range(len(features)), n))


def k_center(features: NDArray[np.float64], n: int) -> list[int]:
    """Begin with the row nearest to the mean, and take the row that is farthest from its nearest centre each time."""
    selection = [int(np.argmin([np.linalg.norm(row - features.mean(0)) for row in features]))]
    while len(selection) < n:
        rest = [i for i in range(len(features)) if i not in selection]
        selection.append(max(rest, key=lambda i: min(np.linalg.norm(features[i] - features[c]) for c in selection)))
    return selection
