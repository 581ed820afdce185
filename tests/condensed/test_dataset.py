"""Rows and tensors of a condensed set never disagree: only formatting, copying and pickling keep the type."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from hf_condense import condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.rows import decoded_rows, row_features
from hf_condense.condensed.tensors import round_robin
from tests.support.condensed_sets import make_coreset, make_recipe, make_set, make_tensors, real_rows

KEEPS_TYPE = {"with_format", "set_format", "reset_format", "with_transform", "set_transform", "formatted_as"}
OURS = {
    "from_parts",
    "preview",
    "with_evaluation",
    "save_condensed",
    "save_to_disk",
    "push_to_hub",
    "synthetic",
    "recipe",
    "source",
}
PUBLIC = sorted(
    name
    for name in dir(Dataset)
    if not name.startswith("_") and callable(getattr(Dataset, name)) and name not in KEEPS_TYPE
)
CLASS_METHODS = [
    name for name in PUBLIC if isinstance(inspect.getattr_static(Dataset, name), (classmethod, staticmethod))
]
METHODS = [name for name in PUBLIC if name not in CLASS_METHODS]
CALLS = {
    "add_column": lambda ds: ds.add_column("extra", list(range(len(ds)))),
    "add_item": lambda ds: ds.add_item({"label": 1}),
    "align_labels_with_mapping": lambda ds: ds.align_labels_with_mapping({"dog": 0, "cat": 1}, "label"),
    "batch": lambda ds: ds.batch(2),
    "cast": lambda ds: ds.cast(ds.features),
    "cast_column": lambda ds: ds.cast_column("label", Value("int32")),
    "class_encode_column": lambda ds: make_set(label_values=["chat", "chien"]).class_encode_column("label"),
    "flatten": lambda ds: ds.flatten(),
    "flatten_indices": lambda ds: ds.flatten_indices(),
    "shuffle": lambda ds: ds.shuffle(seed=0),
    "filter": lambda ds: ds.filter(_is_cat),
    "map": lambda ds: ds.map(_same),
    "remove_columns": lambda ds: ds.remove_columns("label"),
    "rename_column": lambda ds: ds.rename_column("label", "target"),
    "rename_columns": lambda ds: ds.rename_columns({"label": "target"}),
    "repeat": lambda ds: ds.repeat(2),
    "select": lambda ds: ds.select([0]),
    "select_columns": lambda ds: ds.select_columns(["label"]),
    "shard": lambda ds: ds.shard(2, 0),
    "skip": lambda ds: ds.skip(1),
    "sort": lambda ds: ds.sort("label"),
    "take": lambda ds: ds.take(2),
    "train_test_split": lambda ds: ds.train_test_split(0.5),
}


def _is_cat(row):
    return row["label"] == 0


def _same(row):
    return row


def found_types(result):
    """Return the types of the datasets in a result."""
    if isinstance(result, dict) and not isinstance(result, Features):
        return [kind for value in result.values() for kind in found_types(value)]
    if isinstance(result, (list, tuple)):
        return [kind for value in result for kind in found_types(value)]
    return [type(result)] if isinstance(result, Dataset) else []


@pytest.fixture(scope="module")
def made() -> CondensedDataset:
    return make_set()


@pytest.mark.parametrize("name", METHODS)
def test_every_public_method_of_this_version_runs_on_plain_rows(name):
    seen = []

    def probe(self, *args, **kwargs):
        seen.append(type(self))

    bound = getattr(CondensedDataset, name)
    assert bound is not getattr(Dataset, name), f"{name} is inherited: it would carry stale tensors along"
    if name in OURS:
        return
    cells = dict(zip(bound.__code__.co_freevars, bound.__closure__, strict=True))
    before = cells["method"].cell_contents
    cells["method"].cell_contents = probe
    try:
        getattr(make_set(), name)()
    finally:
        cells["method"].cell_contents = before
    assert seen == [Dataset]


@pytest.mark.parametrize("name", [name for name in CALLS if name in METHODS])
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # of Dataset.sort itself
def test_changing_rows_or_columns_gives_plain_datasets(made, name):
    before = made.to_dict()
    kinds = found_types(CALLS[name](made))
    assert kinds
    assert set(kinds) == {Dataset}
    assert made.to_dict() == before
    assert type(made) is CondensedDataset


@pytest.mark.parametrize("name", CLASS_METHODS)
def test_constructors_make_plain_datasets(name):
    assert getattr(CondensedDataset, name) == getattr(Dataset, name)


def test_constructors_of_dicts_and_lists_return_plain_datasets():
    assert type(CondensedDataset.from_dict({"a": [1]})) is Dataset
    assert type(CondensedDataset.from_list([{"a": 1}])) is Dataset


def test_a_stream_has_the_same_rows(made):
    stream = made.to_iterable_dataset()
    assert not isinstance(stream, CondensedDataset)
    assert [row["label"] for row in stream] == list(made["label"])


@pytest.mark.parametrize(
    "keep",
    [
        lambda ds: ds.with_format("torch"),
        lambda ds: ds.with_format("numpy", columns=["label"]),
        lambda ds: ds.with_transform(_same),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["torch", "numpy", "transform", "copy", "deepcopy"],
)
def test_formatting_and_copying_keep_everything(keep):
    made = make_coreset()
    kept = keep(made)
    assert type(kept) is CondensedDataset
    assert kept is not made
    assert kept.synthetic is made.synthetic
    assert kept.recipe == made.recipe
    assert kept.source is made.source
    assert kept.with_format(None).to_dict() == made.to_dict()
    assert made.format["type"] is None


def test_formatting_in_place_and_back():
    made = make_set()
    made.set_format("torch")
    assert made[0]["image"].shape == (3, 8, 8)
    assert made.with_format("numpy").format["type"] == "numpy"
    with made.formatted_as("numpy"):
        assert isinstance(made[0]["label"], np.integer)
    assert made.format["type"] == "torch"
    assert made.select([0]).format["type"] == "torch"
    made.set_transform(lambda batch: {"double": [2 * label for label in batch["label"]]})
    assert made[0] == {"double": 0}
    made.reset_format()
    assert isinstance(made[0]["image"], Image.Image)


def test_a_loader_reads_it():
    loader = torch.utils.data.DataLoader(make_set().with_format("torch"), batch_size=4)
    batch = next(iter(loader))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["label"].tolist() == [0, 1, 0, 1]


def test_pickling_keeps_everything_but_the_source():
    made = make_coreset()
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is CondensedDataset
    assert torch.equal(back.synthetic.images, made.synthetic.images)
    assert back.recipe == made.recipe
    assert back.to_dict() == made.to_dict()
    assert back.source is None
    assert made.source is not None


def test_search_indexes_are_changed_in_place():
    made = make_set()
    made._indexes["seen"] = object()  # what add_faiss_index does, without faiss
    assert made.list_indexes() == ["seen"]
    made.drop_index("seen")
    assert made.list_indexes() == []


def test_a_dict_of_splits_keeps_it_until_rows_change(made):
    splits = DatasetDict(train=made, test=real_rows())
    assert type(splits.with_format("torch")["train"]) is CondensedDataset
    assert type(splits.rename_column("label", "target")["train"]) is Dataset


def test_joining_gives_plain_rows(made):
    assert type(datasets.concatenate_datasets([made, made])) is Dataset
    assert type(datasets.interleave_datasets([made, made])) is Dataset


def test_its_text_names_its_type(made):
    assert repr(made).startswith("CondensedDataset({")


def test_saving_rows_alone_says_what_is_left_out(tmp_path, caplog):
    small = make_set()
    small.save_to_disk(tmp_path / "set")
    assert "save_to_disk keeps the 8-bit rows only; save_condensed also keeps the exact tensors" in caplog.text
    assert datasets.load_from_disk(tmp_path / "set")[:] == small[:]


def test_as_many_rows_as_decoded_images(made):
    with pytest.raises(ValueError, match="3 rows for 4 decoded images"):
        CondensedDataset.from_parts(made.select([0, 1, 2]), made.synthetic, made.recipe)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [1, 2])
def test_rows_are_the_rounded_tensors_dealt_by_class(channels, factor):
    recipe = make_recipe(image_shape=[channels, 8, 6], factor=factor, pixel_range="free")
    tensors = make_tensors(recipe)
    rows = decoded_rows(tensors, recipe)
    images, labels = tensors.decoded()
    order = round_robin(labels.tolist())
    assert rows["label"][:] == [labels[i] for i in order]
    assert rows[0]["image"].mode == {1: "L", 3: "RGB"}[channels]
    for row, i in zip(rows, order, strict=True):
        expected = np.floor(np.clip(images[i].numpy().astype(np.float64), 0, 1) * 255 + 0.5)  # (C, H, W)
        seen = np.asarray(row["image"], dtype=np.float64).reshape(8, 6, channels).transpose(2, 0, 1)
        assert np.abs(seen - expected).max() <= (0 if factor == 1 else 1)


def test_rows_keep_the_features_of_the_source():
    features = Features(
        {
            "y": ClassLabel(names=["cat", "dog"]),
            "other": Value("string"),
            "x": datasets.Image(mode="RGB"),
        }
    )
    made = make_set(features=features, image_column="x", label_column="y", soft=True)
    assert list(made.features) == ["y", "x", "soft_label"]
    assert made.features["x"] == features["x"]
    assert made.features["y"] == features["y"]
    assert made.features["soft_label"] == datasets.List(Value("float32"), length=2)
    soft = torch.tensor(made["soft_label"][:])
    assert torch.equal(soft, made.synthetic.soft_labels[round_robin(made.synthetic.labels.tolist())])


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([0, 1], ClassLabel(names=["cat", "dog"])),
        ([2, 5], Value("int64")),
        (["chat", "chien"], Value("string")),
        ([False, True], Value("bool")),
    ],
    ids=["counted", "integers", "text", "booleans"],
)
def test_labels_come_out_as_they_went_in(values, feature):
    made = make_set(label_values=values)
    assert made.features["label"] == feature
    assert made["label"][:] == [values[0], values[1]] * 2


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 0])])
def test_decoded_images_can_be_changed_in_place(rows):
    small = make_set(pixel_range="free")
    before = small.synthetic.images.clone()
    small.synthetic.decoded(rows)[0].sub_(0.5).div_(0.25)
    assert torch.equal(small.synthetic.images, before)


def test_equal_tensors_give_equal_bytes():
    first, second = (make_set().cast_column("image", datasets.Image(decode=False)) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_a_source_column_called_soft_label_is_refused():
    with pytest.raises(ValueError, match="'soft_label'"):
        make_set(label_column="soft_label", soft=True)


@pytest.mark.parametrize("factor", [1, 2])
def test_preview_has_a_row_for_each_class(factor):
    made = make_set(ipc=3, factor=factor, class_names=["a", "b", "c"], label_values=[0, 1, 2])
    picture = made.preview(per_class=2)
    cell = 8 * 7 + 2  # enlarged sevenfold, a gap of two pixels
    assert picture.size == (2 * cell + 2, 3 * cell + 2)
    first = np.asarray(picture)[2:58:7, 2:58:7].transpose(2, 0, 1) / 255
    assert np.abs(first - made.synthetic.decoded()[0][0].numpy()).max() < 1 / 255


def test_preview_of_one_image_per_class_is_a_line_without_white():
    picture = make_set(ipc=1, class_names=["a", "b", "c"], label_values=[0, 1, 2]).preview()
    cell = 8 * 7 + 2
    assert picture.size == (3 * cell + 2, cell + 2)


def test_a_coreset_keeps_columns_and_bytes():
    made = make_coreset()
    source = made.source.cast_column("image", datasets.Image(decode=False))
    assert list(made.features) == list(source.features)
    rows = made.cast_column("image", datasets.Image(decode=False))
    order = round_robin(made.synthetic.labels.tolist())
    assert list(rows) == [source[made.recipe.rows[i]] for i in order]
    decoded = np.asarray(Image.open(io.BytesIO(rows[0]["image"]["bytes"])))
    assert np.array_equal(decoded.transpose(2, 0, 1) / np.float32(255), made.synthetic.images[0].numpy())


@pytest.mark.parametrize(("method", "options"), [("random", {}), ("kcenter", {"features": "pixels"})])
def test_coreset_of_a_run_keeps_every_column_and_byte(method, options):
    ds = real_rows(image_type="JPEG")
    small = condense_dataset(ds, method, {"cat": 3, "dog": 1}, progress=False, cache=False, **options)
    order = [small.recipe.rows[i] for i in round_robin(small.synthetic.labels.tolist())]
    raw, expected = (rows.cast_column("image", datasets.Image(decode=False)) for rows in (small, ds.select(order)))
    assert list(raw) == list(expected)
    assert small.features == ds.features
    assert len(set(small.recipe.rows)) == 4


def test_a_teacher_is_copied_but_not_pickled():
    made = make_set()
    made.labeller = lambda pixels: pixels  # a function that cannot be pickled
    assert (
        copy.copy(made).labeller is copy.deepcopy(made).labeller is made.with_format("torch").labeller is made.labeller
    )
    assert pickle.loads(pickle.dumps(made)).labeller is None


@pytest.mark.parametrize("decode", [True, False])
def test_pictures_in_another_mode_stay_decoded_or_not(decode: bool) -> None:
    source = datasets.Features(
        {"image": datasets.Image(mode="CMYK", decode=decode), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    assert row_features(make_recipe(), source)["image"] == datasets.Image(mode="RGB", decode=decode)
