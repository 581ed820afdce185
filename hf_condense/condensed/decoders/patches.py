"""Patches: every stored image is cut into f x f patches, and each patch is up-sampled to a whole row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.checks import integer, listed
from hf_condense.condensed.decoders.base import Origin
from hf_condense.condensed.decoders.pixels import Pixels

PAD = 0.5  # mid-grey, in pixel units; it pads images whose side is not a multiple of the factor
LARGEST_FACTOR = 32  # in a file


class Patches(Pixels):
    """Multi-formation: `expand = factor**2` rows from each stored image.

    The patches of an image are taken row by row. If a side is not a multiple of the factor, the image is first padded
    with mid-grey at the bottom and on the right. Up-sampling is bilinear, so rows stay in the range of the images.

    References:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 4.1
        (arXiv:2205.14959).

    Example:
        >>> import torch
        >>> form = Patches((1, 4, 4), 4)
        >>> form.rows(3), form.decode({"images": torch.zeros(3, 1, 4, 4)}).shape
        (12, torch.Size([12, 1, 4, 4]))
    """

    name: ClassVar[str] = "patches"
    content: ClassVar[str] = "images that are cut into patches, each of which is up-sampled to a whole image"
    papers: ClassVar[tuple[str, ...]] = (
        "Storage form patches (IDC): Jang-Hyun Kim, Jinuk Kim, Seong Joon Oh, Sangdoo Yun, Hwanjun Song, Joonhyun "
        'Jeong, Jung-Woo Ha and Hyun Oh Song, "Dataset Condensation via Efficient Synthetic-Data Parameterization", '
        "ICML 2022, https://arxiv.org/abs/2205.14959",
    )
    can_be_whitened: ClassVar[bool] = False

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return the square of a factor that the image allows; 4 by default."""
        expand = 4 if expand is None else expand
        factors = allowed_factors(image_shape)
        if factors == [1]:
            raise ValueError(
                f"storage='patches' needs images of at least 4x4 pixels; got {image_shape[1]}x{image_shape[2]}. Pass "
                "storage='pixels'"
            )
        squares = [factor**2 for factor in factors[1:]]
        if expand not in squares:
            raise ValueError(
                f"storage='patches' cuts images of {image_shape[1]}x{image_shape[2]} into a square number of patches, "
                f"each with at least two pixels along a side and none outside the image; expand should be one of "
                f"{listed(squares)}; got {expand!r}"
            )
        return expand

    @property
    def factor(self) -> int:
        """Patches along a side."""
        return math.isqrt(self.expand)

    @property
    def suffix(self) -> str:
        """Suffix of the name of a set: the factor, as in `_f2`."""
        return f"_f{self.factor}"

    @property
    def rows_per_entry(self) -> int:
        """Number of patches of an image."""
        return self.expand

    def check(self) -> None:
        """Raise `ValueError` unless the factor is in 2..32 and at most the smaller side."""
        most = min(LARGEST_FACTOR, *self.image_shape[1:])
        if self.factor**2 != self.expand or not 2 <= self.factor <= most:
            raise ValueError(
                f"expand of storage 'patches' should be the square of a factor in 2..{most}; got {self.expand}"
            )

    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return images that are composed of down-sampled rows: the inverse of decoding."""
        _, c, h, w = real.shape
        f, (ph, pw) = self.factor, self._patch_size()
        small = F.interpolate(real, size=(ph, pw), mode="bilinear", antialias=True, align_corners=False)
        tiles = small.reshape(-1, f, f, c, ph, pw).permute(0, 3, 1, 4, 2, 5)  # (n, C, f, ph, f, pw)
        return {"images": tiles.reshape(-1, c, f * ph, f * pw)[:, :, :h, :w].contiguous()}

    def start_from_noise(self, noise: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return the noise itself, one image for each entry."""
        return {"images": noise.clone()}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the patches, up-sampled to whole rows."""
        patches = self._patches(stored["images"])
        if rows is not None:
            patches = patches.index_select(0, rows)
        return F.interpolate(patches, size=self.image_shape[1:], mode="bilinear", align_corners=False)

    def _patches(self, images: Tensor) -> Tensor:
        """Cut images (n, C, H, W) into patches (n * f * f, C, ph, pw)."""
        n, c, h, w = images.shape
        f, (ph, pw) = self.factor, self._patch_size()
        missing = (0, pw * f - w, 0, ph * f - h)
        if any(missing):
            pad = self.frame.value(PAD).to(images).expand(n, c, ph * f, pw * f)
            inside = F.pad(images.new_ones(h, w), missing).bool()
            images = F.pad(images, missing).where(inside, pad)
        patches = images.reshape(n, c, f, ph, f, pw).permute(0, 2, 4, 1, 3, 5)  # (n, f, f, C, ph, pw)
        return patches.reshape(-1, c, ph, pw)

    def _patch_size(self) -> tuple[int, int]:
        """Return the height and width of a patch."""
        _, h, w = self.image_shape
        return math.ceil(h / self.factor), math.ceil(w / self.factor)


def allowed_factors(image_shape: tuple[int, int, int]) -> list[int]:
    """Return 1 and the factors whose patches have sides of at least two pixels and lie in the image, at least in part.

    Sides of patches are rounded up, so that many patches may need more pixels than there are: those of 9 pixels with
    factor 4 have 3 pixels each, and the fourth would be all padding.

    Example:
        >>> allowed_factors((1, 28, 28)), allowed_factors((3, 9, 9))
        ([1, 2, 3, 4, 5, 6, 7, 10, 14], [1, 2, 3])
    """
    sides = image_shape[1:]
    some_inside = (
        f for f in range(2, min(sides) // 2 + 1) if all((f - 1) * math.ceil(side / f) < side for side in sides)
    )
    return [1, *some_inside]


def storage_of_factor(factor: object, image_shape: tuple[int, int, int]) -> tuple[str, int]:
    """Return the storage form and the `expand` for which `factor=` is short: pixels for 1, else patches.

    Raises:
        TypeError: If the factor is not an integer.
        ValueError: If a side of a patch would be shorter than two pixels, or a patch would lie outside the image.
    """
    checked, factors = integer("factor", factor), allowed_factors(image_shape)
    if checked not in factors:
        raise ValueError(
            f"factor should be one of {listed(factors)} for images of {image_shape[1]}x{image_shape[2]} pixels; got "
            f"{factor!r}"
        )
    return form_of_factor(checked)


def form_of_factor(factor: int) -> tuple[str, int]:
    """Return the storage form and the `expand` of a factor >= 1: pixels for 1, else patches."""
    return (Pixels.name, 1) if factor == 1 else (Patches.name, factor**2)


def factor_of_form(storage: str, expand: int) -> int:
    """Return the factor of pixels or patches, the inverse of `form_of_factor`."""
    return math.isqrt(expand) if storage == Patches.name else 1
