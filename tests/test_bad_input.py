"""Bad input raises an error that says what was wrong, what was given and what would be right."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures
from PIL import PngImagePlugin
from torch import nn

from hf_condense import TrainingRecipe, TrainingViews, evaluate, list_condensed, load_condensed, write_page
from hf_condense.api import condense_dataset
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.condensed_sets import make_set
from tests.support.picture_sets import encoded, noise, picture_set, read

TOY = toy_dataset(names=("cat", "dog", "eel"))
PNG, JPEG = encoded(noise(9, 7, 3)), encoded(noise(9, 7, 3), "JPEG")


def refused(
    kind: type[Exception], *parts: str, ds: Any = TOY, method: Any = "dm", ipc: Any = 1, **options: Any
) -> None:
    """Condense, and check that the error is of a kind and that its message has every part."""
    with pytest.raises(kind) as error:
        condense_dataset(ds, method, ipc, **{"progress": False, **options})
    for part in parts:
        assert part in str(error.value)


def two_of_each_column() -> Dataset:
    """Return a dataset of two image columns and two label columns."""
    columns = {"a": TOY["image"][:], "b": TOY["image"][:], "x": TOY["label"][:], "y": TOY["label"][:]}
    label = TOY.features["label"]
    return Dataset.from_dict(columns, features=Features({"a": Image(), "b": Image(), "x": label, "y": label}))


# Datasets and columns

DATASETS: dict[str, tuple[type[Exception], Callable[[], Any], tuple[str, ...]]] = {
    "none": (TypeError, lambda: None, ("datasets.Dataset", "NoneType")),
    "name": (TypeError, lambda: "cifar10", ("datasets.Dataset", "str", "load_dataset('cifar10')")),
    "list": (TypeError, lambda: [1], ("datasets.Dataset", "list")),
    "torch": (TypeError, lambda: torch.utils.data.TensorDataset(torch.ones(2)), ("datasets.Dataset", "TensorDataset")),
    "dict": (TypeError, lambda: {"train": TOY}, ("one split", "dict", "'train'", "pick one")),
    "stream": (TypeError, TOY.to_iterable_dataset, ("IterableDataset", "without streaming=True", "take(10_000)")),
    "generator": (TypeError, lambda: IterableDataset.from_generator(lambda: iter([{"a": 1}])), ("ds.cast(features)",)),
    "streams": (TypeError, lambda: IterableDatasetDict(train=TOY.to_iterable_dataset()), ("IterableDatasetDict",)),
    "split": (ValueError, lambda: DatasetDict(test=TOY, extra=TOY), ("split='train'", "'test', 'extra'")),
    "no rows": (ValueError, lambda: TOY.select([]), ("no rows",)),
    "no columns": (ValueError, lambda: Dataset.from_dict({}), ("no rows",)),
    "no images": (ValueError, lambda: TOY.remove_columns("image"), ("an Image", "'label' (ClassLabel), 'note'")),
    "no labels": (ValueError, lambda: TOY.remove_columns("label"), ("a ClassLabel", "label_column=", "'note'")),
    "no label at all": (ValueError, lambda: TOY.select_columns("image"), ("a ClassLabel", "'image' (Image)")),
    "images": (ValueError, two_of_each_column, ("several", "an Image: 'a', 'b'", "image_column=")),
    "labels": (ValueError, lambda: two_of_each_column().remove_columns("b"), ("several", "'x', 'y'", "label_column=")),
}


def test_split_of_a_single_split_is_refused() -> None:
    refused(ValueError, "split='test'", "a single split", "leave split out", ds=TOY, method="random", split="test")


@pytest.mark.parametrize("case", DATASETS)
def test_unusable_dataset_is_refused_with_what_it_lacks(case: str) -> None:
    kind, make, parts = DATASETS[case]
    refused(kind, *parts, ds=make(), method="random")


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        (
            ValueError,
            {"image_column": "img"},
            ("image_column='img'", "not a column", "'image' (Image), 'label' (Class"),
        ),
        (ValueError, {"image_column": "note"}, ("is string", "an Image", "ds.cast_column('note', datasets.Image())")),
        (ValueError, {"label_column": "lable"}, ("label_column='lable'", "not a column", "'label' (ClassLabel)")),
        (ValueError, {"label_column": "image"}, ("is Image", "a ClassLabel, text, integers or booleans")),
        (TypeError, {"image_column": 3}, ("image_column should be the name of a column", "3 (int)")),
        (TypeError, {"label_column": ["label"]}, ("label_column should be the name", "['label'] (list)")),
    ],
)
def test_unsuitable_column_is_refused_with_the_columns_there_are(
    kind: type[Exception], options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(kind, *parts, method="random", **options)


@pytest.mark.parametrize(
    ("label", "labels", "parts"),
    [
        (None, [0, None, None], ("2 of 3 rows", "no label in 'label'", "row 1", "ds.filter", "not in (None, -1)")),
        (None, [0, 1, -1], ("1 of 3 rows", "row 2 (-1)", "ds.filter")),
        (Value("string"), [None, "x", "y"], ("1 of 3 rows", "row 0", "is not None")),
        (Value("float32"), [1.0, 2.0, 3.0], ("is float32", "a ClassLabel, text, integers or booleans")),
        (List(Value("int64")), [[1], [2], [1, 2]], ("is List", "a ClassLabel")),
    ],
)
def test_rows_without_a_usable_label_are_counted_and_named(
    label: Any, labels: list[Any], parts: tuple[str, ...]
) -> None:
    refused(ValueError, *parts, ds=picture_set([PNG] * 3, labels, label=label), method="random", label_column="label")


def test_label_without_a_class_name_is_refused() -> None:
    table = picture_set([PNG] * 3, [0, 7, 1], label=Value("int64")).data.table
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    ds = Dataset(datasets.table.InMemoryTable(table), info=datasets.DatasetInfo(features=features))
    refused(ValueError, "row 1", "label 7", "0..1", "cast the column", ds=ds, method="random")


def test_advice_for_null_labels_gives_a_readable_dataset() -> None:
    ds = picture_set([PNG] * 4, [0, None, -1, 1])
    assert read(ds.filter(lambda row: row["label"] not in (None, -1))).counts == {0: 1, 1: 1}


def test_integer_label_of_minus_one_is_a_class_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    ds = picture_set([PNG] * 4, [0, 1, 0, 1]).cast_column("label", Value("int64"))
    assert read(ds, label_column="label").counts == {0: 2, 1: 2}
    assert caplog.text == ""
    ds = ds.remove_columns("label").add_column("label", [0, -1, 0, 1])
    assert read(ds, label_column="label").class_names == ("-1", "0", "1")
    assert "1 of 4 rows have the label -1 in 'label', which is taken for a class of its own" in caplog.text


# Pictures


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        (b"hello", ("row 1", "cannot be decoded", "unknown format")),
        (b"", ("row 1", "cannot be decoded", "unknown format")),
        (PNG[:20], ("row 1", "cannot be decoded")),
        (PNG[:-60], ("row 1", "cannot be decoded", "truncated")),
        (JPEG[:-60], ("row 1", "cannot be decoded", "truncated", "repair or remove")),
        ({"path": "pets/cat.png", "bytes": b"hello"}, ("row 1 has a picture ('pets/cat.png') that cannot be decoded",)),
        (None, ("row 1", "no picture in 'image'", "filter")),
        ({"path": "/nowhere/cat.png", "bytes": None}, ("row 1", "cannot be read", "/nowhere/cat.png")),
        ({"path": "https://nowhere/cat.png", "bytes": None}, ("row 1", "cannot be read", "https://nowhere/cat.png")),
        ({"path": "a\0b", "bytes": None}, ("row 1", "cannot be read", "null")),
        (encoded(noise(12, 7, 3)), ("differ in size", "9x7 (1 rows), 12x7 (1 rows)", "image_size=")),
    ],
)
def test_unreadable_picture_is_refused_with_its_row(cell: Any, parts: tuple[str, ...]) -> None:
    refused(ValueError, *parts, ds=picture_set([PNG, cell]), method="random", cache=False)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_mode_without_a_fixed_range_is_refused(mode: str) -> None:
    ds = picture_set([encoded(noise(4, 4)), encoded(Pictures.fromarray(noise(4, 4)).convert(mode), "TIFF")])
    parts = ("row 1", f"mode '{mode}'", "convert to 'L' or 'RGB'", "datasets.Image(mode='L')")
    refused(ValueError, *parts, ds=ds, method="random")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_feature_without_a_fixed_range_is_refused_with_one_that_has_it(mode: str) -> None:
    ds = TOY.cast_column("image", Image(mode=mode))
    refused(
        ValueError, f"'image' is an Image(mode='{mode}')", "ds.cast_column('image', datasets.Image(mode='L'))", ds=ds
    )
    assert read(ds.cast_column("image", Image(mode="L"))).image_shape == (1, 8, 8)


def test_picture_that_is_too_large_is_refused_unless_it_is_resized() -> None:
    ds = picture_set([encoded(noise(1, 4097))])
    refused(ValueError, "1x4097", "at most 4096", "image_size=", ds=ds, method="random")
    assert read(ds, image_size=2).image_shape == (1, 2, 2)


def test_missing_file_is_refused_with_its_row(tmp_path: Path) -> None:
    files = [tmp_path / f"{row}.png" for row in range(3)]
    for file in files:
        file.write_bytes(PNG)
    ds = picture_set([{"path": str(file), "bytes": None} for file in files])
    files[2].unlink()
    refused(ValueError, "row 2", str(files[2]), ds=ds, method="random")


PIXELS = "set a higher PIL.Image.MAX_IMAGE_PIXELS before this call"
TEXT_CHUNK = "set a higher PIL.PngImagePlugin.MAX_TEXT_CHUNK before this call"
TEXT_MEMORY = "set a higher PIL.PngImagePlugin.MAX_TEXT_MEMORY before this call"


@pytest.mark.parametrize("cell", [PNG, JPEG, encoded(noise(9, 7, 3), "TIFF")])
@pytest.mark.parametrize("limit", [5, 40])  # Pillow refuses more than twice the limit, and warns of more than the limit
def test_picture_of_too_many_pixels_is_refused_with_the_limit_to_set(
    cell: bytes, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = picture_set([cell])
    monkeypatch.setattr(Pictures, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"row 0 .*63 pixels") as error:
        read(ds)
    assert "need not be damaged" in str(error.value)
    assert PIXELS in str(error.value)
    assert "repair" not in str(error.value)
    monkeypatch.setattr(Pictures, "MAX_IMAGE_PIXELS", None)
    assert read(ds).image_shape == (3, 9, 7)


@pytest.mark.parametrize(("name", "advice"), [("MAX_TEXT_CHUNK", TEXT_CHUNK), ("MAX_TEXT_MEMORY", TEXT_MEMORY)])
def test_picture_of_too_much_text_is_refused_with_the_limit_to_set(
    name: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "long " * 1000, zip=True)
    ds = picture_set([PNG, encoded(noise(9, 7, 3), pnginfo=text)])
    monkeypatch.setattr(PngImagePlugin, name, 1000)
    with pytest.raises(ValueError, match="row 1") as error:
        read(ds)
    assert advice in str(error.value)
    monkeypatch.setattr(PngImagePlugin, name, 100_000)
    assert len(read(ds)) == 2


def test_too_little_memory_is_not_blamed_on_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", full)
    with pytest.raises(MemoryError):
        read(picture_set([PNG]))


KINDS = {kind: encoded(noise(9, 7, 3), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")}


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damaged_picture_is_decoded_or_refused_with_its_row(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(KINDS[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        assert read(picture_set([PNG, bytes(damaged)]), image_size=4).image_shape == (3, 4, 4)
    except ValueError as error:
        assert "row 1 has a picture" in str(error)  # noqa: PT017 - decoding may also succeed


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        (
            List(Image()),
            "if 'shot' is the image column: it has a list of pictures in each row, so keep one of them: ds.",
        ),
        ({"bytes": Value("binary"), "path": Value("string")}, "if 'shot' is the image column: cast it first: ds.cast_"),
    ],
)
def test_column_that_may_be_made_one_of_images_is_named(column: Any, hint: str) -> None:
    picture = {"bytes": PNG, "path": None}
    rows = {"shot": [[picture]] * 2 if isinstance(column, List) else [picture] * 2, "label": [0, 1]}
    features = {"words": List(Value("string")), "shot": column, "label": ClassLabel(names=["cat", "dog"])}
    ds = Dataset.from_dict({"words": [["a"]] * 2, **rows}, features=Features(features))
    refused(ValueError, "no column holds an Image; columns: 'words' (List), 'shot'", hint, ds=ds)


# Methods and options


def makes_a_number(**_: Any) -> Any:
    return 5


def makes_no_head(**_: Any) -> nn.Module:
    return nn.Flatten()


def makes_seven_logits(**_: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 7))


OPTIONS: list[tuple[type[Exception], dict[str, Any], tuple[str, ...]]] = [
    (
        ValueError,
        {"method": "dmm"},
        ("'dmm'", "did you mean 'dm'?", "auto, dance, datm, dc, dm, dsa, esp, herding, idc, kcenter"),
    ),
    (ValueError, {"method": "Random"}, ("'Random'", "did you mean 'random'?")),
    (TypeError, {"method": 3}, ("method should be a name", "3", "register_method")),
    (TypeError, {"lr_image": 1.0}, ("unknown option 'lr_image'", "did you mean 'lr_img'?", "init, augment")),
    (TypeError, {"lr": 1.0}, ("unknown option 'lr'", "did you mean 'lr_img'?")),
    (TypeError, {"image_colum": "image"}, ("unknown option 'image_colum'", "did you mean 'image_column'?")),
    (TypeError, {"method": "auto", "crops": "5"}, ("crops should be an integer", "'5' (str)")),
    (TypeError, {"method": "random", "lr_img": 1.0}, ("unknown option 'lr_img'", "no options")),
    (ValueError, {"lr_img": -1}, ("lr_img should be larger than 0", "-1")),
    (ValueError, {"lr_img": float("nan")}, ("lr_img should be finite", "nan")),
    (TypeError, {"lr_img": "1"}, ("lr_img should be a number", "'1' (str)")),
    (ValueError, {"batch_real": 0}, ("batch_real should be at least 1", "0")),
    (ValueError, {"preset": "papr"}, ("dm has no preset 'papr'", "did you mean 'paper'?", "'paper', 'quick'")),
    (ValueError, {"method": "random", "preset": "paper"}, ("random has no preset 'paper'", "presets: none")),
    (TypeError, {"preset": 1}, ("preset should be a name", "1 (int)")),
    (
        ValueError,
        {"network": "convnt"},
        ("'convnt'", "did you mean 'convnet'?", "alexnet, convnet, lenet, mlp, resnet18"),
    ),
    (ValueError, {"network": "convnet-w0"}, ("width", "at least 1", "0")),
    (ValueError, {"network": "convnet-q3"}, ("'q3'", "'convnet-q3'", "w<filters>, d<blocks>")),
    (ValueError, {"network": "convnet-d9"}, ("8x8", "smaller depth")),
    (TypeError, {"network": 5}, ("network should be a name or a callable", "int")),
    (TypeError, {"network": makes_a_number}, ("'makes_a_number'", "torch.nn.Module", "int")),
    (ValueError, {"network": makes_no_head}, ("Flatten", "no nn.Linear", "embed(x)")),
    (ValueError, {"network": makes_seven_logits}, ("'makes_seven_logits'", "(2, 3)", "(2, 7)")),
    (ValueError, {"init": "reel"}, ("init should be one of 'real', 'noise'", "'reel'", "did you mean 'real'?")),
    (TypeError, {"soft_labels": True}, ("soft_labels should be one of 'none', 'teacher'", "True (bool)")),
    (TypeError, {"init": 5}, ("init should be a string", "5 (int)")),
    (ValueError, {"augment": "colour_crop"}, ("'colour'", "did you mean 'color'?", "crop, cutout, flip")),
    (ValueError, {"augment": ""}, ("unknown augmentation ''", "color, crop, cutout", "or 'none' alone")),
    (ValueError, {"augment": "flip_flip"}, ("each once", "('flip', 'flip')")),
    (TypeError, {"augment": 5}, ("augment should be a string", "5 (int)")),
    (ValueError, {"steps": 0}, ("steps should be at least 1", "0")),
    (TypeError, {"steps": 2.5}, ("steps should be an integer", "2.5 (float)")),
    (TypeError, {"steps": True}, ("steps should be an integer", "True (bool)")),
    (ValueError, {"seed": -1}, ("seed should be at least 0", "-1")),
    (ValueError, {"seed": 2**64}, ("seed should be in 0..2**64 - 1", "18446744073709551616")),
    (TypeError, {"seed": 1.5}, ("seed should be an integer", "1.5 (float)")),
    (ValueError, {"checkpoint_every": 0}, ("checkpoint_every should be at least 1", "0")),
    (TypeError, {"checkpoint_every": "9"}, ("checkpoint_every should be an integer", "'9' (str)")),
    (ValueError, {"factor": 0}, ("factor should be one of 1, 2, 3, 4 for images of", "0")),
    (ValueError, {"factor": 5}, ("factor should be one of 1, 2, 3, 4 for images of", "5")),
    (TypeError, {"factor": 1.5}, ("factor should be an integer", "1.5 (float)")),
    (TypeError, {"factor": True}, ("factor should be an integer", "True (bool)")),
    (
        ValueError,
        {"pixel_range": "vald"},
        ("pixel_range should be one of 'valid', 'free'", "'vald'", "did you mean 'valid'?"),
    ),
    (ValueError, {"method": "random", "steps": 5}, ("steps=5", "'random', a coreset", "leave it out")),
    (ValueError, {"method": "random", "factor": 2}, ("factor=2", "a coreset", "leave it out")),
    (ValueError, {"method": "random", "pixel_range": "free"}, ("pixel_range='free'", "a coreset", "leave it out")),
    (ValueError, {"image_size": 0}, ("image_size should be a side or (height, width)", "1..4096", "0")),
    (ValueError, {"image_size": (8, 8, 3)}, ("(height, width)", "(8, 8, 3)")),
    (TypeError, {"image_size": 3.5}, ("integers in 1..4096", "3.5")),
    (TypeError, {"image_size": "32"}, ("integers in 1..4096", "'32'")),
    (TypeError, {"image_size": True}, ("integers in 1..4096", "True")),
    (ValueError, {"ipc": 0}, ("ipc should be at least 1", "0")),
    (ValueError, {"ipc": 13, "method": "random"}, ("ipc=13", "12 rows", "'cat'")),
    (ValueError, {"ipc": 10**9, "method": "dm"}, ("ipc 1000000000", "A smaller ipc")),
    (TypeError, {"ipc": True}, ("ipc should be an integer", "True (bool)")),
    (TypeError, {"ipc": 1.5}, ("ipc should be an integer", "1.5 (float)")),
    (TypeError, {"ipc": [1, 1, 1]}, ("ipc should be an integer, or a dict", "[1, 1, 1] (list)")),
    (ValueError, {"ipc": {"cat": 1}}, ("leaves out 'dog', 'eel'", "every class that has rows")),
    (ValueError, {"ipc": {"Cat": 1, "dog": 1, "eel": 1}}, ("'Cat'", "did you mean 'cat'?", "cat, dog, eel")),
    (ValueError, {"ipc": {"cat": 1, 0: 1, "dog": 1, "eel": 1}}, ("'cat' twice", "by name and by value")),
    (ValueError, {"ipc": {"cat": 1, "dog": 0, "eel": 1}}, ("at least 1", "0", "'dog'")),
    (ValueError, {"ipc": {"cat": 1, "dog": 1, "eel": 13}, "method": "random"}, ("ipc=13", "12 rows", "'eel'")),
    (TypeError, {"ipc": {"cat": 1, "dog": "1", "eel": 1}}, ("an integer", "'1' (str)", "'dog'")),
]


def spelled(options: dict[str, Any]) -> str:
    """Return the name of a case, without addresses in memory."""
    return ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in options.items())


@pytest.mark.parametrize(("kind", "options", "parts"), OPTIONS, ids=[spelled(options) for _, options, _ in OPTIONS])
def test_bad_option_is_refused_with_what_would_be_right(
    kind: type[Exception], options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    quick = {"steps": 1, "batch_real": 2, "network": "convnet-w8", "compile": False}
    refused(kind, *parts, **{**(quick if "method" not in options else {}), **options})


def test_ipc_for_an_absent_class_is_refused() -> None:
    ds = TOY.filter(lambda label: label != 1, input_columns="label")
    ipc = {"cat": 1, "dog": 1, "eel": 1}
    refused(ValueError, "ipc names class 'dog'", "no rows", "leave it out", ds=ds, method="random", ipc=ipc)


@pytest.mark.parametrize("channels", [2, "3", 0])
def test_channels_other_than_1_or_3_are_refused(channels: Any) -> None:
    with pytest.raises(ValueError, match=rf"channels should be 1 or 3; got {re.escape(repr(channels))}"):
        load_source(TOY, channels=channels)


@pytest.mark.parametrize(
    ("kind", "options", "part"),
    [
        (TypeError, {"ipc": "10"}, "ipc should be an integer"),
        (TypeError, {"cache": "no"}, "cache should be True or False; got 'no' (str)"),
        (TypeError, {"progress": "no"}, "progress should be True or False; got 'no' (str)"),
        (TypeError, {"accelerator": "cpu"}, "accelerator should be an accelerate.Accelerator"),
        (TypeError, {"checkpoint_dir": 3}, "checkpoint_dir should be a path, as text or a Path; got 3 (int)"),
        (ValueError, {"checkpoint_dir": ""}, "checkpoint_dir should be a path; got empty text, where '.'"),
        (TypeError, {"logging_dir": None}, "logging_dir should be a path, as text or a Path; got None (NoneType)"),
        (TypeError, {"callbacks": [lambda run: None]}, "callbacks are called as callback(run, steps_done, loss); "),
        (ValueError, {"ipc": {"cat": 1, "dog": 0}}, "got 0 for class 'dog'"),
        (ValueError, {"network": "convnt"}, "convnt"),
        (ValueError, {"storage": "dtc"}, "dtc"),
        (ValueError, {"pixel_range": "vaild"}, "pixel_range should be one of"),
        (ValueError, {"store_dtype": "float8"}, "store_dtype should be one of"),
        (ValueError, {"steps": 0}, "steps should be at least 1"),
        (ValueError, {"momentum": 1.0}, "momentum should be smaller than 1; got 1.0"),
        (ValueError, {"init": "reel"}, "init should be one of 'real', 'noise'"),
        (ValueError, {"method": "datm", "init": "corect"}, "init should be one of 'correct', 'real', 'noise'"),
        (ValueError, {"augment": "flipp"}, "augment: unknown augmentation 'flipp'"),
        (ValueError, {"method": "mtt", "momentum_expert": 1.0}, "momentum_expert should be smaller than 1; got 1.0"),
        (ValueError, {"method": "mtt", "augment_expert": "flipp"}, "augment_expert: unknown augmentation 'flipp'"),
        (ValueError, {"method": "mtt", "average": 1.0}, "average should be smaller than 1; got 1.0"),
        (ValueError, {"method": "datm", "momentum_label": 1.0}, "momentum_label should be smaller than 1; got 1.0"),
        (ValueError, {"method": "m3d", "cutmix_pool": 1.5}, "cutmix_pool should be at most 1; got 1.5"),
        (ValueError, {"method": "m3d", "augment_pool": "flipp"}, "augment_pool: unknown augmentation 'flipp'"),
        (ValueError, {"method": "idc", "cutmix": 1.5}, "cutmix should be at most 1; got 1.5"),
        (ValueError, {"method": "rded", "crop_area": 1.5}, "crop_area should be at most 1; got 1.5"),
        (ValueError, {"method": "rded", "views": 1001}, "views should be at most 1000; got 1001"),
    ],
)
def test_what_needs_no_data_is_refused_before_the_dataset_is_read(
    kind: type[Exception], options: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_condense.api.load_source", lambda *args, **options: pytest.fail("the dataset was read"))
    refused(kind, part, **options)


def test_callback_that_wraps_another_function_is_judged_by_its_own_arguments() -> None:
    steps = []

    @functools.wraps(steps.append)
    def call(run: Any, done: int, loss: float) -> None:
        steps.append(done)

    quick_method("dm", callbacks=[call], steps=1).condense(TOY)
    assert steps == [1]


def test_booleans_of_numpy_are_accepted() -> None:
    assert len(condense_dataset(TOY, "random", 1, cache=np.False_, progress=np.False_)) == 3


@pytest.mark.parametrize("method", ["random", "rded"])
def test_what_only_steps_can_use_is_named_in_a_warning(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick_method(method, checkpoint_dir=tmp_path, callbacks=[print], compile=True).condense(TOY)
    assert f"checkpoint_dir, callbacks, compile have no effect: '{method}' takes no steps" in caplog.text


# Finished sets: their evaluation, folders and views

SWITCHES: list[tuple[Callable[..., Any], tuple[str, ...]]] = [
    (lambda small, **given: evaluate(small, TOY, **given), ("relabel", "eight_bit", "cache", "progress")),
    (lambda small, **given: small.save_condensed("nowhere", **given), ("overwrite",)),
    (
        lambda small, **given: small.push_to_hub("me/sets", **given),
        ("private", "create_pr", "set_default", "replace_card", "overwrite", "page"),
    ),
    (TrainingViews, ("normalise", "soft")),
    (lambda small, **given: load_condensed("me/sets", **given), ("local_files_only", "force_download")),
    (lambda small, **given: list_condensed("me/sets", **given), ("local_files_only",)),
    (lambda small, **given: write_page("me/sets", **given), ("local_files_only", "cache", "progress")),
    (lambda small, **given: TrainingRecipe("mine", 1, **given), ("restart_optimiser",)),
]


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, names in SWITCHES for name in names])
def test_text_in_place_of_true_or_false_is_refused(call: Callable[..., Any], name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} should be True or False; got 'no' \(str\)"):
        call(make_set(), **{name: "no"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda small: load_condensed(None), "path_or_repo should be a path, as text or a Path; got None (NoneType)"),
        (lambda small: list_condensed(None), "path_or_repo should be a path, as text or a Path; got None (NoneType)"),
        (lambda small: write_page(None), "path_or_repo should be a path, as text or a Path; got None (NoneType)"),
        (lambda small: write_page("sn", 3), "file should be a path, as text or a Path; got 3 (int)"),
        (lambda small: load_condensed("me/sets", cache_dir=3), "cache_dir should be a path, as text or a Path; got 3"),
        (lambda small: small.save_condensed(3), "folder should be a path, as text or a Path; got 3 (int)"),
        (lambda small: small.save_condensed("x", 3), "config_name should be text; got 3 (int)"),
        (lambda small: small.preview(per_class="3"), "per_class should be an integer; got '3' (str)"),
        (lambda small: small.preview(1.5), "per_class should be an integer; got 1.5 (float)"),
        (lambda small: small.preview(max_classes=True), "max_classes should be an integer; got True (bool)"),
        (lambda small: TrainingViews(small)[0:2], "row should be one integer; got slice(0, 2, None) (slice)"),
        (
            lambda small: evaluate(small, TOY, baselines=(), accelerator="cpu"),
            "accelerator should be an accelerate.Accelerator",
        ),
        (lambda small: evaluate(small, TOY, augment=3), "an augmentation should be text, such as 'color_crop' or"),
    ],
)
def test_argument_of_the_wrong_type_is_refused_by_its_name(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call(make_set())


def test_labels_that_are_different_for_every_row_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = TOY.select(range(12)).remove_columns("label").add_column("label", list(range(12)))
    quick_method("random").condense(rows, 1)
    assert "each of the 12 classes has one row, so that nothing can be condensed: is 'label' a label" in caplog.text
