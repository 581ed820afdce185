"""Read encoded pictures of any mode and size, and decode them to uint8 arrays of one shape."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Size = tuple[int, int]  # (height, width)

GREY_MODES = ("1", "L", "LA", "La")
MODES = (*GREY_MODES, "RGB", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
MAX_SIDE = 4096  # pixels; images are condensed up to this height and width
_ORIENTATION = 0x0112


class EncodedPictures:
    """The encoded pictures of a column, which are read once if they fit into a given amount of memory.

    The first pass over them keeps what it reads until the limit is reached. Later passes take these pictures from
    memory, and read from the dataset only the rows that come after them.

    Args:
        ds: The dataset.
        column: Name of the image column.
        limit: Bytes that may be kept.
    """

    def __init__(self, ds: datasets.Dataset, column: str, limit: int) -> None:
        self._ds = ds
        self._column = column
        self._room = limit
        self._kept: list[list[bytes]] = []  # the first batches of the dataset

    def batches(self, *, last: bool = False) -> Iterator[tuple[int, list[bytes]]]:
        """Hand out all pictures in row order, one batch after the other.

        Args:
            last: Whether this is the last pass, which frees the memory of a batch as soon as the next one is asked for.

        Yields:
            The number of the first row of a batch, and the encoded pictures of the batch.

        Raises:
            ValueError: As `raw_batches` does.
        """
        kept = self._kept
        if last:
            self._kept = []
        row = 0
        for i in range(len(kept)):
            batch = kept[i]
            if last:
                kept[i] = []
            yield row, batch
            row += len(batch)
        if row == len(self._ds):
            return
        for start, batch in raw_batches(self._ds, self._column, start=row):
            self._room -= sum(map(len, batch))  # negative from the first batch on that does not fit
            if self._room >= 0 and not last:
                self._kept.append(batch)
            yield start, batch


def raw_batches(
    ds: datasets.Dataset, column: str, batch_size: int = 1000, start: int = 0
) -> Iterator[tuple[int, list[bytes]]]:
    """Read encoded pictures, without decoding them.

    Args:
        ds: The dataset.
        column: Name of the image column.
        batch_size: Rows in a batch, >= 1.
        start: The first row to read.

    Yields:
        The number of the first row of a batch, and the encoded pictures of the batch.

    Raises:
        ValueError: If a row has no picture, or its file cannot be read; the message names the row.
    """
    undecoded = ds.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format("arrow")
    remaining = undecoded.select(range(start, len(ds))) if start else undecoded
    for table in remaining.iter(batch_size=batch_size):
        cells = table.column(column)
        contents = pc.struct_field(cells, "bytes").to_pylist()  # much faster than a list of dicts
        paths = pc.struct_field(cells, "path").to_pylist()
        yield (
            start,
            [
                data if data is not None else _file_content(path, row, column)
                for row, (data, path) in enumerate(zip(contents, paths, strict=True), start)
            ],
        )
        start += len(cells)


def _file_content(path: str | None, row: int, column: str) -> bytes:
    """Read the picture of a row that holds a path and no bytes."""
    if path is None:
        raise ValueError(f"row {row} has no picture in {column!r}; filter such rows out")
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"row {row}: the file of its picture cannot be read: {error}") from error


def header(data: bytes, row: int) -> tuple[str, Size]:
    """Read the header of a picture.

    Args:
        data: The encoded picture.
        row: Its row number, for error messages.

    Returns:
        Its mode, and the (height, width) that it has when it is upright.

    Raises:
        ValueError: If the header cannot be read; the message names the row.
    """
    with _opened(data, row) as image:
        if image.format == "TIFF":  # Pillow turns a TIFF upright by itself, but not before it decodes it
            image.load()
        on_its_side = _orientation(image) in (5, 6, 7, 8)
        width, height = image.size
        return image.mode, ((width, height) if on_its_side else (height, width))


def common_shape(
    headers: list[tuple[str, Size]], image_size: Size | None, channels: int | None
) -> tuple[int, int, int]:
    """Return the (channels, height, width) that all pictures are decoded to.

    Args:
        headers: The mode and the (height, width) of every picture, in row order.
        image_size: The (height, width) to use; None: the size of the pictures, which must be the same for all.
        channels: 1 or 3; None: 1 if all pictures are grey, else 3.

    Raises:
        ValueError: If a mode cannot be read as 8-bit pixels, sizes differ and no `image_size` was given, or a side is
            longer than `MAX_SIDE`.
    """
    for row, (mode, _) in enumerate(headers):
        if mode not in MODES and not mode.startswith("I;16"):
            raise ValueError(
                f"row {row} has a picture of mode {mode!r}, which has no fixed range of pixels; convert to 'L' or 'RGB'"
            )
    grey = all(mode in GREY_MODES or mode.startswith("I;16") for mode, _ in headers)
    sizes = Counter(size for _, size in headers)
    if image_size is None and len(sizes) > 1:
        common = ", ".join(f"{h}x{w} ({n} rows)" for (h, w), n in sizes.most_common(3))
        raise ValueError(
            f"pictures differ in size (height x width): {common}{', ...' if len(sizes) > 3 else ''}; "
            "pass image_size= to resize the shorter side and crop the centre"
        )
    height, width = image_size or next(iter(sizes))
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"pictures of {height}x{width} are too large: a side may have at most {MAX_SIDE} pixels; pass image_size="
        )
    return (channels or (1 if grey else 3), height, width)


def decode_picture(data: bytes, row: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode one picture to a uint8 array (C, H, W).

    Transparent pixels are composited on white. A picture of another size is resized (bicubic, antialiased) until it
    just covers (H, W), and cropped at the centre.

    Args:
        data: The encoded picture.
        row: Its row number, for error messages.
        shape: (C, H, W), where C is 1 or 3.

    Raises:
        ValueError: If the bytes are not a picture, or are damaged; the message names the row.
    """
    channels, height, width = shape
    with _opened(data, row) as image:
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        opaque = _convert(upright, "L" if channels == 1 else "RGB")
        if (opaque.height, opaque.width) != (height, width):
            opaque = ImageOps.fit(opaque, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(opaque, dtype=np.uint8)  # (H, W) or (H, W, C)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def _opened(data: bytes, row: int) -> Iterator[Image.Image]:
    """Open a picture, and turn every error in the `with` block into a ValueError that names the row."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"row {row} has a picture that cannot be decoded ({reason}); repair or remove it") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation in the header: 1 (upright) to 8."""
    # PngImageFile.getexif would decode all pixels first, to look for EXIF data after them.
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert a picture to L or RGB, with transparent pixels composited on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert(mode)
