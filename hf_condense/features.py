"""Features by which coreset methods compare rows: a trained network's embeddings, pixels, or a column of the user's."""

from __future__ import annotations

import logging

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_condense.cache import atomic_file, cache_enabled, cache_folder
from hf_condense.run import Run
from hf_condense.source import batches
from hf_condense.teacher import network_key, trained_network

logger = logging.getLogger("hf_condense")

_BATCH = 64  # images embedded at a time


def features_of(run: Run, kind: str, updates: int) -> Tensor:
    """Return a feature for every image of the source, in its order.

    Args:
        run: The run.
        kind: `"network"` (embeddings of the run's network, trained on the whole source), `"pixels"` (normalised
            pixels), or the name of a numeric column of the dataset.
        updates: Updates with which that network is trained, >= 0.

    Shapes:
        -> (N, D), on the CPU.

    Raises:
        ValueError: If there is no such column, or its rows are not vectors of one length.
    """
    if kind == "pixels":
        return torch.cat([images.flatten(1).cpu() for images, _ in batches(run.source, _BATCH)])
    if kind != "network":
        return run.column(kind)
    if not cache_enabled(run.cache and run.factory.named):
        return _embedded(run, updates)
    file = cache_folder("features") / f"{network_key(run, updates)}.safetensors"
    # Other processes wait for the main one, and then find the file.
    with run.accelerator.main_process_first():
        if not file.is_file():
            features = _embedded(run, updates)
            with atomic_file(file) as work:
                save_file({"features": features}, work)
            logger.info("cached features in %s (%.1f MB)", file, file.stat().st_size / 1e6)
        return load_file(file)["features"]


@torch.no_grad()
def _embedded(run: Run, updates: int) -> Tensor:
    """Embed the source with a network that was trained on it."""
    net = trained_network(run, updates)
    return torch.cat([net.embed(images).float().cpu() for images, _ in batches(run.source, _BATCH)])  # type: ignore[operator]
