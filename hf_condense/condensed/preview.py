"""Pictures of sets: grids with a row for each class, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from hf_condense.condensed.tensors import CondensedTensors, turns_of

_SIDE = 56  # pixels; smaller images are enlarged by an integer factor to about this side
_LONGEST_SIDE = 8192  # pixels; no image is enlarged beyond this, so that long and narrow ones fit into memory
_GAP = 2
_BLANK = 1.0  # white, in pixel units


def grid(images: Tensor, labels: Tensor | None = None, *, per_class: int = 10, max_classes: int = 100) -> Image.Image:
    """Return images as one picture: a row for each class if labels are given, else rows of `per_class` images.

    Small images are enlarged by an integer factor without smoothing, so that single pixels are visible.

    Args:
        images: At least one image with one or three channels, in pixel units. Values outside [0, 1] are clipped.
            (N, C, H, W).
        labels: Class of every image, (N,), or None.
        per_class: Images in a row, >= 1. With labels, further images of a class are left out, and the row of a class
            with fewer images is filled with white.
        max_classes: Largest number of classes to show, in label order, >= 1.

    Raises:
        ValueError: If a shape is wrong, or `per_class` or `max_classes` is below 1.

    Example:
        >>> grid(torch.rand(6, 1, 28, 28), torch.tensor([0, 0, 1, 1, 2, 2]), per_class=2).size
        (118, 176)
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images should be (N, C, H, W) with N >= 1 and C of 1 or 3; got {tuple(images.shape)}")
    if min(per_class, max_classes) < 1:
        raise ValueError(f"per_class and max_classes should be >= 1; got {per_class} and {max_classes}")
    if labels is not None:
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels should be ({len(images)},), one for each image; got {tuple(labels.shape)}")
        images = torch.cat([_row(images[labels == c], per_class) for c in labels.unique()[:max_classes]])
    scale = max(1, min(round(_SIDE / min(images.shape[2:])), _LONGEST_SIDE // max(images.shape[2:])))
    enlarged = F.interpolate(images.detach().float().cpu().clamp(0, 1), scale_factor=scale, mode="nearest")
    picture: Image.Image = to_pil_image(make_grid(enlarged, nrow=per_class, padding=_GAP, pad_value=_BLANK))
    return picture


def first_images(tensors: CondensedTensors, per_class: int = 10, *, max_classes: int = 100) -> Image.Image:
    """Return the first decoded images of every class of a set as one picture, a row for each class.

    Args:
        tensors: The set.
        per_class: Images to show per class, >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.
    """
    labels = tensors.row_labels
    classes = set(labels.unique()[:max_classes].tolist())
    turns = turns_of(labels.tolist())
    first = [row for row, c in enumerate(labels.tolist()) if c in classes and turns[row] < per_class]
    return grid(*tensors.decoded(torch.tensor(first)), per_class=per_class)


def comparison(sets: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures side by side, each under its caption, for example a condensed set and random rows.

    Args:
        sets: (caption, picture) pairs, at least one.

    Raises:
        ValueError: If there is no picture.
    """
    if not sets:
        raise ValueError("sets should hold at least one (caption, picture) pair; got none")
    font = ImageFont.load_default()
    measures = [ImageDraw.Draw(picture).textbbox((0, 0), caption, font=font) for caption, picture in sets]
    widths = [max(picture.width, round(box[2])) for (_, picture), box in zip(sets, measures, strict=True)]
    head = round(max(box[3] for box in measures)) + 2 * _GAP
    gap = 8 * _GAP
    height = head + max(picture.height for _, picture in sets)
    canvas = Image.new("RGB", (sum(widths) + gap * (len(sets) - 1), height), "white")
    left = 0
    for (caption, picture), width in zip(sets, widths, strict=True):
        ImageDraw.Draw(canvas).text((left, _GAP), caption, fill="black", font=font)
        canvas.paste(picture, (left, head))
        left += width + gap
    return canvas


def _row(images: Tensor, length: int) -> Tensor:
    """Cut the images to `length`, or fill them up with white ones: (n, C, H, W) -> (length, C, H, W)."""
    blank = images.new_full((max(0, length - len(images)), *images.shape[1:]), _BLANK)
    return torch.cat([images[:length], blank])
