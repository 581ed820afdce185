"""Some images of a source, which stay where all of them are: in a mapped file, in memory, or on a device."""

from __future__ import annotations

import torch
from torch import Tensor


class ChosenImages:
    """Stands for the tensor of some images of a source: indexing it reads these rows of the tensor of all.

    Args:
        images: All images, uint8 (N, C, H, W), or what stands for some of them.
        positions: Positions in `images`, int64 (n,).
    """

    def __init__(self, images: Tensor | ChosenImages, positions: Tensor) -> None:
        positions = positions.to(images.device)
        self._images: Tensor = images._images if isinstance(images, ChosenImages) else images
        self._positions: Tensor = images._positions[positions] if isinstance(images, ChosenImages) else positions

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._positions)

    @property
    def device(self) -> torch.device:
        """Return where the images and their positions are."""
        return self._images.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (n, C, H, W)."""
        _, c, h, w = self._images.shape
        return (len(self), c, h, w)

    def __getitem__(self, index: Tensor | int) -> Tensor:
        """Return a copy of the images at some positions (n,), (n, C, H, W), or of the one at a position."""
        return self._images[self._positions[index]]
