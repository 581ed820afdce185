"""RDED as its paper says it, one crop at a time: best crop of each picture, best crops of the class, mosaic."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop


def best_crops(
    pictures: list[Tensor],
    boxes: list[list[list[int]]],
    tile: tuple[int, int],
    predict: Callable[[Tensor], Tensor],
    label: int,
    needed: int,
) -> list[Tensor]:
    """Return the crops with the lowest cross-entropy, one of each picture: uint8 (C, h, w).

    Args:
        pictures: uint8 (C, H, W).
        boxes: Top, left, height and width of the crops of every picture.
        tile: Height and width of a crop.
        predict: Turns pixels (1, C, h, w) into logits (1, K).
        label: The class.
        needed: Number of crops.
    """
    best = []
    for picture, of_picture in zip(pictures, boxes, strict=True):
        scored = []
        for top, left, height, width in of_picture:
            crop = resized_crop(picture.float(), top, left, height, width, list(tile), antialias=True)
            crop = crop.round().clamp(0, 255)
            probabilities = predict(crop[None] / 255)[0].softmax(0)
            scored.append((-math.log(float(probabilities[label])), crop.to(torch.uint8)))
        best.append(min(scored, key=lambda pair: pair[0]))
    return [crop for _, crop in sorted(best, key=lambda pair: pair[0])[:needed]]


def mosaics(crops: list[Tensor], side: int, count: int) -> list[Tensor]:
    """Return `count` images; image j has the crops j, j + count, j + 2 count, ... as its tiles, row by row."""
    images = []
    for j in range(count):
        tiles = [crops[j + count * i] for i in range(side**2)]
        rows = [torch.cat(tiles[side * r : side * (r + 1)], dim=2) for r in range(side)]
        images.append(torch.cat(rows, dim=1))
    return images
