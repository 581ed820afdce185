"""Numbers that are spread over a range, or repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spread(count: int, most: int) -> Tensor:
    """Return at most `most` of the numbers below `count`, evenly spread, with the first and, if `most` > 1, the last.

    Args:
        count: How many numbers there are, >= 0.
        most: How many are returned at most, >= 1.

    Returns:
        Sorted. int64 (n,), on the CPU.

    Example:
        >>> spread(10, 4).tolist()
        [0, 3, 6, 9]
    """
    # float32 has no odd numbers above 2**24, so it would name rows that do not exist.
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64, device="cpu").round().long()


def repeated(numbers: Tensor, n: int) -> Tensor:
    """Return `n` numbers: some (m,), from the first to the last again and again, and cut off.

    Example:
        >>> repeated(torch.tensor([3, 1, 4]), 5)
        tensor([3, 1, 4, 3, 1])
    """
    return numbers.repeat(math.ceil(n / len(numbers)))[:n]
