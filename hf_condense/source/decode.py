"""Read encoded pictures of any mode and size, and decode them to uint8 arrays of one shape."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils.file_utils import is_local_path, xopen
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from hf_condense.base.checks import MAX_SIDE, listed
from hf_condense.base.words import plural

Size = tuple[int, int]  # (height, width)

_GREY_MODES = ("1", "L", "LA", "La")
_MODES = (*_GREY_MODES, "RGB", "P", "PA", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
_BATCH_ROWS, _BATCH_BYTES = 1000, 2**26  # of encoded pictures that are read together
_SIZE_OF_A_FILE = 2**20  # bytes; what is assumed of a picture in a file
_CLEAR_MODES = ("LA", "La", "P", "PA", "RGBA", "RGBa")
_SEARCH_SECONDS = 10  # for further pictures that cannot be decoded
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
# Formats whose pictures have their size and their orientation before they are decoded. Pillow learns those of the
# others as it decodes them: it turns a TIFF upright by then, and chooses the size of an ICO.
_TOLD_BY_THE_HEADER = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "WEBP")
# The chunks of a PNG in which Pillow looks for the orientation. They may come after the pixels.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


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


def raw_batches(ds: datasets.Dataset, column: str, start: int = 0) -> Iterator[tuple[int, list[bytes]]]:
    """Read encoded pictures, without decoding them.

    Args:
        ds: The dataset.
        column: Name of the image column.
        start: The first row to read.

    Yields:
        The number of the first row of a batch, and the encoded pictures of the batch: at most 1,000 of them, and about
        64 MiB, or one that is larger.

    Raises:
        ValueError: If a row has no picture, or its file cannot be read; the message names the row.
    """
    rows = undecoded(ds, column)
    remaining = rows.select(range(start, len(ds))) if start else rows
    for table in remaining.iter(batch_size=_BATCH_ROWS):
        for cells in _parts(table.column(column)):
            yield start, encoded_cells(cells, range(start, start + len(cells)), column)
            start += len(cells)


def _parts(cells: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """Cut cells of an image column so that the pictures of each part take little memory."""
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(cells, "bytes")), _SIZE_OF_A_FILE)
    parts = np.cumsum(sizes.to_numpy(), dtype=np.int64) // _BATCH_BYTES  # the number of the part of every cell
    for part in np.unique(parts):
        first, end = np.searchsorted(parts, [part, part + 1])
        yield cells.slice(first, end - first)


def undecoded(ds: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the image column of a dataset alone, as Arrow tables of encoded pictures."""
    return ds.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format("arrow")


def encoded_cells(cells: pa.ChunkedArray, rows: Sequence[int], column: str) -> list[bytes]:
    """Return the encoded pictures in some cells of an image column.

    Args:
        cells: The cells.
        rows: Row number of each, for error messages.
        column: Name of the column, for error messages.

    Raises:
        ValueError: If a row has no picture, or its file cannot be read; the message names the row.
    """
    contents = pc.struct_field(cells, "bytes").to_pylist()  # much faster than a list of dicts
    paths = pc.struct_field(cells, "path").to_pylist()
    return [
        data if data is not None else _file_content(path, row, column)
        for row, data, path in zip(rows, contents, paths, strict=True)
    ]


def _file_content(path: str | None, row: int, column: str) -> bytes:
    """Read the picture of a row that holds a path and no bytes, from wherever the Image feature reads it."""
    if path is None:
        raise ValueError(
            f"row {row} has no picture in {column!r}; filter such rows out: "
            f"ds.filter(lambda row: row[{column!r}] is not None)"
        )
    try:
        with open(path, "rb") if is_local_path(path) else xopen(path, "rb") as file:
            content: bytes = file.read()
            return content
    except Exception as error:  # each file system has its own types of errors
        raise ValueError(f"row {row}: the file of its picture, {path!r}, cannot be read: {error}") from error


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
        if image.format not in _TOLD_BY_THE_HEADER or (image.format == "PNG" and _may_be_turned_late(data)):
            image.load()
        # PngImageFile.getexif would decode all pixels first, to look for EXIF data after them. Like Pillow, leave
        # alone a picture whose orientation is none of the eight, be it text, bytes or another number.
        on_its_side = Image.Image.getexif(image).get(_ORIENTATION) in (5, 6, 7, 8)
        width, height = image.size
        return image.mode, ((width, height) if on_its_side else (height, width))


def _may_be_turned_late(png: bytes) -> bool:
    """Return whether a PNG may have its orientation after its pixels; chance hits in the pixels only cost time."""
    pixels = max(png.find(b"IDAT"), 0)
    return any(png.find(chunk, pixels) >= 0 for chunk in _PNG_ORIENTATION)


def is_16_bit(mode: str) -> bool:
    """Return whether pictures of a mode of Pillow are grey with 16 bits per pixel."""
    return mode.startswith("I;16")


def is_grey(mode: str) -> bool:
    """Return whether pictures of a mode are grey, with 8 or 16 bits per pixel."""
    return mode in _GREY_MODES or is_16_bit(mode)


def is_readable(mode: str) -> bool:
    """Return whether pictures of a mode can be read as 8-bit pixels; the others have no fixed range."""
    return mode in _MODES or is_16_bit(mode)


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
        if not is_readable(mode):
            raise ValueError(
                f"row {row} has a picture of mode {mode!r}, which has no fixed range of pixels; convert to 'L' or "
                "'RGB'. If all values are in 0..255, cast the column to datasets.Image(mode='L')"
            )
    grey = all(is_grey(mode) for mode, _ in headers)
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


def decode_picture(
    data: bytes, row: int, shape: tuple[int, int, int], feature_mode: str | None = None
) -> NDArray[np.uint8]:
    """Decode one picture to a uint8 array (C, H, W), as its Image feature does.

    Where the feature keeps transparency, transparent pixels are composited on white. A picture of another size is
    resized (bicubic, antialiased) until it just covers (H, W), and cropped at the centre.

    Args:
        data: The encoded picture.
        row: Its row number, for error messages.
        shape: (C, H, W), where C is 1 or 3.
        feature_mode: The mode that the Image feature converts pictures to; None: it leaves them in their own.

    Raises:
        ValueError: If the bytes are not a picture, or are damaged; the message names the row.
    """
    channels, height, width = shape
    with _explained(row):
        picture = datasets.Image(mode=feature_mode).decode_example({"path": None, "bytes": data})
        if _is_transparent(picture, feature_mode):
            picture = _on_white(picture)
        opaque = _convert(picture, "L" if channels == 1 else "RGB")
        if (opaque.height, opaque.width) != (height, width):
            opaque = ImageOps.fit(opaque, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(opaque, dtype=np.uint8)  # (H, W) or (H, W, C)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def has_16_bits(data: bytes, feature_mode: str | None = None) -> bool:
    """Return whether a readable picture has 16 bits per channel, of which only the upper 8 are used.

    Args:
        data: The encoded picture.
        feature_mode: The mode that the Image feature converts pictures to; None: it leaves them in their own.
    """
    if feature_mode is not None and is_16_bit(feature_mode):
        return True
    if data.startswith(b"\xff\xd8"):  # a JPEG
        return False
    if data.startswith(b"\x89PNG"):
        return data[24] == 16
    with Image.open(io.BytesIO(data)) as image:
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, ()) if isinstance(image, TiffImagePlugin.TiffImageFile) else ()
        return is_16_bit(image.mode) or 16 in bits


class UndecodableError(ValueError):
    """A picture that cannot be decoded.

    Args:
        row: Its row number.
        why: What is wrong, and what to do about it.
        file: The path that its row holds, if any.
        others: A sentence about other such rows, which may be empty; None: they have not been looked for.
    """

    def __init__(self, row: int, why: str, file: str | None = None, others: str | None = None) -> None:
        path = f" ({file!r})" if file else ""
        super().__init__(f"row {row} has a picture{path} that cannot be decoded {why}{others or ''}")
        self.row, self.why, self.file, self.others = row, why, file, others

    def __reduce__(self) -> tuple[type[UndecodableError], tuple[int, str, str | None, str | None]]:
        """Return how a copy is made in another process."""
        return type(self), (self.row, self.why, self.file, self.others)


@contextmanager
def files_named(ds: datasets.Dataset, column: str) -> Iterator[None]:
    """Add to the error for a picture that cannot be decoded the path that its row of `ds` holds, and other rows."""
    try:
        yield
    except UndecodableError as error:
        if error.others is not None:
            raise
        cells = undecoded(ds.select([error.row]), column)[:].column(column)
        (path,) = pc.struct_field(cells, "path").to_pylist()
        others = _others_in_words(ds, column, error.row)
        raise UndecodableError(error.row, error.why, path, others) from error.__cause__


def _others_in_words(ds: datasets.Dataset, column: str, known: int) -> str:
    """Return a sentence that names further rows whose pictures cannot be decoded; "" if none are found.

    The search takes some seconds at most, so that whoever repairs a dataset need not call again for each row.
    """
    found, tried, end = [], 0, time.monotonic() + _SEARCH_SECONDS
    with suppress(ValueError):  # a row without a picture ends the search
        for row, data in (pair for start, batch in raw_batches(ds, column) for pair in enumerate(batch, start)):
            if time.monotonic() > end:
                break
            tried = row + 1
            if row != known and not _can_be_decoded(data):
                found.append(row)
    among = f" among the first {tried:,}" if tried < len(ds) else ""
    others = f"{'that' if len(found) == 1 else 'those'} of {len(found)} other {plural(len(found), 'row')}{among}"
    return f". Nor can {others} be decoded: {listed(found)}" if found else ""


def _can_be_decoded(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:  # Pillow's decoders raise errors of many types
        return False
    return True


@contextmanager
def _opened(data: bytes, row: int) -> Iterator[Image.Image]:
    with _explained(row), Image.open(io.BytesIO(data)) as image:
        yield image


@contextmanager
def _explained(row: int) -> Iterator[None]:
    """Turn every error of decoding a picture into one that names the row and says what to do."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UndecodableError(row, f"({reason}); {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    """Return what to do about a picture that Pillow does not decode."""
    limit = None
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        limit = "PIL.Image.MAX_IMAGE_PIXELS"
    elif "MAX_TEXT_CHUNK" in str(error):
        limit = "PIL.PngImagePlugin.MAX_TEXT_CHUNK"
    elif "text chunks" in str(error):
        limit = "PIL.PngImagePlugin.MAX_TEXT_MEMORY"
    if limit is None:
        return "repair or remove it"
    return (
        f"it need not be damaged, but it takes more memory than Pillow allows: if you trust it, set a higher {limit} "
        "before this call, else remove it or make it smaller"
    )


def _is_transparent(image: Image.Image, feature_mode: str | None) -> bool:
    """Return whether some pixels of a picture that an Image feature has decoded may be transparent."""
    if is_16_bit(image.mode):
        return False
    # In a feature that converts to a mode without transparency, all pixels are seen, whichever colour was clear before.
    return (feature_mode is None or image.mode in _CLEAR_MODES) and image.has_transparency_data


def _on_white(image: Image.Image) -> Image.Image:
    """Composite a picture on white: any mode with transparency -> RGB."""
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert an opaque picture to L or RGB."""
    if is_16_bit(image.mode):
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert(mode)
    if image.mode == "LAB":  # Pillow does not convert it to grey directly
        image = image.convert("RGB")
    return image.convert(mode)
