"""Coresets: real rows, chosen at random, by herding or by greedy k-center; the baselines of every number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hf_condense.features import features_of
from hf_condense.method import MethodConfig, MethodInfo, Selector, option

if TYPE_CHECKING:
    from hf_condense.run import Run


def herding(features: Tensor, n: int) -> Tensor:
    """Choose rows greedily so that their mean stays closest to the mean of all.

    Args:
        features: One row each.
        n: Rows to choose, in 1..N.

    Shapes:
        (N, D) -> int64 (n,), in greedy order, without repeats.

    Reference:
        Welling, "Herding dynamical weights to learn", ICML 2009; as used in Rebuffi et al., "iCaRL", CVPR 2017,
        algorithm 4 (arXiv:1611.07725).

    Example:
        >>> herding(torch.tensor([[0.0], [4.0], [5.0], [11.0]]), 2).tolist()
        [2, 1]
    """
    rows = features.double()
    mean, total = rows.mean(0), torch.zeros_like(rows[0])
    free = torch.zeros(len(rows), dtype=torch.double)  # infinite once a row is taken
    norms = rows.square().sum(1)
    chosen = []
    for k in range(1, n + 1):
        # |mean - (total + x) / k|^2 differs from (|x|^2 - 2 x . (k mean - total)) / k^2 by a constant.
        pick = int((norms - 2 * rows @ (k * mean - total) + free).argmin())
        chosen.append(pick)
        total += rows[pick]
        free[pick] = torch.inf
    return torch.tensor(chosen)


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


@dataclass(frozen=True)
class RandomRowsConfig(MethodConfig):
    """Options of random rows: none."""


class RandomRows(Selector[RandomRowsConfig]):
    """Random rows of each class."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="random", title="Random rows", kind="coreset",
        summary="Draws rows of each class at random: the baseline beside which every number stands.",
        paper="Dataset Condensation with Gradient Matching", authors="Bo Zhao, Konda Reddy Mopuri and Hakan Bilen",
        venue="ICLR", year=2021, link="https://arxiv.org/abs/2006.05929", cost="none",
    )  # fmt: skip
    Config = RandomRowsConfig

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows."""
        return torch.randperm(len(features), generator=generator)[:n]


@dataclass(frozen=True)
class FeatureConfig(MethodConfig):
    """Options of coresets that look at features."""

    features: str = option(
        "network",
        "What rows are compared by: 'network' (embeddings of a network trained on the set), 'pixels', or the name of "
        "a column of embeddings.",
    )
    feature_updates: int = option(500, "Updates with which that network is trained; its cost is about theirs.", ge=0)


class Herding(Selector[FeatureConfig]):
    """Herding."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="herding", title="Herding", kind="coreset",
        summary="Chooses rows whose mean feature stays closest to the class mean.",
        paper="Herding dynamical weights to learn", authors="Max Welling",
        venue="ICML", year=2009, link="https://doi.org/10.1145/1553374.1553517",
        cost="one trained network and one pass over the set for features",
    )  # fmt: skip
    Config = FeatureConfig

    def features(self, run: Run) -> Tensor:
        """Return the features that the options ask for."""
        return features_of(run, self.config.features, self.config.feature_updates)

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows by `herding`."""
        return herding(features, n)


class KCenter(Selector[FeatureConfig]):
    """Greedy k-center."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="kcenter", title="Greedy k-center", kind="coreset",
        summary="Chooses rows that cover the class: the farthest row is as near as possible to a chosen one.",
        paper="Active Learning for Convolutional Neural Networks: A Core-Set Approach",
        authors="Ozan Sener and Silvio Savarese",
        venue="ICLR", year=2018, link="https://arxiv.org/abs/1708.00489",
        cost="one trained network and one pass over the set for features",
        aliases=("k_center",),
    )  # fmt: skip
    Config = FeatureConfig

    def features(self, run: Run) -> Tensor:
        """Return the features that the options ask for."""
        return features_of(run, self.config.features, self.config.feature_updates)

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows by `k_center`."""
        return k_center(features, n)
