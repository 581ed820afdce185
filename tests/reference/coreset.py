"""Coreset rules by brute force."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray


def herding(features: NDArray[np.float64], n: int) -> list[int]:
    """Try every free row at every turn and keep the one that brings the mean closest."""
    chosen: list[int] = []
    for _ in range(n):
        free = [i for i in range(len(features)) if i not in chosen]
        gaps = [np.linalg.norm(features.mean(0) - features[[*chosen, i]].mean(0)) for i in free]
        chosen.append(free[int(np.argmin(gaps))])
    return chosen


def radius(features: NDArray[np.float64], centres: list[int]) -> float:
    """Return the largest distance of any row to its nearest centre."""
    return max(min(float(np.linalg.norm(row - features[c])) for c in centres) for row in features)


def best_radius(features: NDArray[np.float64], n: int) -> float:
    """Return the smallest radius that any `n` rows reach."""
    return min(radius(features, list(centres)) for centres in itertools.combinations(range(len(features)), n))
