"""Pictures as they come (bytes, paths, any mode or size) to uint8 arrays of one shape."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Size = tuple[int, int]  # (height, width)

GREY_MODES = ("1", "L", "LA", "La")
MODES = (*GREY_MODES, "RGB", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
MAX_SIDE = 4096  # of what is condensed, in pixels
_ORIENTATION = 0x0112


def raw_batches(ds: datasets.Dataset, column: str, batch_size: int = 1000) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first row, encoded pictures) without decoding anything.

    Raises:
        ValueError: If a row has no picture, or its file cannot be read; the message names the row.
    """
    plain = ds.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format("arrow")
    start = 0
    for table in plain.iter(batch_size=batch_size):
        cells = table.column(column).to_pylist()
        yield start, [_raw(cell, start + i, column) for i, cell in enumerate(cells)]
        start += len(cells)


def _raw(cell: dict[str, Any] | None, row: int, column: str) -> bytes:
    """Return the encoded picture of one cell."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise ValueError(f"row {row} has no picture in {column!r}; filter such rows out")
    if cell["bytes"] is not None:
        return bytes(cell["bytes"])
    try:
        with open(cell["path"], "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"row {row}: the file of its picture cannot be read: {error}") from error


def header(data: bytes, row: int) -> tuple[str, Size]:
    """Return the mode and the upright (height, width) of a picture, reading only its header."""
    with _opened(data, row) as image:
        if image.format == "TIFF":  # Pillow turns these itself, when they are decoded
            image.load()
        turned = _orientation(image) in (5, 6, 7, 8)
        width, height = image.size
        return image.mode, ((width, height) if turned else (height, width))


def common_shape(
    headers: list[tuple[str, Size]], image_size: Size | None, channels: int | None
) -> tuple[int, int, int]:
    """Return the (channels, height, width) that all pictures will have.

    Greyscale pictures alone give one channel; anything else gives three.

    Raises:
        ValueError: If a mode cannot be read as 8-bit pixels, or sizes differ and no `image_size` was given.
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
        raise ValueError(f"pictures of {height}x{width} are too large: a side has at most {MAX_SIDE}; pass image_size=")
    return (channels or (1 if grey else 3), height, width)


def decode_picture(data: bytes, row: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Decode one picture to a uint8 array of the given (C, H, W).

    Transparent pixels become white; a larger or smaller picture is resized along its shorter side (bicubic,
    antialiased) and cut out at the centre.

    Raises:
        ValueError: If the bytes are no picture or are damaged; the message names the row.
    """
    channels, height, width = shape
    with _opened(data, row) as image:
        upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        flat = _flatten(upright, "L" if channels == 1 else "RGB")
        if (flat.height, flat.width) != (height, width):
            flat = ImageOps.fit(flat, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(flat, dtype=np.uint8)  # (H, W) or (H, W, C)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def _opened(data: bytes, row: int) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong while it is read becomes a ValueError that names the row."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"row {row} has a picture that cannot be decoded ({reason}); repair or remove it") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if upright, as far as the header tells."""
    # The method of a PNG would first decode all pixels to look for what stands behind them.
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Convert to L or RGB, with transparency composited on white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert(mode)
