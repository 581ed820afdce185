"""Pictures of sets: grids with a row for each class, and pictures side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.tensors import CondensedTensors, are_alone, check_shown, eight_bit_pixels, first_rows

SIDE = 56
"""Pixels of the side to about which smaller images are enlarged, by an integer factor."""
SHORT_FLOW = 5
"""Images in a row beside or among other pictures, if no class has several."""

_LONGEST_SIDE = 8192  # pixels; no image is enlarged beyond this, so that long and narrow ones fit into memory
_GAP = 2
_BLANK = 1.0  # white, in pixel units
_FLOW = 10  # images in a row of a picture that stands alone, if no class has several
_PANEL = 584  # pixels; pictures side by side are enlarged by an integer factor to about this width
_MARGIN, _BETWEEN = 36, 48  # pixels around and between pictures side by side
_TITLE, _SCORE, _NOTE, _LINE = 34, 42, 21, 1.35  # sizes of the fonts, and the height of a line in font sizes
_DARK, _GREY = "#1f2328", "#59636e"


class Panel(NamedTuple):
    """A picture with what stands above it.

    Attributes:
        title: What the picture shows.
        score: What it is worth, in larger type.
        picture: The picture.
    """

    title: str
    score: str
    picture: Image.Image


def grid(images: Tensor, labels: Tensor | None = None, *, per_class: int = 10, max_classes: int = 100) -> Image.Image:
    """Return images as one picture: a row for each class if labels are given, else rows of `per_class` images.

    Small images are enlarged by an integer factor without smoothing, so that single pixels are visible.

    Args:
        images: At least one image with one or three channels, in pixel units. Values outside [0, 1] are clipped.
            (N, C, H, W).
        labels: Class of every image, (N,), or None.
        per_class: Images in a row, at most; >= 1. With labels, further images of a class are left out. A row is as long
            as that of the class with most images, and the rows of other classes are filled with white.
        max_classes: Largest number of classes to show, in label order, >= 1.

    Raises:
        ValueError: If a shape is wrong, or `per_class` or `max_classes` is below 1.

    Example:
        >>> grid(torch.rand(6, 1, 28, 28), torch.tensor([0, 0, 1, 1, 2, 2]), per_class=2).size
        (118, 176)
    """
    check_shown(per_class, max_classes)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images should be (N, C, H, W) with N >= 1 and C of 1 or 3; got {tuple(images.shape)}")
    if labels is not None:
        if labels.shape != images.shape[:1]:
            raise ValueError(f"labels should be ({len(images)},), one for each image; got {tuple(labels.shape)}")
        classes, counts = labels.unique(return_counts=True)
        per_class = min(per_class, int(counts[:max_classes].max()))
        images = torch.cat([_row(images[labels == c], per_class) for c in classes[:max_classes]])
    scale = max(1, min(round(SIDE / min(images.shape[2:])), _LONGEST_SIDE // max(images.shape[2:])))
    enlarged = F.interpolate(images.detach().float().cpu().clamp(0, 1), scale_factor=scale, mode="nearest")
    sheet = make_grid(enlarged, nrow=per_class, padding=_GAP, pad_value=_BLANK)
    picture: Image.Image = to_pil_image(eight_bit_pixels(sheet))  # floats would be rounded down
    return picture


@plain_torch()
def first_images(tensors: CondensedTensors, per_class: int = 10, *, max_classes: int = 100) -> Image.Image:
    """Return the first decoded images of every class of a set as one picture.

    Each class has a row, unless no class has more than one image: then the images are in rows of ten.

    Args:
        tensors: The set.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.

    Raises:
        ValueError: If `per_class` or `max_classes` is below 1.
    """
    check_shown(per_class, max_classes)
    rows = first_rows(tensors.row_labels.tolist(), per_class, max_classes)
    images, labels = tensors.decoded(torch.tensor([*chain(*rows.values())], dtype=torch.int64))
    if are_alone(tensors.row_labels):
        return grid(images, per_class=min(_FLOW, len(images)))
    return grid(images, labels, per_class=per_class, max_classes=max_classes)


def grid_of(images: Tensor, labels: Tensor) -> Image.Image:
    """Return images as one picture: a row for each class, or rows of five if no class has several.

    Args:
        images: In pixel units. (N, C, H, W).
        labels: Class of every image. (N,).
    """
    return grid(images, per_class=SHORT_FLOW) if are_alone(labels) else grid(images, labels)


def comparison(panels: Sequence[Panel], note: str = "") -> Image.Image:
    """Return pictures side by side, each below its title and score, for example a condensed set and random rows.

    Args:
        panels: The pictures with their texts, at least one. Small pictures are enlarged without smoothing.
        note: What stands below all of them; long lines are broken.

    Raises:
        ValueError: If there is no picture.
    """
    if not panels:
        raise ValueError("panels should hold at least one picture; got none")
    title_font, score_font, note_font = (ImageFont.load_default(size) for size in (_TITLE, _SCORE, _NOTE))
    pictures = [_enlarged(panel.picture) for panel in panels]
    widths = [
        max(picture.width, round(title_font.getlength(panel.title)), round(score_font.getlength(panel.score)))
        for panel, picture in zip(panels, pictures, strict=True)
    ]
    inner = sum(widths) + _BETWEEN * (len(panels) - 1)
    lines = [line for text in note.split("\n") for line in _broken(text, inner, note_font)] if note else []
    top = _MARGIN + round(_LINE * (_TITLE + _SCORE))
    bottom = top + max(picture.height for picture in pictures)
    height = bottom + _MARGIN + (round(_LINE * _NOTE * (len(lines) + 0.5)) if lines else 0)
    canvas = Image.new("RGB", (inner + 2 * _MARGIN, height), "white")
    pen = ImageDraw.Draw(canvas)
    left = _MARGIN
    for panel, picture, width in zip(panels, pictures, widths, strict=True):
        pen.text((left, _MARGIN - 10), panel.title, fill=_GREY, font=title_font)
        pen.text((left, _MARGIN - 10 + round(_LINE * _TITLE)), panel.score, fill=_DARK, font=score_font)
        canvas.paste(picture, (left, top))
        left += width + _BETWEEN
    pen.multiline_text((_MARGIN, bottom + 12), "\n".join(lines), fill=_GREY, font=note_font, spacing=6)
    return canvas


def _enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture enlarged by an integer factor to about the width of a panel."""
    factor = max(1, round(_PANEL / picture.width))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _broken(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Iterator[str]:
    """Yield a text in lines that are at most `width` pixels long, if its words are."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _row(images: Tensor, length: int) -> Tensor:
    """Cut the images to `length`, or fill them up with white ones: (n, C, H, W) -> (length, C, H, W)."""
    blank = images.new_full((max(0, length - len(images)), *images.shape[1:]), _BLANK)
    return torch.cat([images[:length], blank])
