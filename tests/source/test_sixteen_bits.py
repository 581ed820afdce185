"""Pictures that have 16 bits per channel but hold fewer come out dark, and a warning says so."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Image

from hf_condense.source.load import load_source
from hf_condense.source.streamed import StreamedPictures
from tests.support.picture_sets import encoded, noise, picture_set, read


def deep(largest: int) -> np.ndarray:
    """Return 16-bit pixels up to a largest value."""
    pixels = np.random.default_rng(0).integers(0, largest, (5, 7), dtype=np.uint16)
    pixels[0, 0] = largest
    return pixels


def colour_png(pixels: np.ndarray) -> bytes:
    """Return 16-bit colour (H, W, 3) as a PNG, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


TWELVE = deep(4095)
DARK = {
    "PNG": encoded(TWELVE),
    "TIFF": encoded(TWELVE, "TIFF"),
    "colour PNG": colour_png(np.stack([TWELVE] * 3, axis=2)),
}


def warning(caplog: pytest.LogCaptureFixture) -> str:
    """Return the only warning."""
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    return record.getMessage()


@pytest.mark.parametrize("case", DARK)
def test_data_of_12_bits_is_warned_of_once_with_its_rows_and_its_largest_value(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = read(picture_set([DARK[case], encoded(noise(5, 7, 3)), DARK[case]]))
    assert np.array_equal(source.images[0, 0], TWELVE >> 8)
    message = warning(caplog)
    for part in ("2 of 3 rows", "16-bit", "15 of 255", "4095 of 65535", "12 bits", "multiply them by 16"):
        assert part in message


def test_multiplying_as_advised_gives_bright_pictures_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    source = read(picture_set([encoded(TWELVE * 16)]))
    assert source.images.max() == 255
    assert not caplog.records


@pytest.mark.parametrize(("largest", "factor"), [(32767, 2), (16383, 4), (1023, 64), (255, 256)])
def test_other_depths_are_warned_of_with_their_factor(
    largest: int, factor: int, caplog: pytest.LogCaptureFixture
) -> None:
    read(picture_set([encoded(deep(largest))]))
    assert f"{largest} of 65535" in warning(caplog)
    assert f"multiply them by {factor} " in warning(caplog)


@pytest.mark.parametrize("cell", [encoded(deep(65535)), encoded(deep(32768)), encoded(noise(5, 7) // 16)])
def test_full_depth_and_dark_pictures_of_8_bits_are_not_warned_of(
    cell: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    read(picture_set([cell]))
    assert not caplog.records


def test_a_feature_of_16_bits_warns_of_pictures_of_8(caplog: pytest.LogCaptureFixture) -> None:
    read(picture_set([encoded(noise(5, 7))], image=Image(mode="I;16")))
    assert "255 of 65535" in warning(caplog)


def test_the_warning_comes_from_the_cache_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        load_source(picture_set([DARK["PNG"]]), progress=False)
        assert "4095 of 65535" in warning(caplog)
        caplog.clear()


def test_streamed_pictures_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (70, 70), dtype=np.uint16)
    pixels[0, 0] = 4095
    pictures = picture_set([encoded(pixels), encoded(noise(70, 70)), encoded(pixels)])
    source = load_source(pictures, cache=False, progress=False, streams=True)
    assert isinstance(source.images, StreamedPictures)
    assert "2 of 3 rows" in warning(caplog)
    assert "4095 of 65535" in warning(caplog)
