"""Greedy k-center: rows that cover their class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import MethodInfo
from hf_condense.methods._features import FeatureSelector

if TYPE_CHECKING:
    pass


def k_center(features: Tensor, n: int) -> Tensor:
    """Choose rows greedily so that the farthest row is as near as possible to a chosen one.

    Starts from the row nearest the mean. The largest distance is at most twice the optimum.

    Args:
        features: One row each.
        n: Rows to choose, in 1..N.

    Shapes:
        (N, D) -> int64 (n,), in greedy order, without repeats.

    Reference:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
        algorithm 1 (arXiv:1708.00489).

    Example:
        >>> k_center(torch.tensor([[0.0], [4.0], [5.0], [11.0]]), 3).tolist()
        [2, 3, 0]
    """
    rows = features.double()
    chosen = [int((rows - rows.mean(0)).square().sum(1).argmin())]
    nearest = (rows - rows[chosen[0]]).square().sum(1)
    nearest[chosen[0]] = -1  # taken rows are never the farthest, even among duplicates
    while len(chosen) < n:
        pick = int(nearest.argmax())
        chosen.append(pick)
        nearest = torch.minimum(nearest, (rows - rows[pick]).square().sum(1))
        nearest[pick] = -1
    return torch.tensor(chosen)


class KCenter(FeatureSelector):
    """Greedy k-center."""

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
