"""Confidence intervals of a mean, from Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean of a normal distribution, from some draws of it.

    Args:
        values: The draws.

    Returns:
        Its lower and upper end, or None if there are fewer than two draws.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    reach = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean - reach, mean + reach


@lru_cache
def t_quantile(degrees: int, level: float = 0.95) -> float:
    """Return the number that bounds |t| with some probability, for Student's t with integer degrees of freedom.

    Args:
        degrees: Degrees of freedom, >= 1.
        level: The probability, in (0, 1).

    Example:
        >>> round(t_quantile(4), 3)
        2.776
    """
    low, high = 0.0, 1.0
    while _probability_within(high, degrees) < level:
        high *= 2
    for _ in range(100):  # halves the bracket until floats cannot divide it any more
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, degrees) < level else (low, middle)
    return high


def _probability_within(bound: float, degrees: int) -> float:
    """Return the probability that |t| <= bound.

    References:
        Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, equations 26.7.3 and 26.7.4.
    """
    angle = math.atan(bound / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):  # one term for every k
        total += term
        term *= (k - 1) / k * cosine**2
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
