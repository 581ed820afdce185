"""The advice for a column that is no Image column gives, when it is followed, a dataset with the right pixels."""

from __future__ import annotations

import re
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features, Image, List, Value

from hf_condense.source.load import load_source
from tests.support.picture_sets import encoded, noise, read

COLOUR, GREY = noise(5, 7, 3), noise(5, 7)
CHW = COLOUR.transpose(2, 0, 1)
RGB, L = CHW, GREY[None]
PATH_AND_BYTES = {"bytes": Value("binary"), "path": Value("string")}
PICTURE = PIL.Image.fromarray(COLOUR)


def nested(depth: int, dtype: str) -> Any:
    """Return the feature of lists in lists."""
    return List(nested(depth - 1, dtype)) if depth else Value(dtype)


COLUMNS: dict[str, tuple[Any, Any, np.ndarray]] = {
    "pictures in a list": ([PICTURE, PICTURE], List(Image()), RGB),
    "bytes in a list": ([encoded(COLOUR)], List(Value("binary")), RGB),
    "bytes": (encoded(COLOUR), Value("binary"), RGB),
    "long bytes": (encoded(COLOUR), Value("large_binary"), RGB),
    "a dict": ({"bytes": encoded(COLOUR)}, {"bytes": Value("binary")}, RGB),
    "a dict with a path": ({"bytes": encoded(COLOUR), "path": "a"}, PATH_AND_BYTES, RGB),
    "floats CHW": (CHW / 255, Array3D((3, 5, 7), "float32"), RGB),
    "floats CHW in lists": ((CHW / 255).tolist(), nested(3, "float64"), RGB),
    "floats CHW up to 255": (CHW * 1.0, Array3D((3, 5, 7), "float32"), RGB),
    "floats HWC": (COLOUR / 255, Array3D((5, 7, 3), "float32"), RGB),
    "floats HW": (GREY / 255, Array2D((5, 7), "float32"), L),
    "floats 1HW": (GREY[None] / 255, Array3D((1, 5, 7), "float16"), L),
    "floats HW1": ((GREY[..., None] / 255).tolist(), nested(3, "float32"), L),
    "integers CHW": (CHW, Array3D((3, 5, 7), "uint8"), RGB),
    "integers HWC": (COLOUR, Array3D((5, 7, 3), "uint8"), RGB),
    "integers HWC in lists": (COLOUR.tolist(), nested(3, "int64"), RGB),
    "integers HW": (GREY, Array2D((5, 7), "uint8"), L),
    "integers HW in lists": (GREY.tolist(), nested(2, "int64"), L),
}  # fmt: skip


def column_set(cell: Any, feature: Any) -> Dataset:
    features = Features({"it's": feature, "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"it's": [cell] * 2, "label": [0, 1]}, features=features)


def refusal(ds: Dataset) -> str:
    """Return the message with which the column is refused as the image column."""
    with pytest.raises(ValueError, match="it should be an Image") as error:
        load_source(ds, image_column="it's")
    return str(error.value)


@pytest.mark.filterwarnings("ignore:Downcasting array dtype")
@pytest.mark.parametrize("case", COLUMNS)
def test_following_the_advice_gives_the_right_pixels(case: str) -> None:
    cell, feature, expected = COLUMNS[case]
    ds = column_set(cell, feature)
    advice = re.search(r": (ds\..*datasets\.Image\([^)]*\)\));", refusal(ds))
    assert advice is not None
    mended = eval(advice[1], {"ds": ds, "datasets": datasets, "np": np, "PIL": PIL})
    images = read(mended).images
    assert images.shape[1:] == expected.shape
    assert np.abs(images[0].numpy().astype(int) - expected).max() == 0


def test_following_the_advice_for_lists_keeps_the_bytes_of_a_jpeg() -> None:
    jpeg = encoded(COLOUR, "JPEG")
    ds = column_set([{"bytes": jpeg, "path": None}], List(Image()))
    advice = re.search(r": (ds\..*datasets\.Image\(\)\));", refusal(ds))
    assert advice is not None
    mended = eval(advice[1], {"ds": ds, "datasets": datasets})
    assert mended.cast_column("it's", Image(decode=False))[0]["it's"]["bytes"] == jpeg


def test_following_the_advice_for_streams_keeps_the_bytes_of_a_jpeg() -> None:
    jpeg = encoded(COLOUR, "JPEG")
    stream = column_set({"bytes": jpeg, "path": None}, Image()).to_iterable_dataset()
    with pytest.raises(TypeError, match="IterableDataset") as error:
        load_source(stream)
    advice = re.search(r"(Dataset\.from_list.*)$", str(error.value))
    assert advice is not None
    mended = eval(advice[1], {"ds": stream, "Dataset": Dataset})
    assert mended.features == stream.features
    assert mended.cast_column("it's", Image(decode=False))[0]["it's"]["bytes"] == jpeg


def test_advice_for_paths_in_a_list_keeps_one_of_them() -> None:
    message = refusal(column_set(["/a.png"], List(Value("string"))))
    assert "list of pictures" in message
    assert "[0]}).cast_column(" in message


@pytest.mark.parametrize("values", [GREY - 100.0, GREY * 3.0])
def test_pixels_out_of_range_are_named(values: np.ndarray) -> None:
    message = refusal(column_set(values, Array2D((5, 7), "float32")))
    assert f"in {values.min():.5g}..{values.max():.5g} (bring them to 0..255 before)" in message


@pytest.mark.parametrize(("cell", "feature"), [(3, Value("int64")), ([[1], [2, 3]], nested(2, "int64"))])
def test_columns_that_hold_no_pictures_get_no_advice(cell: Any, feature: Any) -> None:
    assert "cast" not in refusal(column_set(cell, feature))


@pytest.mark.parametrize(
    ("path", "hinted"), [("a/b.PNG", True), ("b.webp", True), ("clip.mpg", False), ("a cat", False)]
)
def test_text_that_names_a_picture_is_hinted_at(path: str, hinted: bool) -> None:
    ds = datasets.Dataset.from_dict({"file": [path], "label": ["x"]})
    with pytest.raises(ValueError, match="no column holds an Image") as caught:
        load_source(ds, label_column="label", cache=False)
    assert ("if 'file' is the image column: cast it first: ds.cast_column('file'" in str(caught.value)) == hinted
