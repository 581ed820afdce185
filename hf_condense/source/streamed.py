"""Large pictures, which are decoded whenever they are asked for: all of them would take too much memory or disk."""

from __future__ import annotations

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_condense.source.decode import decode_picture, encoded_cells, files_named, has_16_bits, undecoded

LARGE_SIDE = 64  # pixels; pictures with a longer shorter side are large


class StreamedPictures:
    """Stands for the tensor of all images of a source: indexing it reads and decodes the pictures of these rows.

    Args:
        ds: The dataset.
        column: Name of the image column.
        rows: Row number in the dataset of every image. int64 (N,).
        shape: (C, H, W) of every image.
        mode: The mode that the Image feature converts pictures to, or None.
    """

    device = torch.device("cpu")

    def __init__(
        self, ds: datasets.Dataset, column: str, rows: Tensor, shape: tuple[int, int, int], mode: str | None
    ) -> None:
        self._ds, self._column, self._rows, self._mode = undecoded(ds, column), column, rows, mode
        self._image_shape = shape

    def part(self, positions: Tensor) -> StreamedPictures:
        """Return what stands for the images at some positions, int64 (n,)."""
        part = copy.copy(self)
        part._rows = self._rows[positions]
        return part

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (N, C, H, W)."""
        return (len(self), *self._image_shape)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the images at some positions (n,): uint8 (n, C, H, W), in memory.

        Raises:
            ValueError: If a picture is damaged; the message names its row.
        """
        return self._decoded(index)[0]

    def with_depths(self, index: Tensor) -> tuple[Tensor, list[bool]]:
        """Return the images at some positions, and for each whether its picture has 16 bits per channel.

        Raises:
            ValueError: If a picture is damaged; the message names its row.
        """
        images, pictures = self._decoded(index)
        return images, [has_16_bits(data, self._mode) for data in pictures]

    def _decoded(self, index: Tensor) -> tuple[Tensor, list[bytes]]:
        """Return the images at some positions, and their encoded pictures."""
        rows = self._rows[index.cpu()].tolist()
        if not rows:
            return torch.empty(0, *self._image_shape, dtype=torch.uint8), []
        pictures = encoded_cells(self._ds[rows].column(self._column), rows, self._column)
        with files_named(self._ds, self._column), ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(
                pool.map(lambda data, row: decode_picture(data, row, self._image_shape, self._mode), pictures, rows)
            )
        return torch.from_numpy(np.stack(images)), pictures
