"""Herding: rows whose mean feature stays closest to the mean of their class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import MethodInfo
from hf_condense.methods._features import FeatureSelector


def herding(features: Tensor, n: int) -> Tensor:
    """Choose rows greedily so that their mean stays as close as possible to the mean of all rows.

    Args:
        features: Features of the rows. (N, D).
        n: Number of rows to choose, in 1..N.

    Returns:
        Distinct row numbers in greedy order. int64 (n,).

    References:
        Welling, "Herding dynamical weights to learn", ICML 2009; as used in Rebuffi et al., "iCaRL", CVPR 2017,
        algorithm 4 (arXiv:1611.07725).

    Example:
        >>> herding(torch.tensor([[0.0], [4.0], [5.0], [11.0]]), 2).tolist()
        [2, 1]
    """
    rows = features.double()
    mean, total = rows.mean(0), torch.zeros_like(rows[0])
    penalties = torch.zeros(len(rows), dtype=torch.double)  # infinite for rows that have been chosen
    norms = rows.square().sum(1)
    selection = []
    for k in range(1, n + 1):
        # |mean - (total + x) / k|^2 differs from (|x|^2 - 2 x . (k mean - total)) / k^2 by a constant.
        pick = int((norms - rows @ (2 * (k * mean - total)) + penalties).argmin())
        selection.append(pick)
        total += rows[pick]
        penalties[pick] = torch.inf
    return torch.tensor(selection)


class Herding(FeatureSelector):
    """Choose rows by herding."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="herding",
        title="Herding",
        kind="coreset",
        summary="Chooses rows whose mean feature stays closest to the class mean.",
        paper="Herding dynamical weights to learn",
        authors="Max Welling",
        venue="ICML",
        year=2009,
        link="https://doi.org/10.1145/1553374.1553517",
        cost="one trained network and one pass over the set for features",
    )

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows by `herding`."""
        return herding(features, n)
