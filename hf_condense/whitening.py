"""ZCA whitening: normalised images with pixels decorrelated, as trajectory methods often see colour images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hf_condense.source import ClassSource

_BATCH = 1024
EPSILON = 0.1  # added to every variance


@dataclass(frozen=True)
class Whitening:
    """An invertible linear map of normalised images.

    Attributes:
        matrix: Symmetric. float32 (C*H*W, C*H*W).
        mean: Of the normalised images. float32 (C*H*W,).
    """

    matrix: Tensor
    mean: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten normalised images (N, C, H, W)."""
        flat = (images.flatten(1) - self.mean) @ self.matrix
        return flat.view_as(images)

    def undo(self, images: Tensor) -> Tensor:
        """Return the normalised images of whitened ones (N, C, H, W); solved in float64."""
        flat: Tensor = torch.linalg.solve(self.matrix.double(), images.flatten(1).double().T).T + self.mean.double()
        return flat.to(images.dtype).view_as(images)

    def to(self, device: torch.device | str) -> Whitening:
        """Return the same map on another device."""
        return Whitening(self.matrix.to(device), self.mean.to(device))


def fit_whitening(source: ClassSource) -> Whitening:
    """Fit ZCA whitening to all images of a source: covariance^(-1/2), with 0.1 added to every variance.

    Args:
        source: Real images; they are read in batches, and sums kept in float64.

    Reference:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A; with the constant of
        Cazenavette et al., CVPR 2022, section 4 (arXiv:2203.11932).
    """
    size = source.images[0].numel()
    total = torch.zeros(size, dtype=torch.float64, device=source.device)
    squares = torch.zeros(size, size, dtype=torch.float64, device=source.device)
    for index in torch.arange(len(source)).split(_BATCH):
        rows = source.at(index).flatten(1).double()
        total += rows.sum(0)
        squares += rows.T @ rows
    mean = total / len(source)
    covariance = squares / len(source) - mean.outer(mean)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors * (values.clamp_min(0) + EPSILON).rsqrt()) @ vectors.T
    return Whitening(matrix.float(), mean.float())
