"""DM by the textbook: one class and one image at a time, in plain loops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def distribution_matching(
    real: dict[int, Tensor], synthetic: dict[int, Tensor], embed: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum the squared distance between mean embeddings over classes; batches are (n, C, H, W) by class."""
    total = torch.zeros((), dtype=torch.float64)
    for label, batch in real.items():
        real_mean = sum(embed(image[None])[0] for image in batch) / len(batch)
        synthetic_mean = sum(embed(image[None])[0] for image in synthetic[label]) / len(synthetic[label])
        for r, s in zip(real_mean, synthetic_mean, strict=True):
            total = total + (r.detach() - s) ** 2
    return total
