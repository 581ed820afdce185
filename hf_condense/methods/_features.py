"""Shared parts of coreset methods that compare rows by features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_condense.engine.method import Preset, Selector
from hf_condense.engine.options import MethodConfig, option
from hf_condense.engine.task import Task
from hf_condense.engine.trained_networks import (
    BATCH_SIZE,
    FORWARD_IMAGES,
    cached_tensors_of,
    network_key,
    trained_network,
)

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_COLUMN_ROWS = 10_000  # of a column that are read at a time
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


def features_of(run: Run, kind: str, updates: int, batch: int = BATCH_SIZE) -> Tensor:
    """Return a feature for every image of the source, in its order.

    Args:
        run: The run.
        kind: `"network"` (embeddings of the run's network, which is trained on the whole source), `"pixels"`
            (normalised pixels), or the name of a numeric column of the dataset.
        updates: Training updates of that network, >= 0.
        batch: Rows per update, >= 1.

    Returns:
        (N, D), on the CPU.

    Raises:
        ValueError: If there is no such column, or its rows are not vectors of equal length.
    """
    if kind == "pixels":
        return _joined((images.flatten(1) for images in run.source.all_images(FORWARD_IMAGES)), len(run.source))
    if kind != "network":
        return _column(run, kind)
    key = network_key(run, updates, batch)
    return cached_tensors_of(run, "features", key, lambda: {"features": _embedded(run, updates, batch)})["features"]


def _column(run: Run, name: str) -> Tensor:
    """Return a numeric column of the dataset in the source's order, as float32 (N, D).

    Raises:
        ValueError: If there is no such column, or its rows are not vectors of equal length.
    """
    if name not in run.dataset.column_names:
        raise ValueError(f"the dataset has no column {name!r}; columns: {', '.join(run.dataset.column_names)}")
    try:
        rows = run.dataset.select_columns([name]).with_format("numpy", dtype=np.float64)
        parts = [_vectors(batch[name]) for batch in rows.iter(_COLUMN_ROWS)]  # lists of Python would take memory
        values = torch.from_numpy(np.concatenate(parts))
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {name!r} should hold vectors of equal length; {error}") from error
    return values[run.source.rows]


def _vectors(rows: Any) -> NDArray[np.float32]:
    """Return rows of numbers, as NumPy arrays, as one array (n, D)."""
    stacked = np.stack(list(rows))
    if stacked.dtype.kind not in "biuf":
        raise TypeError(f"got {stacked.dtype}")
    with np.errstate(over="ignore"):  # infinite features are named later
        return stacked.astype(np.float32).reshape(len(stacked), -1)


@torch.no_grad()
def _embedded(run: Run, updates: int, batch: int) -> Tensor:
    """Return embeddings of the source by a network that was trained on it: (N, D)."""
    net = trained_network(run, updates, batch)
    return _joined((net.embed(images).float() for images in run.source.all_images(FORWARD_IMAGES)), len(run.source))  # type: ignore[operator]


def _joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Return parts (n, D) one after the other, on the CPU: (rows, D). Memory never holds them twice."""
    whole, start = torch.empty(rows, 0), 0
    for part in parts:
        if not start:
            whole = torch.empty(rows, part.shape[1], dtype=part.dtype)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
