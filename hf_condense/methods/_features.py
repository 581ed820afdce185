"""What coresets share that compare rows by features."""

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
    """Options of coresets that look at features."""

    features: str = option(
        "network",
        "What rows are compared by: 'network' (embeddings of a network trained on the set), 'pixels', or the name of "
        "a column of embeddings.",
    )
    feature_updates: int = option(
        500, "Updates with which that network is trained; its cost is about theirs.", ge=0, tiny=3
    )


class FeatureSelector(Selector[FeatureConfig]):
    """Base of coreset methods that compare rows by features."""

    Config = FeatureConfig

    def features(self, run: Run) -> Tensor:
        """Return the features that the options ask for: (N, D)."""
        return features_of(run, self.config.features, self.config.feature_updates)
