"""ZCA whitening: images with their pixels decorrelated, as trajectory methods often see colour images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BATCH = 1024
EPSILON = 0.1  # added to every variance of pixels in [0, 1]
_MOST_PIXELS = 64 * 64 * 3  # the matrix of such images takes 0.6 GB, and fitting it several times as much


@dataclass(frozen=True)
class Whitening:
    """An invertible linear map of images, which takes the place of normalisation.

    Attributes:
        matrix: Symmetric; per pixel unit (0 black, 1 white). float32 (C*H*W, C*H*W).
        mean: Of the images, in pixel units. float32 (C*H*W,).
    """

    matrix: Tensor
    mean: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten images in pixel units (N, C, H, W)."""
        flat = (images.flatten(1) - self.mean) @ self.matrix
        return flat.view_as(images)

    def undo(self, images: Tensor) -> Tensor:
        """Return in pixel units the images of whitened ones (N, C, H, W); solved in float64."""
        flat: Tensor = torch.linalg.solve(self.matrix.double(), images.flatten(1).double().T).T + self.mean.double()
        return flat.to(images.dtype).view_as(images)

    @cached_property
    def digest(self) -> str:
        """Name of the map, for keys: equal for equal bits."""
        content = hashlib.blake2b(digest_size=16)
        for tensor in (self.matrix, self.mean):
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to(self, device: torch.device | str) -> Whitening:
        """Return the same map on another device."""
        return Whitening(self.matrix.to(device), self.mean.to(device))


def fit_whitening(images: Tensor, device: torch.device | str = "cpu") -> Whitening:
    """Fit ZCA whitening to images: covariance^(-1/2) of pixels, with 0.1 added to every variance.

    Args:
        images: uint8, at most 64 x 64 in colour; they are read in batches, and sums kept in float64. (N, C, H, W)
        device: Where the sums are computed.

    Raises:
        ValueError: If the images are larger: the matrix grows with the square of their size.

    Reference:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A; on pixels in [0, 1] and
        with the constant of Cazenavette et al., CVPR 2022, as in the authors' code (arXiv:2203.11932).
    """
    size = images[0].numel()
    if size > _MOST_PIXELS:
        raise ValueError(
            f"whitening (zca=True) takes a matrix of {size} x {size} for images of {tuple(images.shape[1:])}; it is "
            f"made for at most {_MOST_PIXELS} values an image. Pass a smaller image_size, or go without"
        )
    total = torch.zeros(size, dtype=torch.float64, device=device)
    squares = torch.zeros(size, size, dtype=torch.float64, device=device)
    for index in torch.arange(len(images)).split(_BATCH):
        pixels = images[index.to(images.device)]
        rows = (pixels.to(device).double() / 255).flatten(1)
        total += rows.sum(0)
        squares += rows.T @ rows
    mean = total / len(images)
    covariance = squares / len(images) - mean.outer(mean)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors * (values.clamp_min(0) + EPSILON).rsqrt()) @ vectors.T
    return Whitening(matrix.float(), mean.float())
