"""Multi-formation by the textbook: cut, pad and up-sample, one pixel at a time, in plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bilinear(patch: Tensor, height: int, width: int) -> Tensor:
    """Up-sample one patch (C, h, w): interpolate each output pixel between the four nearest pixel centres."""
    c, h, w = patch.shape
    out = torch.empty(c, height, width, dtype=patch.dtype)
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * h / height - 0.5, 0.0)
            x = max((j + 0.5) * w / width - 0.5, 0.0)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, x - left
            above = (1 - dx) * patch[:, top, left] + dx * patch[:, top, right]
            below = (1 - dx) * patch[:, bottom, left] + dx * patch[:, bottom, right]
            out[:, i, j] = (1 - dy) * above + dy * below
    return out


def decode(images: Tensor, factor: int, pad: float | list[float]) -> Tensor:
    """Cut each image into factor x factor patches, row by row, and up-sample each to the full size."""
    n, c, h, w = images.shape
    ph, pw = math.ceil(h / factor), math.ceil(w / factor)
    fill = [pad] * c if isinstance(pad, float) else pad
    decoded = []
    for k in range(n):
        for row in range(factor):
            for column in range(factor):
                patch = torch.empty(c, ph, pw, dtype=images.dtype)
                for channel in range(c):
                    for i in range(ph):
                        for j in range(pw):
                            y, x = row * ph + i, column * pw + j
                            inside = y < h and x < w
                            patch[channel, i, j] = images[k, channel, y, x] if inside else fill[channel]
                decoded.append(bilinear(patch, h, w))
    return torch.stack(decoded)
