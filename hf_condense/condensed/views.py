"""Soft labels of augmented views: which parts of an image a teacher saw, and the largest of its logits for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.devices import to_device

VALUES, CLASSES, CROPS = "soft_label_values", "soft_label_classes", "soft_label_crops"
MOST_CLASSES = 2**15  # what the int16 of a class number holds
MOST_VIEWS = 1000  # of a row
CROP_NUMBERS = 5  # top, left, height, width, mirrored
_LARGEST_RATIO = math.log(4 / 3)  # of the sides of a crop, as a logarithm
_LEAST_REST = 1e-6  # probability of all classes that are not stored, where rounding leaves less


def random_crops(
    n: int, size: tuple[int, int], least_area: float, generator: torch.Generator, *, mirror: bool = True
) -> Tensor:
    """Draw random crops of images, as `RandomResizedCrop` and a random mirroring do.

    A crop has a share of the area that is uniform in [least_area, 1], and a ratio of sides of 3/4 to 4/3 (uniform in
    the logarithm), relative to that of the image. A side that would be longer than the image is cut to its length.

    Args:
        n: Number of crops.
        size: Height and width of the images.
        least_area: Smallest share of the area, in (0, 1]. With 1, the crop is the whole image.
        generator: Generator of the draws.
        mirror: Whether half of the views are mirrored.

    Returns:
        Top, left, height, width and whether the view is mirrored (0 or 1): int16 (n, 5).
    """
    area = torch.empty(n).uniform_(least_area, 1, generator=generator)
    ratio = torch.empty(n).uniform_(-_LARGEST_RATIO, _LARGEST_RATIO, generator=generator)
    ratio *= least_area < 1
    scales = torch.stack([(area * ratio.exp()).sqrt(), (area / ratio.exp()).sqrt()], 1)  # (n, 2)
    sides = torch.tensor(size)
    lengths = (scales * sides).round().long().clamp(min=1).minimum(sides)  # (n, 2)
    places = (torch.rand(n, 2, generator=generator) * (sides - lengths + 1)).long()
    flips = (torch.rand(n, 1, generator=generator) < 0.5) & mirror
    return torch.cat([places, lengths, flips], 1).to(torch.int16)


def view(images: Tensor, crops: Tensor) -> Tensor:
    """Return a crop of each image, mirrored if the crop says so, at the size of the image (bilinear).

    Args:
        images: (n, C, H, W).
        crops: Top, left, height, width in pixels, and 1 for mirrored. integers (n, 5).

    Returns:
        (n, C, H, W).
    """
    height, width = images.shape[2:]
    top, left, h, w, mirrored = crops.float().unbind(1)
    theta = h.new_zeros(len(images), 2, 3)  # where the crops are: on a device, each of these small steps is a launch
    theta[:, 0, 0] = torch.where(mirrored > 0, -w, w) / width
    theta[:, 1, 1] = h / height
    theta[:, 0, 2] = (2 * left + w) / width - 1
    theta[:, 1, 2] = (2 * top + h) / height - 1
    grid = F.affine_grid(to_device(theta, images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class ViewLabels:
    """Soft labels of several augmented views of every row. For each view, the largest logits are stored.

    Logits are stored as logarithms of probabilities, so that the probability of all other classes together is known.
    It is divided evenly among them.

    Attributes:
        values: The k largest logarithms of a view's class probabilities, at temperature 1. float16 (rows, views, k).
        classes: The classes they belong to, as indices into all class names. int16 (rows, views, k).
        crops: What `view` takes: top, left, height, width and mirrored. int16 (rows, views, 5).
        num_classes: Number K of classes.
    """

    values: Tensor
    classes: Tensor
    crops: Tensor
    num_classes: int

    @classmethod
    def of_logits(cls, logits: Tensor, crops: Tensor, k: int) -> ViewLabels:
        """Return the labels that keep the `k` largest logits of each view.

        Args:
            logits: Logits of the views. (rows, views, K).
            crops: The views. int16 (rows, views, 5).
            k: Logits to keep, in 1..K.
        """
        values, classes = logits.float().log_softmax(-1).topk(k)
        lowest = torch.finfo(torch.float16).min
        return cls(
            values.clamp(min=lowest).half().cpu(), classes.to(torch.int16).cpu(), crops.cpu(), int(logits.shape[-1])
        )

    @classmethod
    def of_images(
        cls, images: Tensor, logits_of: Callable[[Tensor], Tensor], crops: Tensor, k: int, *, batch: int = 16
    ) -> ViewLabels:
        """Return a teacher's labels of views of images.

        Args:
            images: Images in pixel units. (rows, C, H, W).
            logits_of: Turns pixels (n, C, H, W) into logits (n, K).
            crops: The views. int16 (rows, views, 5).
            k: Logits to keep, in 1..K.
            batch: Images whose views are labelled at a time.
        """
        logits = []
        for part, seen in zip(images.split(batch), crops.split(batch), strict=True):
            of_views = view(part.repeat_interleave(crops.shape[1], 0), seen.flatten(0, 1))
            logits.append(logits_of(of_views).reshape(*seen.shape[:2], -1).cpu())
        return cls.of_logits(torch.cat(logits), crops, k)

    @classmethod
    def joined(cls, parts: Sequence[ViewLabels]) -> ViewLabels:
        """Return the labels of the rows of several parts, one after the other."""
        values, classes, crops = map(torch.cat, zip(*((p.values, p.classes, p.crops) for p in parts), strict=True))
        return cls(values, classes, crops, parts[0].num_classes)

    @property
    def num_views(self) -> int:
        """Views of every row."""
        return int(self.values.shape[1])

    @property
    def k(self) -> int:
        """Logits that are kept for each view."""
        return int(self.values.shape[2])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names that they have in files."""
        return {VALUES: self.values, CLASSES: self.classes, CROPS: self.crops}

    def part(self, index: Tensor) -> ViewLabels:
        """Return the labels of some rows (n,)."""
        return replace(self, values=self.values[index], classes=self.classes[index], crops=self.crops[index])

    def logits(self, rows: Tensor, views: Tensor) -> Tensor:
        """Return the logits of some views, with those that are not stored filled in.

        Args:
            rows: Numbers of the rows. int64 (n,).
            views: Number of a view of each row. int64 (n,).

        Returns:
            Logarithms of probabilities. float32 (n, K).
        """
        values, classes = self.values[rows, views].float(), self.classes[rows, views].long()  # (n, k)
        others = self.num_classes - self.k
        if not others:
            return values.new_empty(len(values), self.num_classes).scatter_(1, classes, values)
        rest = (1 - values.exp().sum(1, keepdim=True)).clamp(min=_LEAST_REST)
        # None of the others is larger than the smallest logit that was kept.
        filling = (rest / others).log().minimum(values.min(1, keepdim=True).values)  # (n, 1)
        return filling.repeat(1, self.num_classes).scatter_(1, classes, values)

    def seen(self, images: Tensor, rows: Tensor, views: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return what networks are trained on: a view of each image, and its class probabilities.

        Args:
            images: Images of some rows. (n, C, H, W).
            rows: Numbers of these rows. int64 (n,).
            views: Number of a view of each row. int64 (n,).
            temperature: Divisor of the logits, > 0.

        Returns:
            (n, C, H, W) and (n, K), on the device of the images.
        """
        logits = to_device(self.logits(rows, views), images.device)
        return view(images, self.crops[rows, views]), (logits / temperature).softmax(1)

    def check(self, size: tuple[int, int]) -> None:
        """Raise `ValueError` unless classes, logits and crops are possible for images of a height and width."""
        if int(self.classes.min()) < 0 or int(self.classes.max()) >= self.num_classes:
            raise ValueError(
                f"{CLASSES} range over [{int(self.classes.min())}, {int(self.classes.max())}] but there are "
                f"{self.num_classes} classes"
            )
        ordered = self.classes.sort(-1).values
        if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
            raise ValueError(f"{CLASSES} should name a class once for each view")
        if float(self.values.max()) > 0:
            raise ValueError(f"{VALUES} should be logarithms of probabilities, at most 0; got {self.values.max():.3g}")
        top, left, h, w, mirrored = self.crops.int().unbind(-1)
        inside = (top >= 0) & (left >= 0) & (h >= 1) & (w >= 1) & (top + h <= size[0]) & (left + w <= size[1])
        if not bool((inside & ((mirrored == 0) | (mirrored == 1))).all()):
            raise ValueError(f"{CROPS} should lie within images of {size[0]}x{size[1]} and end in 0 or 1")
