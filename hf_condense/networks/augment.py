"""Siamese augmentation: parameters are drawn once per group of rows, for its real and its synthetic images alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.checks import one_of
from hf_condense.base.devices import to_device
from hf_condense.base.errors import did_you_mean

FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
ALL_FAMILIES = "_".join(FAMILIES)
Mode = Literal["single", "all"]

_FLIP_PROBABILITY: Final = 0.5
_MAX_SCALE: Final = 1.2
_MAX_ANGLE: Final = math.radians(15)
_CROP_RATIO: Final = 0.125
_CUTOUT_RATIO: Final = 0.5
_LONG_RUN: Final = 16  # rows


@dataclass(frozen=True)
class Augmentation:
    """A strategy of differentiable transforms, with the constants of DSA.

    There are six families of transforms:

    - `color`: brightness +-0.5, saturation x0-2 and contrast x0.5-1.5.
    - `crop`: shift by up to 1/8 of a side.
    - `cutout`: set a square of half a side to zero.
    - `flip`: mirror left and right with probability 1/2.
    - `scale`: stretch each side by 1/1.2 to 1.2.
    - `rotate`: turn by up to +-15 degrees.

    Pixels from outside the image are zero, which is the mean colour of a normalised image.

    Args:
        families: Transforms to use, names in `FAMILIES`, in the order in which `"all"` applies them.
        mode: `"single"`: each group draws one family; `"all"`: each group gets all of them.

    Raises:
        ValueError: If a family or the mode is unknown, no family is given, or one is given twice.

    References:
        Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, section 3.3
        (arXiv:2102.08259). Constants as in the authors' code.

    Example:
        >>> transform = Augmentation.parse("flip_crop").draw(2, torch.Generator().manual_seed(0))
        >>> transform(torch.ones(3, 1, 8, 8), torch.tensor([0, 0, 1])).shape
        torch.Size([3, 1, 8, 8])
    """

    families: tuple[str, ...]
    mode: Mode = "single"

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                families = ", ".join(FAMILIES)
                raise ValueError(
                    f"unknown augmentation {name!r}; known: {families}, or 'none' alone{did_you_mean(name, FAMILIES)}"
                )
        if not self.families or len(set(self.families)) < len(self.families):
            raise ValueError(f"an augmentation needs one or more families, each once; got {self.families!r}")
        one_of("augmentation mode", self.mode, ("single", "all"))

    @classmethod
    def parse(cls, strategy: str | None, mode: Mode = "single") -> Augmentation | None:
        """Parse a strategy such as `"color_crop_cutout"`.

        Args:
            strategy: Names of families joined by `_`; None and `"none"` mean no augmentation.
            mode: As for the class.

        Returns:
            The augmentation, or None.

        Raises:
            TypeError: If the strategy is not text.
            ValueError: As for the class.
        """
        if strategy is None or strategy == "none":
            return None
        if not isinstance(strategy, str):
            raise TypeError(
                f"an augmentation should be text, such as 'color_crop' or 'none'; got {strategy!r} "
                f"({type(strategy).__name__})"
            )
        return cls(tuple(strategy.split("_")), mode)

    def draw(self, groups: int, generator: torch.Generator) -> Transform:
        """Draw one set of parameters for every group of rows.

        The draws depend only on `groups`, neither on the families nor on the images that are transformed later.

        Args:
            groups: Number of groups, >= 0: one per class for siamese use, one per image for evaluation.
            generator: A CPU generator (see `rng.keyed_generator`).
        """
        u = torch.rand(groups, 12, generator=generator)  # (G, 12), in [0, 1)
        parameters = {
            "color": u[:, 1:4] * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([-0.5, 0.0, 0.5]),
            "crop": u[:, 4:6],
            "cutout": u[:, 6:8],
            "flip": u[:, 8:9] < _FLIP_PROBABILITY,
            "scale": u[:, 9:11] * (_MAX_SCALE - 1 / _MAX_SCALE) + 1 / _MAX_SCALE,
            "rotate": (u[:, 11:12] * 2 - 1) * _MAX_ANGLE,
        }
        choice = None if self.mode == "all" else _integer(u[:, 0], len(self.families))
        return Transform(self.families, choice, parameters)


def families_of(strategy: str | None) -> tuple[str, ...]:
    """Return the names of families in a strategy such as `"color_crop"`; None and `"none"` have none.

    So has `""`, which is in recipes of earlier versions.

    Example:
        >>> families_of("color_crop"), families_of("none")
        (('color', 'crop'), ())
    """
    return () if strategy is None or strategy in ("", "none") else tuple(strategy.split("_"))


@dataclass(frozen=True)
class Transform:
    """The transforms of G groups, with the parameters that `Augmentation.draw` drew for them.

    Attributes:
        families: Transforms in use, in order.
        choice: Index of the one family of each group, int64 (G,); None: all families are applied.
        parameters: The parameters (G, k) of every name in `FAMILIES`. `color`: brightness offset, saturation factor and
            contrast factor. `crop` and `cutout`: place in the range of positions, down and across, in [0, 1). `flip`:
            whether to mirror. `scale`: source pixels per pixel, down and across. `rotate`: the angle in radians.
    """

    families: tuple[str, ...]
    choice: Tensor | None
    parameters: dict[str, Tensor]

    @classmethod
    def joined(cls, transforms: Sequence[Transform]) -> Transform:
        """Return the groups of several transforms of one strategy, one after the other."""
        first = transforms[0]
        choices = [transform.choice for transform in transforms if transform.choice is not None]
        parameters = {name: torch.cat([each.parameters[name] for each in transforms]) for name in first.parameters}
        return cls(first.families, torch.cat(choices) if choices else None, parameters)

    def __call__(self, images: Tensor, group: Tensor) -> Tensor:
        """Transform every row with the parameters of its group. The result is differentiable by the images.

        Args:
            images: Normalised images. (N, C, H, W)
            group: Group of every row, in [0, G). int64 (N,), best on the CPU as the parameters are: then nobody waits
                for a GPU.

        Returns:
            Transformed images, (N, C, H, W).

        Raises:
            ValueError: If there is not one group for every row.
        """
        if images.ndim != 4 or group.shape != images.shape[:1]:
            raise ValueError(
                f"expected images (N, C, H, W) and one group per row (N,); "
                f"got {tuple(images.shape)} and {tuple(group.shape)}"
            )
        group = group.to(self.parameters["flip"].device)
        if self.choice is None:
            for name in self.families:
                images = self._apply(name, images, group)
            return images
        if not len(images):
            return images
        choice = self.choice[group]  # (N,)
        families, lengths = _runs(choice)
        if len(families) == 1:
            return self._apply(self.families[families[0]], images, group)
        if images.device.type == "cpu" and _are_long(lengths):
            return self._apply_in_runs(images.contiguous(), group, choice)
        order = choice.argsort(stable=True)  # rows sorted by family: as few launches as there are families
        sorted_images = images.index_select(0, to_device(order, images.device))
        transformed = self._apply_in_runs(sorted_images, group[order], choice[order])
        return transformed.index_select(0, to_device(order.argsort(), images.device))

    def _apply_in_runs(self, images: Tensor, group: Tensor, choice: Tensor) -> Tensor:
        """Apply to each run of rows the family that all its rows chose: (N, C, H, W), in the order of the rows."""
        families, lengths = _runs(choice)
        parts = zip(families, images.split(lengths), group.split(lengths), strict=True)
        return torch.cat([self._apply(self.families[family], part, part_group) for family, part, part_group in parts])

    def _apply(self, name: str, images: Tensor, group: Tensor) -> Tensor:
        return _TRANSFORMS[name](images, to_device(self.parameters[name][group], images.device))


def _runs(choice: Tensor) -> tuple[list[int], list[int]]:
    """Return the values of runs of equal values (N,), and the lengths of the runs."""
    values, lengths = choice.unique_consecutive(return_counts=True)
    return values.tolist(), lengths.tolist()


def _are_long(lengths: list[int]) -> bool:
    """Return whether a CPU takes less time for runs of these lengths than for sorting the rows, which copies all twice.

    A single row would change the result by rounding: with one row, several threads share the sum for its mean; with
    more rows, each mean is summed by one thread.
    """
    return sum(lengths) >= _LONG_RUN * len(lengths) and min(lengths) > 1


def _integer(u: Tensor, count: int) -> Tensor:
    """Turn uniform numbers in [0, 1) into uniform integers in [0, count)."""
    return (u * count).long().clamp(max=count - 1)  # the product can round up to count


def _pixels(ratio: float, side: int) -> int:
    """Return a share of a side in whole pixels; halves are rounded up."""
    return int(ratio * side + 0.5)


def _columns(p: Tensor) -> list[Tensor]:
    """Split parameters (N, k) into k tensors (N, 1, 1, 1)."""
    return [column.reshape(-1, 1, 1, 1) for column in p.unbind(1)]


def _color(images: Tensor, p: Tensor) -> Tensor:
    """Change the brightness, then the saturation about each pixel's grey, then the contrast about each image's mean."""
    brightness, saturation, contrast = _columns(p.to(images.dtype))
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _crop(images: Tensor, p: Tensor) -> Tensor:
    """Shift by whole pixels."""
    shifts = []
    for u, side in zip(_columns(p), images.shape[2:], strict=True):
        reach = _pixels(_CROP_RATIO, side)
        shifts.append(_integer(u, 2 * reach + 1) - reach)
    y, x = _centred(images)
    # Sampling at the nearest pixel is exact for whole shifts, and its backward pass is much faster than indexing's.
    return _sample(images, y + shifts[0], x + shifts[1], "nearest")


def _cutout(images: Tensor, p: Tensor) -> Tensor:
    """Set a square around a random pixel to zero; the part of it beyond the border is cut off."""
    inside = []
    for u, side, shape in zip(_columns(p), images.shape[2:], ((-1, 1), (1, -1)), strict=True):
        length = _pixels(_CUTOUT_RATIO, side)
        start = _integer(u, side + 1 - length % 2) - length // 2  # (N, 1, 1, 1)
        position = torch.arange(side, device=images.device).reshape(shape)
        inside.append((position >= start) & (position < start + length))  # (N, 1, H, 1), then (N, 1, 1, W)
    return images.masked_fill(inside[0] & inside[1], 0)


def _flip(images: Tensor, p: Tensor) -> Tensor:
    return torch.where(p[:, :, None, None], images.flip(3), images)


def _scale(images: Tensor, p: Tensor) -> Tensor:
    """Stretch or shrink about the centre, each side on its own."""
    (down, across), (y, x) = _columns(p.to(images.dtype)), _centred(images)
    return _sample(images, y * down, x * across, "bilinear")


def _rotate(images: Tensor, p: Tensor) -> Tensor:
    """Turn about the centre."""
    (angle,), (y, x) = _columns(p.to(images.dtype)), _centred(images)
    cos, sin = angle.cos(), angle.sin()
    return _sample(images, y * cos + x * sin, x * cos - y * sin, "bilinear")


def _centred(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of pixels, counted from the centre of the image: (1, 1, H, 1) and (1, 1, 1, W)."""
    height, width = images.shape[2:]
    return _grid(height, width, images.dtype, images.device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a graph cannot keep tensors that are made in it
def _grid(h: int, w: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    y, x = (torch.arange(n, dtype=dtype, device=device) + (1 - n) / 2 for n in (h, w))
    return y.reshape(1, 1, h, 1), x.reshape(1, 1, 1, w)


def _sample(images: Tensor, y: Tensor, x: Tensor, mode: str) -> Tensor:
    """Sample images at positions that are counted in pixels from the centre; outside an image they are zero."""
    n, _, h, w = images.shape
    grid = torch.stack([(x * (2 / w)).expand(n, 1, h, w), (y * (2 / h)).expand(n, 1, h, w)], dim=-1)  # (N, 1, H, W, 2)
    return F.grid_sample(images, grid[:, 0], mode=mode, padding_mode="zeros", align_corners=False)


_TRANSFORMS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
