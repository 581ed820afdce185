"""Shared parts of coreset methods that compare rows by features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hf_condense.engine.method import MethodConfig, Selector, option
from hf_condense.engine.teacher import features_of

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


@dataclass(frozen=True)
class FeatureConfig(MethodConfig):
    """Options of coreset methods that compare rows by features."""

    features: str = option(
        "network",
        "Features by which rows are compared: 'network' (embeddings of a network that is trained on the real set), "
        "'pixels', or the name of a column of embeddings.",
    )
    feature_updates: int = option(
        500, "Training updates of that network, which are nearly the whole cost.", ge=0, tiny=3
    )


class FeatureSelector(Selector[FeatureConfig]):
    """Base class of coreset methods that compare rows by features."""

    Config = FeatureConfig

    def features(self, run: Run) -> Tensor:
        """Return the features that the options name: (N, D)."""
        return features_of(run, self.config.features, self.config.feature_updates)
