"""ZCA whitening: a linear map that decorrelates pixels, as trajectory methods often apply to colour images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_condense.base.devices import in_float64

_BATCH = 1024
EPSILON = 0.1  # is added to the variances of pixels in [0, 1]
LARGEST_WHITENED = 64 * 64 * 3  # The matrix for such images takes 0.6 GB, and fitting it several times as much.


@dataclass(frozen=True)
class Whitening:
    """An invertible linear map of images, which replaces normalisation.

    Attributes:
        matrix: What pixels in pixel units (0 black, 1 white), less their mean, are multiplied by. Symmetric.
            float32 (C*H*W, C*H*W).
        mean: Mean of the images, in pixel units. float32 (C*H*W,).
    """

    matrix: Tensor
    mean: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten images in pixel units: (N, C, H, W) -> (N, C, H, W)."""
        flat = (images.flatten(1) - self.mean) @ self.matrix  # (N, C*H*W)
        return flat.view_as(images)

    def undo(self, images: Tensor) -> Tensor:
        """Turn whitened images back into pixel units, computed in float64: (N, C, H, W) -> (N, C, H, W)."""
        solved: Tensor = torch.linalg.solve(in_float64(self.matrix), in_float64(images.flatten(1)).T)  # (C*H*W, N)
        flat = solved.T + in_float64(self.mean)
        return flat.to(images).view_as(images)

    @cached_property
    def digest(self) -> str:
        """Return a hash of the map, for keys; it is equal for equal bits."""
        content = hashlib.blake2b(digest_size=16)
        for tensor in (self.matrix, self.mean):
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to(self, device: torch.device | str) -> Whitening:
        """Return the same map on another device."""
        return Whitening(self.matrix.to(device), self.mean.to(device))


def fit_whitening(images: Tensor, device: torch.device | str = "cpu") -> Whitening:
    """Fit ZCA whitening to images: (covariance + 0.1 I)^(-1/2) of their pixels.

    Args:
        images: uint8 (N, C, H, W), where C*H*W is at most 64 * 64 * 3. They are read in batches.
        device: Where the covariance is computed, in float64; a device without float64 leaves it to the CPU.

    Returns:
        The map, float32 on `device`.

    Raises:
        ValueError: If the images are larger, because the matrix grows with the square of their size.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A; on pixels in [0, 1] and
        with the constant of Cazenavette et al., CVPR 2022, as in the authors' code (arXiv:2203.11932).
    """
    size = images[0].numel()
    if size > LARGEST_WHITENED:
        raise ValueError(
            f"whitening (zca=True) needs a matrix of {size} x {size} for images of {tuple(images.shape[1:])}; images "
            f"may have at most {LARGEST_WHITENED} values each. Pass a smaller image_size, or zca=False"
        )
    total = in_float64(torch.zeros(size, device=device))
    squares = in_float64(torch.zeros(size, size, device=device))
    for index in torch.arange(len(images), device="cpu").split(_BATCH):
        pixels = images[index.to(images.device)]  # (n, C, H, W)
        rows = (pixels.to(total.device).double() / 255).flatten(1)  # (n, C*H*W)
        total += rows.sum(0)
        squares += rows.T @ rows
    mean = total / len(images)
    covariance = squares / len(images) - mean.outer(mean)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors * (values.clamp_min(0) + EPSILON).rsqrt()) @ vectors.T
    return Whitening(matrix.float().to(device), mean.float().to(device))
