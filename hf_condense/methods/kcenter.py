"""Greedy k-center: rows that cover their class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import MethodInfo
from hf_condense.methods._features import FeatureSelector


def k_center(features: Tensor, n: int) -> Tensor:
    """Choose rows greedily so that the farthest row is as near as possible to a chosen one.

    The first row is the one nearest to the mean. The largest distance is at most twice the optimum.

    Args:
        features: Features of the rows. (N, D).
        n: Number of rows to choose, in 1..N.

    Returns:
        Distinct row numbers in greedy order. int64 (n,).

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
        algorithm 1 (arXiv:1708.00489).

    Example:
        >>> k_center(torch.tensor([[0.0], [4.0], [5.0], [11.0]]), 3).tolist()
        [2, 3, 0]
    """
    rows = features.double()
    selection = [int((rows - rows.mean(0)).square().sum(1).argmin())]
    distances = (rows - rows[selection[0]]).square().sum(1)  # to the nearest chosen row
    distances[selection[0]] = -1  # so that a chosen row is never the farthest, even among duplicates
    while len(selection) < n:
        pick = int(distances.argmax())
        selection.append(pick)
        distances = torch.minimum(distances, (rows - rows[pick]).square_().sum(1))
        distances[pick] = -1
    return torch.tensor(selection)


class KCenter(FeatureSelector):
    """Choose rows by greedy k-center."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="kcenter",
        title="Greedy k-center",
        kind="coreset",
        summary="Chooses rows that cover the class: the farthest row is as near as possible to a chosen one.",
        paper="Active Learning for Convolutional Neural Networks: A Core-Set Approach",
        authors="Ozan Sener and Silvio Savarese",
        venue="ICLR",
        year=2018,
        link="https://arxiv.org/abs/1708.00489",
        cost="one trained network and one pass over the set for features",
        aliases=("k_center",),
    )

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows by `k_center`."""
        return k_center(features, n)
