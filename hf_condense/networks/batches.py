"""What every update of a training sees: which rows, cropped, augmented and mixed; and rows that fill up a chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.base.rng import Key, key_seed, keyed_generator
from hf_condense.condensed.views import random_crops, view
from hf_condense.networks.augment import Transform
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet


def rows_of_updates(rows: int, batch: int, updates: int, pairs: bool, *key: Key) -> Iterator[Tensor]:
    """Yield the rows of every update; each epoch visits all rows in a new order.

    With `pairs`, for networks with batch statistics, an update of a single row gets another one.
    """
    update = epoch = 0
    while update < updates:
        order = torch.randperm(rows, generator=keyed_generator(*key, "order", epoch))
        for part in order.split(batch)[: updates - update]:
            index = part
            if pairs and len(index) == 1 and rows > 1:
                other = order[1:2] if index == order[0] else order[:1]
                index = torch.cat([index, other])
            yield index
            update += 1
        epoch += 1


def training_batch(
    data: TrainingSet, index: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]
) -> tuple[Tensor, Tensor]:
    """Return what an update sees of rows: images and the probabilities that they should get.

    Args:
        data: The rows of all networks.
        index: Those that the first network sees, then those that the second one sees, and so on. (M * n,)
        recipe: How networks are trained.
        t: Number of the update.
        keys: Address of the draws of every network.

    Returns:
        Images (M * n, C, H, W) and probabilities (M * n, K).
    """
    images, targets = data.draw(index, *((*key, t) for key in keys))
    if recipe.view_area is not None and not data.sees_views:
        images = _cropped(images, recipe.view_area, t, keys)
    images, targets = _mixed(_augmented(images, recipe, t, keys), targets, recipe, t, keys)
    if data.relabel is not None:
        logits = torch.cat([data.relabel(part) for part in images.split(len(images) // len(keys))])
        targets = (logits / data.temperature).softmax(1)
    return images, targets


def with_last_row_repeated(images: Tensor, rows: int) -> Tensor:
    """Append copies of the last row: on black images, a network of a user's own may not be finite."""
    return torch.cat([images, images[-1:].expand(rows, *images.shape[1:])]) if rows else images


def with_zero_rows(tensor: Tensor, rows: int) -> Tensor:
    """Append rows of zeros: (n, ...) -> (n + rows, ...)."""
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])]) if rows else tensor


def _cropped(images: Tensor, least_area: float, t: int, keys: Sequence[tuple[Key, ...]]) -> Tensor:
    """Replace each image (M * n, C, H, W) by a random crop of it, at the same size."""
    n, (height, width) = len(images) // len(keys), images.shape[2:]
    generators = [keyed_generator(*key, "crop", t) for key in keys]
    crops = [random_crops(n, (height, width), least_area, generator, mirror=False) for generator in generators]
    return view(images, torch.cat(crops))


def _augmented(images: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]) -> Tensor:
    """Augment images (M * n, C, H, W), with parameters of its own for every image."""
    n = len(images) // len(keys)
    for stage, augmentation in enumerate(recipe.augmentations()):
        generators = [keyed_generator(*key, "augment", stage, t) for key in keys]
        transform = Transform.joined([augmentation.draw(n, generator) for generator in generators])
        images = transform(images, torch.arange(len(images)))
    return images


def _mixed(
    images: Tensor, targets: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]
) -> tuple[Tensor, Tensor]:
    """Apply CutMix: replace a rectangle of every image by that of another one, and mix the targets by area.

    The images (M * n, C, H, W) of a network share a rectangle, and get those of each other; targets are (M * n, K).
    """
    if not recipe.cutmix_probability:
        return images, targets
    n, sides = len(images) // len(keys), images.shape[2:]
    partners, is_inside = np.arange(len(images)).reshape(-1, n), np.zeros((len(keys), *sides), bool)
    for network, key in enumerate(keys):
        draw = np.random.default_rng(key_seed(*key, "cutmix", t))
        if draw.random() >= recipe.cutmix_probability:
            continue
        side = math.sqrt(1 - draw.beta(recipe.cutmix_beta, recipe.cutmix_beta))
        partners[network] = partners[network][draw.permutation(n)]
        spans = []
        for length in sides:
            centre, reach = int(draw.integers(length)), int(length * side) // 2
            spans.append(slice(max(0, centre - reach), min(length, centre + reach)))
        is_inside[network][tuple(spans)] = True
    if not is_inside.any():
        return images, targets
    partner = to_device(torch.from_numpy(partners.flatten()), images.device)
    inside = to_device(torch.from_numpy(is_inside).repeat_interleave(n, 0)[:, None], images.device)  # (M * n, 1, H, W)
    shares = torch.from_numpy(is_inside.mean((1, 2))).repeat_interleave(n)[:, None]  # float64 (M * n, 1)
    own, other = to_device(torch.stack([1 - shares, shares]).to(targets.dtype), images.device)
    return torch.where(inside, images[partner], images), own * targets + other * targets[partner]
