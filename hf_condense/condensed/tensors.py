"""The exact tensors of a finished set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_VALUE = 0.5  # what fills an image whose side the factor does not divide, in pixel units


def decode(images: Tensor, factor: int, pad: Tensor | float = PAD_VALUE) -> Tensor:
    """Cut every image into `factor` x `factor` patches and up-sample each to the full size (multi-formation).

    Differentiable, so that methods train the stored images through it.

    Args:
        images: Stored images.
        factor: Patches along a side, >= 1; 1 returns the images as they are.
        pad: What fills the bottom and right when `factor` does not divide a side, in the images' own units:
            a number, or one a channel.

    Shapes:
        images (N, C, H, W) -> (N * factor**2, C, H, W); the patches of one image are neighbours, row by row.

    Reference:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022, section 4.1
        (arXiv:2205.14959).
    """
    if factor == 1:
        return images
    n, c, h, w = images.shape
    ph, pw = math.ceil(h / factor), math.ceil(w / factor)
    if (ph * factor, pw * factor) != (h, w):
        fill = torch.as_tensor(pad, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
        canvas = fill.expand(n, c, ph * factor, pw * factor)
        inside = F.pad(torch.ones_like(images), (0, pw * factor - w, 0, ph * factor - h))
        images = torch.where(inside.bool(), F.pad(images, (0, pw * factor - w, 0, ph * factor - h)), canvas)
    patches = images.reshape(n, c, factor, ph, factor, pw).permute(0, 2, 4, 1, 3, 5)  # (N, f, f, C, ph, pw)
    patches = patches.reshape(n * factor**2, c, ph, pw)
    return F.interpolate(patches, size=(h, w), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class CondensedTensors:
    """The exact tensors of a finished set, in pixel units: 0 is black, 1 is white.

    Attributes:
        images: Images as stored, before decoding, sorted by class. float32 (N, C, H, W).
        labels: Index of each stored image's class among all class names. int64 (N,).
        factor: Multi-formation factor, >= 1: every stored image decodes into `factor**2` images.
        soft_labels: Logits for every decoded image, in the order of `decoded()`. float32 (N * factor**2, K), or None.
        student_lr: Learned learning rate of the student, for trajectory methods. float32 (), or None.
        zca_matrix: Whitening matrix, if the set was condensed in ZCA space: networks then see
            `(pixels - zca_mean) @ zca_matrix` in place of normalised images. float32 (C*H*W, C*H*W), or None.
        zca_mean: Mean that belongs to `zca_matrix`, in pixel units. float32 (C*H*W,), or None.
    """

    images: Tensor
    labels: Tensor
    factor: int = 1
    soft_labels: Tensor | None = None
    student_lr: Tensor | None = None
    zca_matrix: Tensor | None = None
    zca_mean: Tensor | None = None

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Return the images that are trained on and their labels: (N * f**2, C, H, W) and (N * f**2,)."""
        return decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)

    def optional(self) -> dict[str, Tensor]:
        """Return the optional tensors that this set has, by name."""
        names = ("soft_labels", "student_lr", "zca_matrix", "zca_mean")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def round_robin(labels: Sequence[int]) -> list[int]:
    """Return the order that deals rows out one class after the other, so that any prefix is balanced.

    Example:
        >>> round_robin([0, 0, 1, 1, 1])
        [0, 2, 1, 3, 4]
    """
    turns = turns_of(labels)
    return sorted(range(len(labels)), key=lambda i: (turns[i], labels[i], i))


def turns_of(labels: Sequence[int]) -> list[int]:
    """Return for each label how many equal ones come before it.

    Example:
        >>> turns_of([0, 0, 1, 1, 1])
        [0, 1, 0, 1, 2]
    """
    seen: dict[int, int] = {}
    turns = []
    for label in labels:
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return turns
