"""Shared parts of coreset methods that compare rows by features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from hf_condense.engine.features import features_of
from hf_condense.engine.method import Preset, Selector
from hf_condense.engine.options import MethodConfig, option
from hf_condense.engine.task import Task

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_NETWORK = {"features": ("network",)}


@dataclass(frozen=True)
class FeatureConfig(MethodConfig):
    """Options of coreset methods that compare rows by features."""

    features: str = option(
        "network",
        "Features by which rows are compared: 'network' (embeddings of a network that is trained on the real set), "
        "'pixels', or the name of a column of embeddings.",
    )
    feature_updates: int = option(
        500,
        "Training updates of that network, of feature_batch rows each, for at most 300 epochs; they are half of the "
        "cost.",
        ge=0,
        tiny=3,
        needs=_NETWORK,
    )
    feature_batch: int = option(64, "Rows per training update of that network.", ge=1, needs=_NETWORK)


def _default(task: Task) -> dict[str, Any]:
    return {"network": "convnet-w32"}


class FeatureSelector(Selector[FeatureConfig]):
    """Base class of coreset methods that compare rows by features."""

    Config = FeatureConfig
    version: ClassVar[int] = 2
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset(
            "Features of a network of width 32: under a minute for 60,000 small images on two cores. At the usual "
            "width (network='convnet'), they take ten times as long.",
            _default,
        )
    }

    def features(self, run: Run) -> Tensor:
        """Return the features that the options name: (N, D)."""
        config = self.config
        return features_of(run, config.features, config.feature_updates, config.feature_batch)
