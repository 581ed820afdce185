"""A pool of networks by the textbook: blended weights, and the cross-entropy of one row after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def blended(first: nn.Module, trained: nn.Module, position: float) -> nn.Module:
    """Return a network whose every parameter is (1 - position) * first + position * trained, in float64."""
    network = copy.deepcopy(first).double()
    pairs = zip(network.parameters(), trained.double().parameters(), strict=True)
    with torch.no_grad():
        for parameter, end in pairs:
            parameter.copy_((1 - position) * parameter + position * end)
    return network


def calibration(rows: dict[int, Tensor], targets: dict[int, Tensor], logits: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over classes the mean cross-entropy of each class's rows (n, C, H, W) and probabilities (n, K)."""
    total = torch.zeros((), dtype=torch.float64)
    for label, batch in rows.items():
        of_class = torch.zeros((), dtype=torch.float64)
        for image, target in zip(batch, targets[label], strict=True):
            scores = logits(image[None])[0]
            normaliser = torch.log(sum(torch.exp(score) for score in scores))
            of_class = of_class - sum(p * (score - normaliser) for p, score in zip(target, scores, strict=True))
        total = total + of_class / len(batch)
    return total
