"""The augmentations of DSA (Zhao and Bilen, ICML 2021), one image and one pixel at a time.

Parameters are those of the paper's definition (offsets, factors, whole pixels, radians). Images are (C, H, W).
"""

import cmath
import math
from collections.abc import Callable

import torch
from torch import Tensor


def color(image: Tensor, brightness: float, saturation: float, contrast: float) -> Tensor:
    """Add a brightness, scale each pixel's distance from its grey value, scale each value's distance from the mean."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            bright = [float(image[c, i, j]) + brightness for c in range(channels)]
            grey = sum(bright) / channels
            for c in range(channels):
                out[c, i, j] = grey + saturation * (bright[c] - grey)
    mean = sum(float(v) for v in out.flatten()) / out.numel()
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                out[c, i, j] = mean + contrast * (float(out[c, i, j]) - mean)
    return out


def crop(image: Tensor, down: int, right: int) -> Tensor:
    """Pad with zeros, then take the window that is shifted by `down` and `right` pixels."""
    channels, height, width = image.shape
    border = max(abs(down), abs(right))
    padded = torch.zeros(channels, height + 2 * border, width + 2 * border, dtype=image.dtype)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                padded[c, border + i, border + j] = image[c, i, j]
    top, left = border + down, border + right
    return padded[:, top : top + height, left : left + width]


def cutout(image: Tensor, row: int, column: int) -> Tensor:
    """Set a rectangle of half the height and width, with its middle at `row`, `column`, to zero."""
    channels, height, width = image.shape
    tall, wide = math.floor(0.5 * height + 0.5), math.floor(0.5 * width + 0.5)
    out = image.clone()
    for c in range(channels):
        for i in range(row - tall // 2, row - tall // 2 + tall):
            for j in range(column - wide // 2, column - wide // 2 + wide):
                if 0 <= i < height and 0 <= j < width:
                    out[c, i, j] = 0
    return out


def flip(image: Tensor, mirrored: bool) -> Tensor:
    """Swap left and right."""
    channels, height, width = image.shape
    out = image.clone()
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                out[c, i, j] = image[c, i, width - 1 - j] if mirrored else image[c, i, j]
    return out


def scale(image: Tensor, down: float, across: float) -> Tensor:
    """Give the pixel at (y, x) from the centre the value at (down * y, across * x)."""
    return _resample(image, lambda y, x: (down * y, across * x))


def rotate(image: Tensor, angle: float) -> Tensor:
    """Give the pixel at (y, x) from the centre the value at that point rotated by the angle."""

    def rotated(y: float, x: float) -> tuple[float, float]:
        point = complex(x, y) * cmath.exp(1j * angle)
        return point.imag, point.real

    return _resample(image, rotated)


def _resample(image: Tensor, source: Callable[[float, float], tuple[float, float]]) -> Tensor:
    """Give every pixel the bilinear interpolation of the image at its source; outside, the image is zero."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y, x = source(i + 0.5 - height / 2, j + 0.5 - width / 2)
            row, column = y + height / 2 - 0.5, x + width / 2 - 0.5
            for k in range(height):
                for m in range(width):
                    weight = max(0.0, 1 - abs(row - k)) * max(0.0, 1 - abs(column - m))
                    if weight > 0:
                        for c in range(channels):
                            out[c, i, j] += weight * image[c, k, m]
    return out
