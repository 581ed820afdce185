"""How close the images of a set come to single images of their source: a check that finds copies."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.source.class_source import ClassSource

logger = logging.getLogger("hf_condense")

_SAMPLE = 500  # real rows that are compared with all the others
_MOST_PRODUCTS = {"cpu": 2e12, "other": 2e14}  # multiply-adds: half a minute on one CPU core, seconds on a GPU
_CHUNK_BYTES = 8 * 2**20  # source rows in float32 at a time; chunks of this size stay in a CPU's cache
_DIGITS = 4  # enough, because one grey level is 0.0039


class Nearest(NamedTuple):
    """The real images that are nearest to some images.

    Attributes:
        images: In pixel units. (n, C, H, W).
        distances: How far each is, in pixel units. (n,).
    """

    images: Tensor
    distances: Tensor


def nearest_images(images: Tensor, source: ClassSource) -> Nearest:
    """Return the source image, of any class, that is nearest to each of some images, however long it takes.

    Args:
        images: In pixel units. (n, C, H, W).
        source: Images of the same shape.

    Raises:
        ValueError: If the images of the source have another shape.

    Example:
        >>> from hf_condense.demo_data import load_demo
        >>> from hf_condense.source.load import load_source
        >>> source = load_source(load_demo()["test"], cache=False, progress=False)
        >>> nearest_images(source.images[:2] / 255 + 0.1, source).distances
        tensor([0.1000, 0.1000])
    """
    if source.image_shape != tuple(images.shape[1:]):
        raise ValueError(
            f"images should have the shape of the source, {source.image_shape}; got {(*images.shape[1:],)}"
        )
    queries = 255 * images.to(source.device).float().flatten(1)
    distances, rows = _search(queries, source, torch.full((len(images),), -1))
    return Nearest(_levels(source, rows).cpu().unflatten(1, source.image_shape) / 255, distances)


def nearest_real(images: Tensor, source: ClassSource, seed: int = 0) -> dict[str, Any] | None:
    """Measure how far images are from their nearest source image, and real rows from their nearest other row.

    The distance of two images is the root mean square of the differences of their pixels over all channels. Classes
    make no difference.

    Args:
        images: Decoded images of a synthetic set in pixel units, where 0 is black and 1 is white. Values outside [0, 1]
            are not clipped. (n, C, H, W).
        source: What the set was made from.
        seed: Seed for the sample of real rows, at most 500.

    Returns:
        `{"synthetic": {"min", "median", "max"}, "real": {...}, "rows": n}`, where n is the number of sampled real rows
        and distances are in pixel units (1 is black against white). None if the source is too large (more than 2e12
        multiply-adds on a CPU, 2e14 elsewhere), has a single row, or decodes its large pictures only when they are
        needed.

    Example:
        >>> from hf_condense.demo_data import load_demo
        >>> from hf_condense.source.load import load_source
        >>> source = load_source(load_demo()["test"], cache=False, progress=False)
        >>> nearest_real(source.images[:10] / 255, source)["synthetic"]
        {'min': 0.0, 'median': 0.0, 'max': 0.0}
    """
    if not _are_comparable(len(images), source):
        return None
    sampled = torch.randperm(len(source), generator=keyed_generator(seed, "nearest"))[:_SAMPLE]
    queries = torch.cat([255 * images.to(source.device).float().flatten(1), _levels(source, sampled)])
    excluded = torch.cat([torch.full((len(images),), -1), sampled])
    synthetic, real = _search(queries, source, excluded)[0].split([len(images), len(sampled)])
    return {"synthetic": _summary(synthetic), "real": _summary(real), "rows": len(sampled)}


def nearest_of_set(tensors: CondensedTensors, source: ClassSource, seed: int = 0) -> dict[str, Any] | None:
    """Return what `nearest_real` returns for the rows of a set, which are decoded only if they can be compared."""
    return nearest_real(tensors.decoded()[0], source, seed) if _are_comparable(tensors.num_rows, source) else None


def _are_comparable(rows: int, source: ClassSource) -> bool:
    """Return whether some images can be compared with the source in reasonable time; log why not."""
    if source.streams:
        logger.info("images were not compared with the nearest source images: pictures of this size are not all read")
        return False
    if len(source) < 2:
        logger.info("images were not compared with the nearest source images: the source has a single row")
        return False
    products = (rows + min(_SAMPLE, len(source))) * len(source) * math.prod(source.image_shape)
    most = _MOST_PRODUCTS["cpu" if source.device.type == "cpu" else "other"]
    if products > most:
        logger.info(
            "images were not compared with the nearest source images: %d rows take %.1e multiply-adds, above %.0e",
            len(source),
            products,
            most,
        )
        return False
    return True


@torch.no_grad()
def _search(queries: Tensor, source: ClassSource, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far every query is from its nearest source image, and which row that is.

    Args:
        queries: Grey levels 0..255. (n, D).
        source: The source.
        excluded: Row of the source that is left out for each query; -1 leaves out none. int64 (n,).

    Returns:
        Distances in pixel units on the CPU, and rows, both (n,).
    """
    smallest = torch.full((len(queries),), torch.inf, device=queries.device)
    nearest = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    chunk = max(1, _CHUNK_BYTES // (4 * max(queries.shape)))
    for start in range(0, len(source), chunk):
        index = torch.arange(start, min(start + chunk, len(source)))
        rows = _levels(source, index)
        # The query's own square is left out of the squared distance: it does not change which row is nearest.
        squared = torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2)  # (n, rows)
        in_chunk = ((excluded >= start) & (excluded <= index[-1])).nonzero().squeeze(1)
        squared[in_chunk.to(squared.device), (excluded[in_chunk] - start).to(squared.device)] = torch.inf
        chunk_smallest, column = squared.min(1)
        closer = chunk_smallest < smallest
        smallest = torch.where(closer, chunk_smallest, smallest)
        nearest = torch.where(closer, column + start, nearest)
    # The distances are computed again from differences: the expanded square of a small one is mostly rounding error.
    parts = zip(queries.split(chunk), nearest.split(chunk), strict=True)
    distances = [(part - _levels(source, rows)).square().mean(1).sqrt().cpu() / 255 for part, rows in parts]
    return torch.cat(distances), nearest


def _levels(source: ClassSource, index: Tensor) -> Tensor:
    """Return source images as grey levels 0..255 in float32, on the device: (n, D)."""
    return source.images[index.to(source.images.device)].to(source.device).flatten(1).float()


def _summary(distances: Tensor) -> dict[str, float]:
    """Return the smallest, the median and the largest distance, rounded."""
    values = {"min": distances.min(), "median": distances.quantile(0.5), "max": distances.max()}
    return {name: round(float(value), _DIGITS) for name, value in values.items()}
