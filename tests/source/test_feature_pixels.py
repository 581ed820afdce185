"""The tensors of a source hold the pixels that the Image feature decodes, and so do the rows of a coreset."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as Pictures
from PIL import features as built_with

from hf_condense import condense_dataset
from hf_condense.source.decode import decode_picture, header
from hf_condense.source.load import load_source
from tests.support.picture_sets import encoded, noise, picture_set, read

GREY, COLOUR, ALPHA = noise(5, 7), noise(5, 7, 3), noise(5, 7, seed=1)
SPRITE = np.concatenate([COLOUR, ALPHA[..., None]], axis=2)
CMYK = Pictures.frombytes("CMYK", (7, 5), noise(5, 7, 4).tobytes())
CELLS = {
    "1": encoded(Pictures.fromarray(GREY > 127)),
    "L": encoded(GREY),
    "L with a clear value": encoded(GREY, transparency=int(GREY[0, 0])),
    "LA": encoded(np.stack([GREY, ALPHA], axis=2)),
    "P": encoded(Pictures.fromarray(COLOUR).quantize(8)),
    "P with a clear colour": encoded(Pictures.fromarray(COLOUR).quantize(8), transparency=1),
    "P with alphas": encoded(Pictures.fromarray(COLOUR).quantize(8), transparency=bytes(range(0, 160, 20))),
    "RGB": encoded(COLOUR),
    "RGB with a clear colour": encoded(COLOUR, transparency=tuple(COLOUR[0, 0].tolist())),
    "RGBA": encoded(SPRITE),
    "I;16": encoded(noise(5, 7).astype(np.uint16) * 200),
    "I": encoded(Pictures.fromarray(noise(5, 7).astype(np.int32)), "TIFF"),
    "F": encoded(Pictures.fromarray(noise(5, 7).astype(np.float32)), "TIFF"),
    "CMYK": encoded(CMYK, "TIFF"),
    "JPEG": encoded(COLOUR, "JPEG"),
    "GIF": encoded(Pictures.fromarray(COLOUR).quantize(8), "GIF"),
}
OPAQUE = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
CLEAR = ("LA", "La", "P", "PA", "RGBA", "RGBa")


def shown(ds: Dataset) -> Pictures.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of palettes with transparency
        picture: Pictures.Image = ds[0]["image"]
    return picture


def channels_first(picture: Pictures.Image) -> torch.Tensor:
    """Return the pixels of an L or RGB picture as (C, H, W)."""
    pixels = np.array(picture)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


# The mode of the feature


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", OPAQUE)
def test_tensors_are_what_a_feature_with_a_mode_decodes(cell: str, mode: str) -> None:
    ds = picture_set([CELLS[cell]], image=Image(mode=mode))
    picture = shown(ds)
    assert picture.mode == mode
    expected = channels_first(picture.convert("L" if mode in ("1", "L") else "RGB"))
    assert torch.equal(read(ds).images[0], expected)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", CLEAR)
def test_what_a_feature_leaves_transparent_is_composited_on_white(cell: str, mode: str) -> None:
    ds = picture_set([CELLS[cell]], image=Image(mode=mode))
    try:
        picture = shown(ds)
    except ValueError:  # Pillow has no such conversion
        with pytest.raises(ValueError, match=r"row 0 .* cannot be decoded"):
            read(ds)
        return
    layer = (picture.convert("LA") if mode == "La" else picture).convert("RGBA")
    on_white = Pictures.alpha_composite(Pictures.new("RGBA", layer.size, "white"), layer).convert("RGB")
    expected = channels_first(on_white.convert("L") if mode in ("LA", "La") else on_white)
    assert torch.equal(read(ds).images[0], expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_a_feature_of_16_bits_is_one_channel_of_its_upper_8(mode: str) -> None:
    for cell in ("I;16", "L"):
        ds = picture_set([CELLS[cell]], image=Image(mode=mode))
        expected = np.asarray(shown(ds), dtype=np.uint16) >> 8
        assert np.array_equal(read(ds).images[0], expected[None])


@pytest.mark.parametrize("mode", ["F", "I", "BGR;15", "rgb"])
def test_a_feature_without_a_fixed_range_is_refused_before_anything_is_decoded(mode: str) -> None:
    ds = picture_set([b"no picture"], image=Image(mode=mode))
    with pytest.raises(ValueError, match=rf"Image\(mode='{mode}'\).*ds.cast_column\('image', datasets.Image\(mode='L'"):
        read(ds)


def test_a_sprite_looks_the_same_in_a_row_and_in_the_tensors_of_a_coreset() -> None:
    cells = [encoded(np.concatenate([noise(5, 7, 3, seed=i), noise(5, 7, 1, seed=9)], axis=2)) for i in range(4)]
    ds = picture_set(cells, [0, 1, 0, 1], image=Image(mode="RGB"))
    coreset = condense_dataset(ds, "random", ipc=2, progress=False, cache=False)
    images, labels = coreset.synthetic.decoded()[:2]
    tensors = {int(label): [] for label in labels}
    for image, label in zip(images, labels.tolist(), strict=True):
        tensors[label].append((image * 255).round().to(torch.uint8))
    for row in coreset:
        assert torch.equal(channels_first(row["image"]), tensors[row["label"]].pop(0))


@pytest.mark.filterwarnings("ignore:Downcasting array dtype")
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16"])
def test_integer_arrays_that_are_cast_to_grey_are_read_as_they_are(dtype: str) -> None:
    columns = {"image": [GREY.astype(dtype).tolist()] * 2, "label": [0, 1]}
    ds = Dataset.from_dict(columns).cast_column("image", Image(mode="L"))
    assert np.array_equal(read(ds, label_column="label").images[0, 0], GREY)


def test_the_mode_of_the_feature_is_part_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    plain = picture_set([CELLS["RGBA"]])
    sources = [load_source(ds, progress=False) for ds in (plain, plain.cast_column("image", Image(mode="RGB")), plain)]
    assert not torch.equal(sources[0].images, sources[1].images)
    assert torch.equal(sources[0].images, sources[2].images)
    assert sources[0].content_hash == sources[2].content_hash != sources[1].content_hash


# Orientation


def tiff_block(kind: int, count: int, value: bytes) -> bytes:
    """Return EXIF data whose only tag is the orientation, of any type."""
    entry = struct.pack("<HHI", 0x0112, kind, count) + (
        value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    )
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + (value if len(value) > 4 else b"")


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(png: bytes, name: bytes, content: bytes, *, late: bool) -> bytes:
    """Return a PNG with one more chunk before or after its pixels."""
    position = png.index(b"IEND" if late else b"IDAT") - 4
    return png[:position] + png_chunk(name, content) + png[position:]


ORIENTATIONS: dict[str, bytes] = {
    **{f"BYTE {i}": tiff_block(1, 1, bytes([i])) for i in (0, 1, 6, 9)},
    **{f"SHORT {i}": tiff_block(3, 1, struct.pack("<H", i)) for i in (0, *range(1, 9), 9, 65535)},
    **{f"LONG {i}": tiff_block(4, 1, struct.pack("<I", i)) for i in (0, 3, 6, 2**32 - 1)},
    "SIGNED LONG -6": tiff_block(9, 1, struct.pack("<i", -6)),
    "two SHORTs": tiff_block(3, 2, struct.pack("<HH", 6, 6)),
    "no SHORT": tiff_block(3, 0, b""),
    "UNDEFINED": tiff_block(7, 1, b"\x06"),
    "text": tiff_block(2, 2, b"6\0"),
    "empty text": tiff_block(2, 1, b"\0"),
    "no text": tiff_block(2, 0, b""),
    "RATIONAL 6/1": tiff_block(5, 1, struct.pack("<II", 6, 1)),
    "RATIONAL 1/0": tiff_block(5, 1, struct.pack("<II", 1, 0)),
    "FLOAT 6": tiff_block(11, 1, struct.pack("<f", 6)),
    "DOUBLE NaN": tiff_block(12, 1, struct.pack("<d", float("nan"))),
}
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILE = b"\nexif\n%8d\n%s\n" % (len(ORIENTATIONS["SHORT 6"]), ORIENTATIONS["SHORT 6"].hex().encode())
PNG = encoded(COLOUR)
TURNED = {
    **{f"JPEG {name}": encoded(COLOUR, "JPEG", exif=b"Exif\0\0" + data) for name, data in ORIENTATIONS.items()},
    **{f"WEBP {name}": encoded(COLOUR, "WEBP", exif=b"Exif\0\0" + data) for name, data in ORIENTATIONS.items()},
    **{f"PNG {name}": with_chunk(PNG, b"eXIf", data, late=False) for name, data in ORIENTATIONS.items()},
    **{f"late PNG {name}": with_chunk(PNG, b"eXIf", data, late=True) for name, data in ORIENTATIONS.items()},
    **{
        f"{'late ' * late}PNG {name.decode()}": with_chunk(PNG, name, content, late=late)
        for name, content in (
            (b"tEXt", b"Raw profile type exif\0" + PROFILE),
            (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        )
        for late in (False, True)
    },
    "JPEG XMP": encoded(COLOUR, "JPEG", xmp=XMP),
    "WEBP XMP": encoded(COLOUR, "WEBP", xmp=XMP),
    "PNG with IDAT in a text": with_chunk(
        with_chunk(PNG, b"tEXt", b"Comment\0IDAT", late=False), b"eXIf", ORIENTATIONS["SHORT 6"], late=True
    ),
}


@pytest.mark.filterwarnings("ignore:Metadata Warning, tag 274")
@pytest.mark.parametrize("case", TURNED)
def test_a_picture_is_turned_as_the_feature_turns_it(case: str) -> None:
    ds = picture_set([TURNED[case]])
    assert torch.equal(read(ds).images[0], channels_first(ds[0]["image"]))


@pytest.mark.filterwarnings("ignore:Metadata Warning, tag 274")
def test_the_cases_of_orientation_turn_some_pictures_and_leave_others() -> None:
    sizes = {case: picture_set([cell])[0]["image"].size for case, cell in TURNED.items()}
    assert sizes["JPEG SHORT 6"] == sizes["late PNG SHORT 6"] == sizes["late PNG iTXt"] == (5, 7)
    assert sizes["JPEG UNDEFINED"] == sizes["PNG SHORT 9"] == (7, 5)


def formats() -> list[str]:
    """Return the formats of pictures that Pillow can write and read here."""
    Pictures.init()
    others = {"BUFR", "EPS", "GRIB", "HDF5", "IM", "MSP", "SPIDER", "WMF", "XBM"}
    kinds = sorted((set(Pictures.SAVE) & set(Pictures.OPEN)) - others)
    return [kind for kind in kinds if kind != "AVIF" or built_with.check("avif")]


@pytest.mark.parametrize("kind", formats())
@pytest.mark.parametrize("size", [(48, 32), (32, 48)])
def test_the_header_of_every_format_gives_the_size_that_it_is_decoded_to(kind: str, size: tuple[int, int]) -> None:
    try:
        data = encoded(noise(*size, 3), kind)
    except (OSError, ValueError, KeyError) as error:
        pytest.skip(f"Pillow does not write such a picture: {error}")
    picture = shown(picture_set([data]))
    mode, upright = header(data, 0)
    assert upright == (picture.height, picture.width)
    assert mode == picture.mode
    shape = (3, *upright)
    assert np.array_equal(decode_picture(data, 0, shape).transpose(1, 2, 0), np.asarray(picture.convert("RGB")))


# Paths


def test_paths_are_opened_wherever_the_feature_opens_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, file = encoded(COLOUR), tmp_path / "a.png"
    file.write_bytes(data)
    (tmp_path / "b::c.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("folder/a.png", data)
    with fsspec.open("memory://pictures/a.png", "wb") as remote:
        remote.write(data)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.png", data)
    with fsspec.open("memory://pictures/all.zip", "wb") as remote:
        remote.write(inner.getvalue())
    monkeypatch.chdir(tmp_path)
    paths = (
        str(file),
        "a.png",
        str(tmp_path / "b::c.png"),
        "memory://pictures/a.png",
        f"zip://folder/a.png::{tmp_path / 'all.zip'}",
        "zip://a.png::memory://pictures/all.zip",
    )
    ds = picture_set([{"path": path, "bytes": None} for path in paths])
    images = read(ds).images
    for row, path in enumerate(paths):
        assert torch.equal(channels_first(ds[row]["image"]), channels_first(Pictures.fromarray(COLOUR))), path
        assert torch.equal(images[row], images[0]), path


@pytest.mark.parametrize(
    "path",
    ["zip://b.png::{0}/all.zip", "zip://a.png::{0}/none.zip", "zip://a.png::{0}/no.zip", "memory://none.png", "what://a.png"],
)  # fmt: skip
def test_a_path_that_cannot_be_opened_is_refused_with_its_row_and_path(tmp_path: Path, path: str) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", encoded(COLOUR))
    (tmp_path / "no.zip").write_bytes(b"no archive")
    path = path.format(tmp_path)
    cells: list[Any] = [encoded(COLOUR), {"path": path, "bytes": None}]
    with pytest.raises(ValueError, match="row 1: the file of its picture") as error:
        read(picture_set(cells))
    assert path in str(error.value)
