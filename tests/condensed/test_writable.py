"""Writer and reader agree: what is saved is loaded equal, and what cannot be saved is refused before any work."""

from __future__ import annotations

import datetime
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value
from datasets.table import InMemoryTable
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from hf_condense import api, condense_dataset, load_condensed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import config_names
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.names import FACTS, PARQUET, TENSORS
from hf_condense.condensed.files.parquet import from_parquet, to_parquet
from hf_condense.condensed.files.untrusted import MAX_JSON_BYTES, parse_json, tensor_file_bytes
from hf_condense.condensed.files.writable import check_writable
from hf_condense.condensed.folder import save
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from tests.support.condensed_sets import assert_same, make_recipe, make_set, make_tensors

MODES = (None, "1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "F", "I", "I;16")
COUNTED = "ClassLabel"
INTEGERS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}


def picture(channels: int, height: int, width: int, row: int) -> dict:
    """Return an encoded picture of noise."""
    pixels = np.random.default_rng(row).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Pictures.fromarray(pixels if channels == 3 else pixels[..., 0]).save(buffer := io.BytesIO(), "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(columns: dict[str, tuple[object, list]]) -> Dataset:
    """Return a dataset of columns, each a feature and values; integers keep their type whatever their size is."""
    features = Features({name: feature for name, (feature, _) in columns.items()})
    schema = features.arrow_schema
    arrays = []
    for name, (_, values) in columns.items():
        kind = schema.field(name).type
        arrays.append(pa.array(values, getattr(kind, "storage_type", kind)))
        if isinstance(kind, pa.ExtensionType):
            arrays[-1] = pa.ExtensionArray.from_storage(kind, arrays[-1])
    return Dataset(InMemoryTable(pa.table(arrays, schema=schema)))


def source_of(recipe: Recipe, image: Image, label: str, extra: dict[str, tuple[object, list]]) -> Dataset:
    """Return two rows of every class of a recipe, with more columns."""
    values = [value for value in recipe.label_values for _ in range(2)]
    pictures = [picture(*recipe.image_shape, row) for row in range(len(values))]
    kind = ClassLabel(names=recipe.class_names) if label == COUNTED else Value(label)
    columns = {recipe.image_column: (image, pictures), recipe.label_column: (kind, values)}
    return dataset({**columns, **{name: (f, (v * len(values))[: len(values)]) for name, (f, v) in extra.items()}})


def made_set(recipe: Recipe, source: Dataset, *, soft_labels: bool, student: bool) -> CondensedDataset:
    """Return a set of the recipe as a method would make it from its source."""
    if recipe.kind != "coreset":
        tensors = make_tensors(recipe, soft=soft_labels, student=student)
        return CondensedDataset.from_parts(decoded_rows(tensors, recipe, source.features), tensors, recipe)
    rows = [2 * c + i for c, name in enumerate(recipe.class_names) for i in range(recipe.budget(name))]
    labels = torch.tensor([row // 2 for row in rows])
    images = torch.zeros(len(rows), *recipe.image_shape)
    selected = source.select([rows[i] for i in round_robin(labels.tolist())])
    return CondensedDataset.from_parts(
        selected, CondensedTensors.of_images(images, labels), replace(recipe, rows=rows), source
    )


names_of_classes = st.lists(
    st.text(max_size=8)
    | st.sampled_from(
        ["|", "---", "\n# x", "{" * 50, "[]" * 50, "null", "1", "<i>", "\0", "é" * 300, "名" * 2000, "\u2028"]
    )
    | st.integers(0, 500).map(lambda i: f"class {i}, also called so " * (i % 40 + 1)),
    min_size=1,
    max_size=6,
    unique=True,
) | st.integers(50, 300).map(lambda n: [f"class {i}, of many" for i in range(n)])


@st.composite
def labels_of(draw, names: list[str]) -> tuple[str, list]:
    """Draw the type of a label column and its values, one for each class."""
    count = len(names)
    kinds = [COUNTED, "string", "large_string", *(name for name, bits in INTEGERS.items() if count < 2 ** (bits - 1))]
    kind = draw(st.sampled_from([*kinds, *(["bool"] if count <= 2 else [])]))
    if kind == COUNTED:
        return kind, list(range(count))
    if kind == "bool":
        return kind, [False, True][:count]
    if kind not in INTEGERS:
        return kind, names
    low, high = (
        (0, 2 ** INTEGERS[kind] - 1)
        if kind[0] == "u"
        else (-(2 ** (INTEGERS[kind] - 1)), 2 ** (INTEGERS[kind] - 1) - 1)
    )
    return kind, sorted({high - i if draw(st.booleans()) else low + i for i in range(count)})


FILE = {"bytes": Value("binary"), "path": Value("string")}
EXTRA = {
    "number": (Value("float32"), [1.5, None]),
    "moment": (Value("timestamp[s]"), [datetime.datetime(2020, 1, 1), None]),
    "moments": (List(Value("time32[s]")), [[datetime.time(1, 2, 3)], []]),
    "day": (Value("date64"), [datetime.date(2020, 1, 1)]),
    "text": (Value("large_string"), ["a|b\n", ""]),
    "nothing": (Value("null"), [None]),
    "wave": (Array2D((2, 2), "float32"), [[[1.0, 2.0], [3.0, 4.0]]]),
    "ragged": (List(List(Value("int8"))), [[[1], []], [], None]),
    "tags": (List(Value("float64"), length=2), [[1.0, 2.0]]),
    "struct": ({"a": Value("string"), "b": {"c": List(Value("bool"))}}, [{"a": "x", "b": {"c": [True]}}]),
    "second image": (Image(), [picture(3, 2, 2, 0), None]),
    "held": (FILE, [{"bytes": b"x", "path": "/etc/passwd"}]),
    "soft_label": (Value("float32"), [0.5]),
    "a.b": (Value("int8"), [1]),
    "": (Value("int8"), [1]),
    "named": (FILE, [{"bytes": None, "path": "/etc/passwd"}]),
    "empty": ({}, [{}]),
}  # fmt: skip


@st.composite
def plans(draw) -> tuple[Recipe, Dataset, bool, bool]:
    """Draw a recipe, its source, and whether the set has soft labels and a learned rate."""
    coreset = draw(st.integers(0, 2)) == 0
    names = draw(names_of_classes)
    label, values = draw(labels_of(names))
    names = names[: len(values)]
    factor = 1 if coreset else draw(st.sampled_from([1, 1, 2]))
    shape = draw(st.sampled_from([[1, 2, 2], [3, 2, 2], [3, 4, 7], [1, 2, 300]] if len(names) < 50 else [[1, 2, 2]]))
    soft_labels = not coreset and draw(st.booleans())
    recipe = make_recipe(
        class_names=names,
        label_values=values,
        image_shape=shape,
        factor=factor,
        ipc=draw(st.sampled_from([1, 2])),
        kind="coreset" if coreset else draw(st.sampled_from(["synthetic", "composed"])),
        temperature=4.0 if soft_labels else None,
        label_column=draw(st.sampled_from(["label", "label", "soft_label", "ein | Etikett"])),
        image_column=draw(st.sampled_from(["image", "image", "bild\n"])),
        options=draw(st.sampled_from([{"lr_img": 1.0}, {"lr_img": 1.0}, {"lr_img": float("inf")}])),
    )
    extra = draw(st.lists(st.sampled_from(sorted(EXTRA)), max_size=3, unique=True))
    source = source_of(
        recipe,
        Image(mode=draw(st.sampled_from(MODES)), decode=draw(st.booleans())),
        label,
        {name: EXTRA[name] for name in extra if name not in (recipe.label_column, recipe.image_column)},
    )
    return recipe, source, soft_labels, draw(st.booleans())


@given(plans())
@settings(max_examples=120, deadline=None)
def test_set_is_refused_before_it_is_made_or_loaded_as_it_was_saved(plan):
    recipe, source, soft_labels, student = plan
    with tempfile.TemporaryDirectory() as folder:
        try:
            check_writable(recipe, source)
        except ValueError:
            with pytest.raises((ValueError, pa.ArrowException)):
                made_set(recipe, source, soft_labels=soft_labels, student=student).save_condensed(folder)
            assert list(Path(folder).iterdir()) == []
        else:
            small = made_set(recipe, source, soft_labels=soft_labels, student=student)
            small.save_condensed(folder)
            assert_same(load_condensed(folder), small)


def test_both_outcomes_of_the_property_occur():
    image = Image(mode="F")
    good = make_recipe(label_column="soft_label")
    check_writable(good, source_of(good, image, COUNTED, {}))
    bad = replace(good, temperature=4.0)
    with pytest.raises(
        ValueError, match="soft labels need a column 'soft_label'; the source uses this name: rename it"
    ):
        check_writable(bad, source_of(bad, image, COUNTED, {}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_show_the_rounded_tensors_whatever_the_mode_of_the_source(tmp_path, mode, channels):
    features = Features({"image": Image(mode=mode), "label": ClassLabel(names=["cat", "dog"])})
    small = make_set(features=features, image_shape=[channels, 8, 8])
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert_same(loaded, small)
    plain = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    expected = (small.synthetic.decoded()[0].clamp(0, 1) * 255).round().byte()
    for rows in (loaded, plain):
        seen = np.asarray(rows[0]["image"].convert("L" if channels == 1 else "RGB")).reshape(8, 8, channels)
        assert np.array_equal(seen.transpose(2, 0, 1), expected[0].numpy())


@pytest.mark.parametrize("mode", ["F", "I;16", "CMYK", "LAB", "P", "1"])
def test_sets_that_earlier_versions_saved_with_another_mode_are_loaded(tmp_path, mode):
    small = make_set()
    facts = small.save_condensed(tmp_path) / FACTS
    facts.write_text(facts.read_text().replace('{"_type": "Image"}', f'{{"mode": "{mode}", "_type": "Image"}}'))
    assert f'"mode": "{mode}"' in facts.read_text()
    loaded = load_condensed(tmp_path)
    assert loaded.features["image"] == Image(mode="RGB")
    assert torch.equal(loaded.synthetic.images, small.synthetic.images)


@pytest.mark.parametrize("kind", ["synthetic", "coreset"])
def test_unsigned_labels_beyond_signed_ones_come_back(tmp_path, kind):
    recipe = make_recipe(kind=kind, label_values=[1, 2**64 - 1])
    source = source_of(recipe, Image(), "uint64", {})
    check_writable(recipe, source)
    small = made_set(recipe, source, soft_labels=False, student=False)
    small.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), small)
    assert sorted(load_condensed(tmp_path)["label"]) == [1, 1, 2**64 - 1, 2**64 - 1]


@pytest.mark.parametrize("kind", ["synthetic", "coreset"])
def test_ten_thousand_classes_with_long_names_come_back(tmp_path, kind):
    names = [
        f"n{i:05d} a class, also called by a longer name that goes on and on until it has ninety letters"
        for i in range(10_000)
    ]
    recipe = make_recipe(kind=kind, class_names=names, ipc=1, image_shape=[1, 1, 1])
    source = source_of(recipe, Image(), COUNTED, {})
    check_writable(recipe, source)
    small = made_set(recipe, source, soft_labels=False, student=False)
    for name in ("dm_ipc1", "dm_again", "dm_more"):  # the third card has to read the second one
        save(small.parts, tmp_path, name=name)
    assert_same(load_condensed(tmp_path), small)
    assert config_names((tmp_path / "README.md").read_text()) == ["dm_ipc1", "dm_again", "dm_more"]
    plain = datasets.load_dataset(str(tmp_path), "dm_ipc1", split="train", cache_dir=str(tmp_path / "cache"))
    assert plain.features == small.features


def test_coreset_of_very_many_rows_comes_back(tmp_path):
    rows = 150_000
    one = picture(1, 1, 1, 0)
    labels = torch.arange(2).repeat_interleave(rows // 2)
    source = dataset(
        {"image": (Image(), [one] * rows), "label": (ClassLabel(names=["cat", "dog"]), [0, 1] * (rows // 2))}
    )
    recipe = make_recipe(kind="coreset", ipc=rows // 2, image_shape=[1, 1, 1])
    check_writable(recipe, source)
    tensors = CondensedTensors.of_images(torch.zeros(rows, 1, 1, 1), labels)
    small = CondensedDataset.from_parts(source, tensors, replace(recipe, rows=list(range(900_000, 900_000 + rows))))
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert loaded.recipe == small.recipe
    assert loaded.data.table == small.data.table


def test_coreset_of_many_columns_and_rows_comes_back():
    table = pa.table({f"column {i}": pa.array(range(10_000)) for i in range(1000)})
    assert from_parquet(to_parquet(table), 10_000, "x") == table


def refused_before_the_first_step(monkeypatch, source: Dataset, match: str, method: str = "dm", **options) -> None:
    """Check that a call is refused, and that neither a step nor a selection begins."""
    begun = []
    for name in ("optimise", "select_coreset"):
        monkeypatch.setattr(api, name, lambda *args, name=name, **kwargs: begun.append(name))
    with pytest.raises(ValueError, match=match):
        condense_dataset(source, method, 1, network="convnet-w4", progress=False, cache=False, **options)
    assert begun == []


def labelled(names: list[str] | None = None, column: str = "label", **extra: tuple[object, list]) -> Dataset:
    """Return two pictures of each class, with more columns."""
    names = names or ["cat", "dog"]
    return source_of(
        make_recipe(class_names=names, label_column=column, image_shape=[1, 8, 8]), Image(), COUNTED, extra
    )


@pytest.mark.parametrize("method", ["dm", "random"])
@pytest.mark.parametrize("names", [("cat", "dog"), "ab", [0, 1], [False, True]])
def test_features_that_are_spelt_in_another_way_come_back(method, names, tmp_path):
    features = Features({"image": Image(id="picture"), "label": ClassLabel(names=names, id="kind")})
    rows = [picture(1, 8, 8, row) for row in range(4)]
    source = Dataset.from_dict({"image": rows, "label": [0, 1, 0, 1]}, features=features)
    steps = {"steps": 1} if method == "dm" else {}
    small = condense_dataset(source, method, 1, network="convnet-w4", progress=False, cache=False, **steps)
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert loaded.recipe.class_names == list(map(str, names))
    assert loaded.features == small.features
    assert source.features == features


def test_label_column_called_soft_label_is_refused_before_the_first_step(monkeypatch):
    source = labelled(column="soft_label")
    refused_before_the_first_step(
        monkeypatch, source, "soft labels need a column 'soft_label'", soft_labels="teacher", steps=1
    )


def test_class_names_beyond_what_is_read_are_refused_before_the_first_step(monkeypatch):
    for names, match in (
        (["x" * MAX_JSON_BYTES, "dog"], r"the recipe would have 8,\d+,\d+ bytes; readers accept 8,388,608: short"),
        (["x" * (MAX_JSON_BYTES // 2), "dog"], r"condense_config.json would have 8,\d+,\d+ bytes; readers accept 8"),
        (["[" * 140_000, "dog"], r"would have 140,\d+ objects and lists; readers accept 131,072"),
        (["," * 1_100_000, "dog"], r"would have 1,1\d+,\d+ values; readers accept 1,048,576"),
        (["\ud800", "dog"], "surrogates not allowed|Unicode"),
    ):
        recipe = make_recipe(class_names=names)
        source = labelled()
        with pytest.raises(ValueError, match=match):
            check_writable(recipe, source)
    refused_before_the_first_step(
        monkeypatch, labelled(["x" * MAX_JSON_BYTES, "dog"]), "readers accept 8,388,608", steps=1
    )


def test_infinite_option_is_refused_before_the_first_step(monkeypatch):
    refused_before_the_first_step(
        monkeypatch, labelled(), "lr_img should be finite; got inf", lr_img=float("inf"), steps=1
    )


MAX_FILE = "hf_condense.condensed.files.untrusted.MAX_FILE_BYTES"


def test_tensors_beyond_what_is_read_are_refused_before_the_first_step(monkeypatch):
    monkeypatch.setattr(MAX_FILE, 4 * 2 * 8 * 8 + 2 * 8 + 4095)  # two images and labels, and nearly the whole header
    message = r"condensed.safetensors would have 4,624 bytes; readers accept 4,623"
    for method in ("dm", "random"):
        refused_before_the_first_step(monkeypatch, labelled(), message, method)


def test_classes_without_rows_take_no_bytes(monkeypatch):
    monkeypatch.setattr(MAX_FILE, 4 * 2 * 8 * 8 + 2 * 8 + 4096)  # two images and labels, and the header
    names = ClassLabel(names=["cat", "dog", *(f"absent {i}" for i in range(100))])
    source = labelled().cast_column("label", names)
    for method, options in (("dm", {"steps": 1}), ("random", {})):
        small = condense_dataset(source, method, 1, network="convnet-w4", progress=False, cache=False, **options)
        assert len(small) == 2


@pytest.mark.parametrize(
    ("tensors", "changes"),
    [
        ({}, {}),
        ({}, {"factor": 2, "store_dtype": "float16"}),
        ({}, {"store_dtype": "uint8"}),
        ({}, {"ipc": {"cat": 3}}),
        ({"soft": True, "student": True}, {"temperature": 4.0}),
        ({"zca": True}, {"pixel_range": "free", "options": {"zca": True}}),
        ({}, {"temperature": 4.0, "label_views": 3, "label_top": 2}),
    ],
)
def test_bytes_of_the_tensors_are_known_before_a_set_is_made(tensors, changes):
    recipe = make_recipe(**changes)
    made = make_tensors(recipe, **tensors)
    numbers = sum(tensor.nbytes for name, tensor in made.all().items() if name != "student_lr")
    assert tensor_file_bytes(recipe, len(made.labels)) == numbers + 4096


@pytest.mark.parametrize(("kind", "file"), [("synthetic", TENSORS), ("coreset", PARQUET)])
def test_files_beyond_what_is_read_are_not_written(kind, file, tmp_path, monkeypatch):
    recipe = make_recipe(kind=kind, image_shape=[1, 1, 1])  # so small that the rows take more than the tensors
    small = made_set(recipe, source_of(recipe, Image(), COUNTED, {}), soft_labels=False, student=False)
    size = (small.save_condensed(tmp_path / "good") / file).stat().st_size
    monkeypatch.setattr(MAX_FILE, size - 1)
    with pytest.raises(CondensedFormatError, match=f"{file} would have {size:,} bytes; readers accept {size - 1:,}"):
        small.save_condensed(tmp_path / "bad")
    monkeypatch.setattr(MAX_FILE, size)
    small.save_condensed(tmp_path / "other")


MISSING = {"bytes": None, "path": "/missing/x.png"}


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ((Value("int8"), [1]), None),
        (EXTRA["named"], "column 'x' names local files instead of holding their bytes; remove or cast the column"),
        ((FILE, [*EXTRA["held"][1], *EXTRA["named"][1]]), "column 'x' names local files instead of holding"),
        (EXTRA["empty"], "struct type 'x' with no child field"),
        ((Image(), [None, MISSING]), "column 'x' names the file '/missing/x.png', which is missing"),
        ((Image(), [MISSING]), "/missing/x.png"),
    ],
    ids=["integers", "paths", "a path in a later row", "empty structs", "missing file", "missing first file"],
)  # fmt: skip
def test_columns_that_a_coreset_cannot_keep_are_refused_before_it_is_selected(monkeypatch, extra, match):
    source = labelled(x=extra)
    if match is None:
        assert len(condense_dataset(source, "random", 1, image_column="image", progress=False, cache=False)) == 2
    else:
        refused_before_the_first_step(monkeypatch, source, match, "random", image_column="image")


def test_lists_of_image_files_are_kept_by_a_coreset(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1, 2, 2, 0)["bytes"])
    source = labelled(x=(List(Image()), [[{"bytes": None, "path": str(tmp_path / "a.png")}]]))
    small = condense_dataset(source, "random", 1, image_column="image", progress=False, cache=False)
    small.save_condensed(tmp_path / "sets")
    (tmp_path / "a.png").unlink()
    assert load_condensed(tmp_path / "sets")[0]["x"][0].size == (2, 2)


def test_rows_with_other_columns_than_those_that_are_read_are_not_saved(tmp_path):
    small = make_set()
    other = small.cast_column("label", Value("int8"))
    good = CondensedDataset.from_parts(other, small.synthetic, small.recipe)
    good.save_condensed(tmp_path / "good")
    assert_same(load_condensed(tmp_path / "good"), good)
    for rows in (
        small.cast_column("image", Image(mode="F")),
        small.select_columns(["label", "image"]).add_column("x", [1] * 4),
    ):
        with pytest.raises(ValueError, match=r"features should be those of|would be read with"):
            CondensedDataset.from_parts(rows, small.synthetic, small.recipe).save_condensed(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [' + b"{}," * 200_000 + b"{}]}",
        b'{"a": [' + b"1," * 1_100_000 + b"1]}",
        b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}',
    ],
    ids=["objects", "numbers", "bytes"],
)
def test_json_that_would_take_much_memory_is_refused_before_it_is_parsed(text, monkeypatch):
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(CondensedFormatError, match="readers accept"):
        parse_json(text, "x")


def test_features_in_parquet_that_would_take_much_memory_are_refused():
    table = pa.table({"x": [1]}).replace_schema_metadata({"huggingface": "[" + "{}," * 200_000 + "{}]"})
    with pytest.raises(CondensedFormatError, match="x: the features are described in 200,002 objects and lists"):
        from_parquet(to_parquet(table), 1, "x")


@pytest.mark.parametrize("shape", [[1, 1, 4096], [1, 4096, 1]])
def test_long_and_narrow_images_are_saved(tmp_path, shape):
    small = make_set(image_shape=shape, ipc=1)
    small.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), small)
    assert max(small.preview(1).size) < 2 * 8192 + 10
