"""DD-Ranking's scores, written out from accuracies that are fractions."""

from __future__ import annotations

import math


def label_robust(
    full_hard: list[float], set_hard: list[float], set_own: list[float], random_own: list[float], weight: float
) -> tuple[float, float, float]:
    """Return HLR, IOR and LRS."""
    hlr = sum(full_hard) / len(full_hard) - sum(set_hard) / len(set_hard)
    ior = sum(set_own) / len(set_own) - sum(random_own) / len(random_own)
    alpha = weight * ior - (1 - weight) * hlr
    return hlr, ior, (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def augmentation_robust(
    set_augmented: list[float],
    random_augmented: list[float],
    set_plain: list[float],
    random_plain: list[float],
    weight: float,
) -> float:
    """Return ARS."""
    with_augmentation = sum(set_augmented) / len(set_augmented) - sum(random_augmented) / len(random_augmented)
    without = sum(set_plain) / len(set_plain) - sum(random_plain) / len(random_plain)
    beta = weight * with_augmentation + (1 - weight) * without
    return (math.exp(beta) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
