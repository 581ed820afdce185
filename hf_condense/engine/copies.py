"""How close the images of a set come to single images of their source, so that copies are seen."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.rng import keyed_generator
from hf_condense.source.class_source import ClassSource

logger = logging.getLogger("hf_condense")

_SAMPLE = 500  # real rows that are compared with the others
_MOST_PRODUCTS = 2e12  # multiply-adds: about half a minute on one CPU core
_CHUNK_BYTES = 8 * 2**20  # of the source as floats; small chunks stay in a CPU's cache
_DIGITS = 4  # a grey level is 0.0039


def nearest_real(images: Tensor, source: ClassSource, seed: int = 0) -> dict[str, Any] | None:
    """Measure how far images are from their nearest source image of any class, and real rows from their nearest other.

    The distance of two images is the root mean square of the differences of their pixels over all channels.

    Args:
        images: Decoded images of a synthetic set; values outside [0, 1] are taken as they are.
        source: What the set was made from.
        seed: Seed of the sample of real rows: at most 500 of them.

    Shapes:
        images (n, C, H, W)

    Units:
        Pixels and distances: 0 is black or no difference, 1 is white or black against white.

    Returns:
        `{"synthetic": {"min", "median", "max"}, "real": {...}, "rows": n}`, n being the number of real rows that were
        sampled, or None if the source is too large (above 2e12 multiply-adds) or has a single row.

    Example:
        >>> from hf_condense.demo_data import load_demo
        >>> from hf_condense.source.class_source import load_source
        >>> source = load_source(load_demo()["test"], cache=False, progress=False)
        >>> nearest_real(source.images[:10] / 255, source)["synthetic"]
        {'min': 0.0, 'median': 0.0, 'max': 0.0}
    """
    sampled = torch.randperm(len(source), generator=keyed_generator(seed, "nearest"))[:_SAMPLE]
    products = (len(images) + len(sampled)) * len(source) * source.images[0].numel()
    if products > _MOST_PRODUCTS or len(source) < 2:
        logger.info(
            "not compared with the nearest source images: %.1e multiply-adds for %d rows; at most %.0e are spent",
            products,
            len(source),
            _MOST_PRODUCTS,
        )
        return None
    queries = torch.cat([255 * images.to(source.device).float().flatten(1), _levels(source, sampled)])
    own = torch.cat([torch.full((len(images),), -1), sampled])
    synthetic, real = _distances(queries, source, own).split([len(images), len(sampled)])
    return {"synthetic": _summary(synthetic), "real": _summary(real), "rows": len(sampled)}


@torch.no_grad()
def _distances(queries: Tensor, source: ClassSource, own: Tensor) -> Tensor:
    """Return the distance of every query (n, D) to its nearest source image but the one at `own`, if not -1."""
    best = torch.full((len(queries),), torch.inf, device=queries.device)
    place = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    chunk = max(1, _CHUNK_BYTES // (4 * max(queries.shape)))
    for start in range(0, len(source), chunk):
        index = torch.arange(start, min(start + chunk, len(source)))
        rows = _levels(source, index)
        # The squared distance but for the query's own square, which moves no minimum.
        squared = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)  # (n, rows)
        itself = ((own >= start) & (own <= index[-1])).nonzero().squeeze(1)
        squared[itself.to(squared.device), (own[itself] - start).to(squared.device)] = torch.inf
        least, where = squared.min(1)
        closer = least < best
        best = torch.where(closer, least, best)
        place = torch.where(closer, where + start, place)
    # Anew from the differences: the expanded square of a small distance is little more than rounding.
    parts = zip(queries.split(chunk), place.split(chunk), strict=True)
    return torch.cat([(part - _levels(source, found)).square().mean(1).sqrt().cpu() / 255 for part, found in parts])


def _levels(source: ClassSource, index: Tensor) -> Tensor:
    """Return source images as grey levels 0..255 in float32, on the device: (n, D)."""
    return source.images[index.to(source.images.device)].to(source.device).flatten(1).float()


def _summary(distances: Tensor) -> dict[str, float]:
    """Return the smallest, the middle and the largest distance, rounded."""
    values = {"min": distances.min(), "median": distances.quantile(0.5), "max": distances.max()}
    return {name: round(float(value), _DIGITS) for name, value in values.items()}
