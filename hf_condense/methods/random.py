"""Random rows: the baseline of every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import MethodInfo, Selector
from hf_condense.engine.options import MethodConfig


@dataclass(frozen=True)
class RandomRowsConfig(MethodConfig):
    """Random rows have no options."""


class RandomRows(Selector[RandomRowsConfig]):
    """Choose rows of each class at random."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="random",
        title="Random rows",
        kind="coreset",
        summary="Draws rows of each class at random: the baseline beside which every number stands.",
        paper="Dataset Condensation with Gradient Matching",
        authors="Bo Zhao, Konda Reddy Mopuri and Hakan Bilen",
        venue="ICLR",
        year=2021,
        link="https://arxiv.org/abs/2006.05929",
        cost="none",
    )
    Config = RandomRowsConfig
    streams: ClassVar[bool] = True

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose `n` rows at random."""
        return torch.randperm(len(features), generator=generator)[:n]
