"""Pictures of every kind become the pixels that a person would see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Image
from PIL import Image as Pictures
from PIL import PngImagePlugin
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from tests.support.picture_sets import encoded, noise, picture_set, read

GREY, COLOUR, ALPHA = noise(5, 7), noise(5, 7, 3), noise(5, 7, seed=1)
WIDE = np.random.default_rng(2).integers(0, 2**16, (5, 7), dtype=np.uint16)
PALETTE = Pictures.fromarray(COLOUR).quantize(8)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite (H, W[, C]) on white, by the definition of transparency."""
    share = (alpha / 255).reshape(alpha.shape + (1,) * (pixels.ndim - 2))
    return pixels * share + 255 * (1 - share)


def from_cmyk(cmyk: np.ndarray) -> np.ndarray:
    """Turn ink into light."""
    ink = cmyk / 255
    return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])


LA = np.stack([GREY, ALPHA], axis=2)
RGBA = np.concatenate([COLOUR, ALPHA[..., None]], axis=2)
CMYK = noise(5, 7, 4)
MODES = {
    "1": (Pictures.fromarray(GREY > 127), "PNG", 255 * (GREY > 127)),
    "L": (Pictures.fromarray(GREY), "PNG", GREY),
    "LA": (Pictures.fromarray(LA), "PNG", on_white(GREY, ALPHA)),
    "I;16": (Pictures.fromarray(WIDE), "PNG", WIDE / 257),
    "I;16B": (Pictures.frombytes("I;16B", (7, 5), WIDE.astype(">u2").tobytes()), "TIFF", WIDE / 257),
    "P": (PALETTE, "PNG", np.asarray(PALETTE.convert("RGB"))),
    "RGB": (Pictures.fromarray(COLOUR), "PNG", COLOUR),
    "RGBA": (Pictures.fromarray(RGBA), "PNG", on_white(COLOUR, ALPHA)),
    "CMYK": (Pictures.frombytes("CMYK", (7, 5), CMYK.tobytes()), "TIFF", from_cmyk(CMYK)),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_look_as_a_viewer_shows_them(mode: str) -> None:
    picture, kind, expected = MODES[mode]
    assert picture.mode == mode
    images = read(picture_set([encoded(picture, kind)])).images
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert images.shape[1:] == expected.shape
    exact = mode in ("1", "L", "P", "RGB")
    np.testing.assert_allclose(images[0].numpy(), expected, atol=0 if exact else 1)


def test_mixed_modes_become_colour_and_grey_ones_stay_grey() -> None:
    cells = {mode: encoded(picture, kind) for mode, (picture, kind, _) in MODES.items()}
    mixed = read(picture_set([cells["RGB"], cells["L"], cells["P"]])).images
    assert torch.equal(mixed[1], torch.from_numpy(GREY).expand(3, 5, 7))
    assert np.array_equal(mixed[0].permute(1, 2, 0), COLOUR)
    assert read(picture_set([cells[mode] for mode in ("L", "1", "LA", "I;16")])).image_shape == (1, 5, 7)
    assert read(picture_set([cells["L"]]), channels=3).image_shape == (3, 5, 7)


def test_a_transparent_colour_is_white() -> None:
    flags = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    palette = Pictures.fromarray(flags)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colour = Pictures.fromarray(np.array([[[1, 2, 3], [40, 50, 60]], [[7, 8, 9], [40, 50, 60]]], dtype=np.uint8))
    for data in (encoded(palette, transparency=1), encoded(colour, transparency=(40, 50, 60))):
        images = read(picture_set([data])).images
        assert bool((images[0, :, :, 1] == 255).all())
        assert bool((images[0, :, :, 0] < 100).all())


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_the_mode_of_the_image_feature_decides_the_channels(mode: str, channels: int) -> None:
    ds = picture_set([encoded(GREY), encoded(COLOUR)], image=Image(mode=mode))
    images = read(ds).images
    assert images.shape == (2, channels, 5, 7)
    decoded = np.stack([np.asarray(picture).reshape(5, 7, channels) for picture in ds["image"]])
    assert np.array_equal(images.permute(0, 2, 3, 1), decoded)


TURNED = {  # EXIF orientation -> what a viewer does with the stored pixels
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_turns_pictures_upright(orientation: int, kind: str) -> None:
    exif = Pictures.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    images = read(picture_set([encoded(COLOUR, kind, exif=exif, **options)])).images
    assert np.array_equal(images[0].permute(1, 2, 0), TURNED[orientation](COLOUR))


@pytest.mark.parametrize("size", [(32, 16), (16, 24), (16, 16), (4, 6)])
def test_image_size_is_resize_and_centre_crop(size: tuple[int, int]) -> None:
    picture = Pictures.fromarray(noise(*size, 3))
    images = read(picture_set([encoded(picture)]), image_size=8).images
    expected = center_crop(resize(picture, 8, InterpolationMode.BICUBIC), [8, 8])
    np.testing.assert_allclose(images[0].permute(1, 2, 0), np.asarray(expected), atol=1)


def test_image_size_of_two_sides_crops_the_longer_one() -> None:
    picture = Pictures.fromarray(noise(30, 20, 3))
    images = read(picture_set([encoded(picture)]), image_size=(8, 10)).images
    # 8 x 10 is wider than 30 x 20: the width fits, 16 of 30 rows remain, 7 from the top.
    expected = picture.resize((10, 8), Pictures.Resampling.BICUBIC, box=(0, 7, 20, 23))
    assert images.shape == (1, 3, 8, 10)
    np.testing.assert_allclose(images[0].permute(1, 2, 0), np.asarray(expected), atol=1)


def test_sizes_that_differ_are_made_equal() -> None:
    ds = picture_set([encoded(noise(9, 12, 3)), encoded(noise(20, 8)), encoded(noise(3, 4, 3))])
    assert read(ds, image_size=6).image_shape == (3, 6, 6)


def test_each_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    prepare = PngImagePlugin.PngImageFile.load_prepare

    def counted(self: PngImagePlugin.PngImageFile) -> None:
        decoded.append(self)
        prepare(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", counted)
    read(picture_set([encoded(noise(5, 7, 3, seed=seed)) for seed in range(4)]))
    assert len(decoded) == 4
