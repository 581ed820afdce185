"""Read any labelled image dataset as uint8 images sorted by class; pictures are decoded once and cached by content."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_condense.base.cache import cache_enabled, content_key
from hf_condense.base.checks import MAX_SIDE, integer
from hf_condense.base.files import explained_access, folder_size, new_folder, remove_folder
from hf_condense.base.paths import cache_folder
from hf_condense.base.progress import progress_bar
from hf_condense.base.spread import spread
from hf_condense.source.class_source import ClassSource
from hf_condense.source.columns import Labels, check_dataset, find_image_column, find_label_column, read_labels
from hf_condense.source.decode import (
    EncodedPictures,
    Size,
    common_shape,
    decode_picture,
    files_named,
    has_16_bits,
    header,
    is_grey,
    is_readable,
)
from hf_condense.source.streamed import LARGE_SIDE, StreamedPictures

logger = logging.getLogger("hf_condense")

CACHE_VERSION = 2  # version of the cached files
_SAMPLED = 1000  # pictures that give the mean and the std of a source whose pictures are not decoded in advance
# Pictures in a task for a thread: with a task for each, threads take longer than reading the headers does.
_SLICE = 128
# Encoded pictures that are kept in memory between hashing and decoding them. A GiB holds all of CIFAR-10 (0.1 GB) and
# of most sets that are condensed, and it is small beside what training takes.
_KEPT_BYTES = 2**30
_DECODED_BYTES = 2**28  # of pictures that are decoded together

Result = TypeVar("Result")


class Decoded(NamedTuple):
    """All pictures of a dataset, decoded.

    Attributes:
        images: uint8 (N, C, H, W), or what stands for them.
        histogram: Count of each value in each channel. int64 (C, 256).
        rows_of_16_bits: Number of pictures with 16 bits per channel.
        brightest: Largest value in `images` of those pictures; 0 if there are none.
    """

    images: Tensor | StreamedPictures
    histogram: NDArray[np.int64]
    rows_of_16_bits: int
    brightest: int


@torch.inference_mode(False)  # tensors that are made in it could not be trained on later
def load_source(
    ds: datasets.Dataset,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | Size | None = None,
    channels: int | None = None,
    cache: bool = True,
    progress: bool = True,
    streams: bool = False,
) -> ClassSource:
    """Read a labelled image dataset as uint8 images sorted by class. The dataset itself is never changed.

    The images are those that the Image feature decodes, in the mode that it asks for. Where they are transparent, they
    are composited on white.

    The decoded images are kept under `$HF_HOME/condense/sources`. A second call with the same content only hashes the
    encoded pictures, and opens the memory-mapped file, so that a set may be larger than memory. Without the cache
    everything is held in memory.

    The encoded pictures are read once: they are hashed as they are read, and kept in memory until they are decoded.
    At most 1 GiB is kept. Of a larger set, the rest is read twice more if it is not in the cache: once for the headers
    and once to decode it.

    Args:
        ds: Any map-style dataset; its formatting and transforms are ignored.
        image_column: Name of the image column; default: the only Image column.
        label_column: Name of the label column (ClassLabel, text, integers, booleans); default: the only ClassLabel.
        image_size: Resize the shorter side (bicubic, antialiased) and crop the centre to this side or (height, width).
        channels: 1 or 3; default: what the mode of the Image feature says, else 1 if all pictures are grey, else 3.
        cache: Keep the decoded images on disk; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while decoding.
        streams: If pictures are large (more than 64 pixels high and wide), decode them when they are asked for, and
            nothing in advance. Mean and std are then those of at most 1,000 pictures, spread evenly over the rows.

    Returns:
        The source, on the CPU.

    Raises:
        TypeError: If `ds` is a stream or a dict of splits.
        ValueError: If columns are missing or ambiguous, labels are null, the Image feature asks for a mode without a
            fixed range, sizes differ without `image_size`, or a picture is damaged (the message names row and file).
        OSError: If the cache cannot be read or written.
    """
    ds = check_dataset(ds)
    image_column = find_image_column(ds, image_column)
    label_column = find_label_column(ds, label_column)
    size = checked_size(image_size)
    mode = _feature_mode(ds, image_column)
    channels = _fixed_channels(channels, mode)
    labels = read_labels(ds, label_column)
    pictures = EncodedPictures(ds, image_column, _KEPT_BYTES)
    content_hash = _content_hash(pictures, labels, mode)
    order = torch.argsort(labels.index, stable=True)
    decode = partial(_decode, pictures, size, channels, mode, order, progress=progress)
    with files_named(ds, image_column):
        if streams and min((shape := _shape_of_headers(pictures, size, channels, mode))[1:]) > LARGE_SIDE:
            decoded = _streamed(ds, image_column, shape, mode, order)
        elif cache_enabled(cache):
            key = content_key(format=CACHE_VERSION, content=content_hash, image_size=size, channels=channels)
            decoded = _cached(cache_folder("sources") / key, decode)
        else:
            decoded = decode()
    _warn_of_dark_pictures(decoded)
    mean, std = _statistics(decoded.histogram)
    return ClassSource(
        dataset=ds,
        images=decoded.images,
        labels=labels.index[order],
        rows=order,
        class_names=labels.names,
        label_values=labels.values,
        image_column=image_column,
        label_column=label_column,
        image_size=size,
        mean=mean,
        std=std,
        content_hash=content_hash,
    )


def checked_size(image_size: int | Size | None) -> Size | None:
    """Return what a caller passed as `image_size` as (height, width) or None.

    Raises:
        TypeError: If it is neither an integer nor a tuple or list of integers.
        ValueError: If it has not two sides, or a side is out of range.
    """
    if image_size is None:
        return None
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    message = f"image_size should be a side or (height, width), integers in 1..{MAX_SIDE}; got {image_size!r}"
    try:
        sides = tuple(integer("image_size", side) for side in size)
    except TypeError:
        raise TypeError(message) from None
    if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(message)
    return (sides[0], sides[1])


def _feature_mode(ds: datasets.Dataset, column: str) -> str | None:
    """Return the mode that the Image feature of a column converts pictures to, None if it leaves them as they are.

    Raises:
        ValueError: If pictures of this mode cannot be read as 8-bit pixels.
    """
    mode: str | None = ds.features[column].mode
    if mode is not None and not is_readable(mode):
        raise ValueError(
            f"{column!r} is an Image(mode={mode!r}), whose pixels have no fixed range; cast it to one of 8 bits, where "
            f"values above 255 become 255: ds.cast_column({column!r}, datasets.Image(mode='L')), or mode='RGB'"
        )
    return mode


def _fixed_channels(channels: int | None, mode: str | None) -> int | None:
    """Return the number of channels that the caller or the mode of the feature asks for, None if neither does."""
    if channels is None:
        return None if mode is None else 1 if is_grey(mode) else 3
    if isinstance(channels, bool) or not isinstance(channels, Integral) or channels not in (1, 3):
        raise ValueError(f"channels should be 1 or 3; got {channels!r}")
    return int(channels)


def _content_hash(pictures: EncodedPictures, labels: Labels, mode: str | None) -> str:
    """Hash pictures and labels; formats, fingerprints and how the table is cut into chunks do not matter.

    The mode of the Image feature is part of the content, because the same bytes are other pixels in it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for _, batch in pictures.batches():
        for data in batch:
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    digest.update(labels.index.numpy().astype("<i8").tobytes())
    digest.update(json.dumps([labels.names, labels.values, *([] if mode is None else [mode])]).encode())
    return digest.hexdigest()


def _cached(folder: Path, decode: Callable[[Path], Decoded]) -> Decoded:
    """Return the images in a folder of the cache; if they are not there, or damaged, decode them into it first."""
    if not _is_whole(folder):
        remove_folder(folder)
        with new_folder(folder) as work:
            facts: dict[str, Any] = decode(work / "images.bin")._asdict()
            with (work / "images.bin").open("rb+") as file:
                os.fsync(file.fileno())  # a crash of the machine would leave a file of the right size that is empty
            facts["shape"] = list(facts.pop("images").shape)
            facts["histogram"] = facts["histogram"].tolist()
            (work / "source.json").write_text(json.dumps(facts))
        logger.info("cached the decoded images in %s (%.1f MB)", folder, folder_size(folder) / 1e6)
    with explained_access(folder):
        return _open(folder)


def _decode(
    pictures: EncodedPictures,
    size: Size | None,
    channels: int | None,
    mode: str | None,
    order: Tensor,
    file: Path | None = None,
    *,
    progress: bool,
) -> Decoded:
    """Decode all pictures and count their pixel values.

    Args:
        pictures: The encoded pictures; this is the last pass over them.
        size: The (height, width) to resize to, or None.
        channels: 1, 3 or None.
        mode: The mode that the Image feature converts pictures to, or None.
        order: Row number of every image, in the order in which the images are stored. int64 (N,)
        file: A new file that holds the images; None: they are held in memory.
        progress: Show a progress bar.
    """
    position = torch.empty_like(order)  # (N,): where the image of a row is stored
    position[order] = torch.arange(len(order), device="cpu")
    shape = _shape_of_headers(pictures, size, channels, mode)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = _allocate((len(order), *shape), file)
        counts = _Counts(shape[0])
        with progress_bar(len(order), "Decoding", "img", shown=progress) as bar:
            for start, batch in _cut(pictures.batches(last=True), max(1, _DECODED_BYTES // math.prod(shape))):
                parts = list(_map_slices(pool, partial(_decode_slice, shape, mode), start, batch))
                decoded = np.concatenate([pixels for pixels, _ in parts])  # (n, C, H, W)
                counts.add(decoded, list(itertools.chain.from_iterable(depths for _, depths in parts)))
                images[position[start : start + len(batch)]] = torch.from_numpy(decoded)
                bar.update(len(batch))
    return counts.of(images)


class _Counts:
    """Counts the pixel values of images, and the pictures with 16 bits per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        self._histogram = np.zeros((channels, 256), dtype=np.int64)
        self._rows_of_16_bits = self._brightest = 0

    def add(self, images: NDArray[np.uint8], depths: list[bool]) -> None:
        """Count images (n, C, H, W), of which some have 16 bits per channel."""
        deep = images[depths]
        self._rows_of_16_bits += len(deep)
        self._brightest = max(self._brightest, int(deep.max(initial=0)))
        for c in range(len(self._histogram)):
            self._histogram[c] += np.bincount(images[:, c].ravel(), minlength=256)

    def of(self, images: Tensor | StreamedPictures) -> Decoded:
        """Return images with what was counted."""
        return Decoded(images, self._histogram, self._rows_of_16_bits, self._brightest)


def _cut(batches: Iterable[tuple[int, list[bytes]]], most: int) -> Iterator[tuple[int, list[bytes]]]:
    """Cut batches, each with the number of its first row, into smaller ones of at most `most` rows."""
    for start, batch in batches:
        for i in range(0, len(batch), most):
            yield start + i, batch[i : i + most]


def _shape_of_headers(
    pictures: EncodedPictures, size: Size | None, channels: int | None, mode: str | None
) -> tuple[int, int, int]:
    """Return the (channels, height, width) that all pictures are decoded to, by their headers."""
    headers: list[tuple[str, Size]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start, batch in pictures.batches():
            headers.extend(itertools.chain.from_iterable(_map_slices(pool, partial(_read_headers, mode), start, batch)))
    return common_shape(headers, size, channels)


def _streamed(
    ds: datasets.Dataset, column: str, shape: tuple[int, int, int], mode: str | None, order: Tensor
) -> Decoded:
    """Return pictures that are decoded when they are asked for, with the pixel values of some of them."""
    in_row_order = StreamedPictures(ds, column, torch.arange(len(order), device="cpu"), shape, mode)
    counts = _Counts(shape[0])
    for rows in spread(len(order), _SAMPLED).split(max(1, min(_SLICE, _DECODED_BYTES // math.prod(shape)))):
        images, depths = in_row_order.with_depths(rows)
        counts.add(images.numpy(), depths)
    return counts.of(StreamedPictures(ds, column, order, shape, mode))


def _map_slices(
    pool: ThreadPoolExecutor, function: Callable[[int, list[bytes]], Result], start: int, batch: list[bytes]
) -> Iterator[Result]:
    """Apply a function to the slices of a batch in threads; it gets the first row of a slice and its pictures."""
    offsets = range(0, len(batch), _SLICE)
    slices = [batch[offset : offset + _SLICE] for offset in offsets]
    return pool.map(function, [start + offset for offset in offsets], slices)


def _read_headers(mode: str | None, start: int, pictures: list[bytes]) -> list[tuple[str, Size]]:
    headers = [header(data, row) for row, data in enumerate(pictures, start)]
    return [(mode or own_mode, size) for own_mode, size in headers]


def _decode_slice(
    shape: tuple[int, int, int], mode: str | None, start: int, pictures: list[bytes]
) -> tuple[NDArray[np.uint8], list[bool]]:
    """Return the images (n, C, H, W) of some pictures, and whether each of these has 16 bits per channel."""
    images = np.stack([decode_picture(data, row, shape, mode) for row, data in enumerate(pictures, start)])
    return images, [has_16_bits(data, mode) for data in pictures]


def _allocate(shape: tuple[int, ...], file: Path | None) -> Tensor:
    """Return an uninitialised uint8 tensor, which is held in memory or mapped to a new file."""
    if file is None:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    count = int(np.prod(shape))
    with file.open("wb") as handle:
        # If the disk is full, reserving the space raises an error, while writing to the map would crash the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, count)
        handle.truncate(count)
    return torch.from_file(str(file), shared=True, size=count, dtype=torch.uint8, device="cpu").reshape(shape)


def _is_whole(folder: Path) -> bool:
    """Return whether a folder holds cached images of the size that it says, and they may be read."""
    try:
        shape = json.loads((folder / "source.json").read_text())["shape"]
        with (folder / "images.bin").open("rb") as file:
            return os.fstat(file.fileno()).st_size == int(math.prod(shape))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(folder: Path) -> Decoded:
    """Map cached images into memory, without reading them."""
    facts = json.loads((folder / "source.json").read_text())
    images = _mapped(folder / "images.bin", facts["shape"])
    histogram = np.asarray(facts["histogram"], dtype=np.int64)
    return Decoded(images, histogram, facts["rows_of_16_bits"], facts["brightest"])


def _mapped(file: Path, shape: list[int]) -> Tensor:
    """Map a file of bytes into memory: uint8, of a shape."""
    try:  # writing to it changes a copy in memory
        return torch.from_file(str(file), shared=False, size=math.prod(shape), dtype=torch.uint8, device="cpu").reshape(
            shape
        )
    except RuntimeError:  # the system counts such a map as memory, and this one is larger than that
        logger.info("%s is larger than the memory, so it is mapped for reading only", file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody should write to the images of a source
            return torch.from_numpy(np.memmap(file, np.uint8, "r", shape=tuple(shape)))


def _warn_of_dark_pictures(decoded: Decoded) -> None:
    """Warn of pictures that have 16 bits per channel but hold fewer, for example the 12 of a microscope."""
    if decoded.rows_of_16_bits == 0 or decoded.brightest > 127:
        return
    bits = 8 + decoded.brightest.bit_length()
    rows = len(decoded.images)
    logger.warning(
        "%d of %d rows have 16-bit pictures that come out dark: the upper 8 bits are used, and the brightest pixel, "
        "as resized, is %d of 255 (about %d of 65535). If the values have %d bits, multiply them by %d first",
        decoded.rows_of_16_bits,
        rows if isinstance(decoded.images, Tensor) else min(_SAMPLED, rows),  # streamed pictures are not all looked at
        decoded.brightest,
        256 * decoded.brightest + 255,
        bits,
        2 ** (16 - bits),
    )


def _statistics(histogram: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return mean and std per channel in pixel units from the counts of the 256 values: (C, 256) -> (C,), (C,)."""
    values = np.arange(256) / 255
    total = histogram.sum(1)
    mean = histogram @ values / total
    variance = histogram @ values**2 / total - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    std[std < 1e-6] = 1.0
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
