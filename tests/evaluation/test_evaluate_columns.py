"""Every dataset of an evaluation has its own columns, and messages say which dataset is meant."""

from __future__ import annotations

import io

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures

from hf_condense import condense_dataset
from tests.support.short_evaluations import run, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")


def accuracies(*args, **options) -> list[tuple[float, ...]]:
    return [score.accuracies for score in run(*args, seeds=2, epochs=8, cache=False, **options).scores]


@pytest.fixture(scope="module")
def renamed(toy) -> Dataset:
    """The toy set under other names of its columns."""
    return toy.rename_columns({"image": "picture", "label": "kind"})


@pytest.fixture(scope="module")
def expected(toy, small) -> list[tuple[float, ...]]:
    return accuracies(small, toy)


@pytest.mark.parametrize("options", [{}, {"image_column": "picture"}, {"label_column": "kind"}])
def test_test_and_source_may_have_other_column_names(toy, small, renamed, expected, options):
    assert accuracies(small, renamed, source=toy, **options) == expected
    assert accuracies(small, toy, source=renamed, **options) == expected


def test_every_dataset_may_have_names_of_its_own(toy, renamed):
    test = toy.rename_columns({"image": "img", "label": "y"})
    train = toy.select(range(6))
    plain = accuracies(train, toy, source=toy)
    for options in ({}, {"image_column": "img"}, {"label_column": "kind", "image_column": "image"}):
        assert accuracies(train, test, source=renamed, **options) == plain


def with_text_labels(toy, column: str) -> Dataset:
    names = toy.features["label"].names
    pairs = {"image": toy["image"][:], column: [names[label] for label in toy["label"]]}
    return Dataset.from_dict(pairs, features=Features({"image": Image(), column: Value("string")}))


def test_a_text_column_that_only_the_test_has_is_named_for_it_alone(toy, small, expected):
    assert accuracies(small, with_text_labels(toy, "word"), label_column="word") == expected
    with pytest.raises(ValueError, match=r"^test: no column holds a ClassLabel; .*pass label_column=.*'word'"):
        run(small, with_text_labels(toy, "word"))
    with pytest.raises(
        ValueError, match=r"^test: no column holds a ClassLabel; .*; it has no column 'kind' either: ren"
    ):
        run(small, with_text_labels(toy, "word"), source=with_text_labels(toy, "kind"), label_column="kind")


def test_the_callers_column_comes_first_where_it_exists(toy, small, renamed):
    """The source has two columns of labels: the one that the set was made from, and a coarser one."""
    both = toy.add_column("kind", [0] * len(toy)).cast_column("kind", ClassLabel(names=["thing"]))
    assert run(small, toy, source=both, seeds=1, epochs=1).scores[1].rows == 6
    with pytest.raises(ValueError, match="source has no rows of 'ball'"):
        run(small, renamed, source=both, label_column="kind")


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_a_column_that_no_dataset_has_is_refused_with_those_that_there_are(toy, small, option):
    with pytest.raises(
        ValueError,
        match=f"{option}='nope' is not a column of test or source; test has 'image', 'label', 'note'; source",
    ):
        run(small, toy, **{option: "nope"})
    with pytest.raises(ValueError, match=f"{option}='nope' is not a column of train or test; train has 'image'"):
        run(toy, toy, baselines=(), **{option: "nope"})
    with pytest.raises(TypeError, match=f"{option} should be the name of a column; got 3"):
        run(small, toy, **{option: 3})


def ambiguous(toy) -> Dataset:
    rows = toy.cast_column("image", Image(decode=False))["image"][:]
    return toy.rename_column("image", "left").add_column("right", rows).cast_column("right", Image())


def without_pictures(toy) -> Dataset:
    return toy.remove_columns("image")


def damaged(toy) -> Dataset:
    rows = [{"bytes": b"no picture", "path": None}, *toy.cast_column("image", Image(decode=False))["image"][1:]]
    return toy.remove_columns("image").add_column("image", rows).cast_column("image", Image())


def unlabelled(toy) -> Dataset:
    return (
        toy.cast_column("label", Value("int64"))
        .map(lambda row, i: {"label": None if i == 4 else row["label"]}, with_indices=True)
        .cast_column("label", toy.features["label"])
    )


def of_two_sizes(toy) -> Dataset:
    buffer = io.BytesIO()
    Pictures.new("RGB", (5, 9)).save(buffer, "PNG")
    rows = [{"bytes": buffer.getvalue(), "path": None}, *toy.cast_column("image", Image(decode=False))["image"][1:]]
    return toy.remove_columns("image").add_column("image", rows).cast_column("image", Image())


FAULTS = {
    ambiguous: "several columns hold an Image: 'left', 'right'",
    without_pictures: "no column holds an Image",
    damaged: "row 0 has a picture that cannot be decoded",
    unlabelled: "1 of 36 rows have no label in 'label', the first is row 4",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_messages_about_a_dataset_start_with_its_name(toy, small, fault):
    bad = fault(toy)
    for what, call in {
        "train": lambda: run(bad, toy, source=toy),
        "test": lambda: run(small, bad, source=toy),
        "source": lambda: run(small, toy, source=bad),
    }.items():
        with pytest.raises(ValueError, match=f"^{what}: {FAULTS[fault]}"):
            call()


def test_pictures_of_two_sizes_are_refused_in_train_and_resized_elsewhere(toy, small):
    bad = of_two_sizes(toy)
    with pytest.raises(ValueError, match=r"^train: pictures differ in size"):
        run(bad, toy, source=toy)
    run(small, bad, source=bad, seeds=1, epochs=1)


def test_a_train_of_pictures_of_two_sizes_is_brought_to_the_size_that_is_asked_for(toy, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    result = run(of_two_sizes(toy), toy, source=toy, image_size=(6, 4), seeds=1, epochs=1)
    assert [t.data.image_shape for t in trainings] == [(3, 6, 4)] * 2
    assert [score.set for score in result.scores] == ["train", "random"]


def test_a_size_for_images_that_have_one_is_refused(toy, small):
    tensors = (torch.zeros(3, 3, 8, 8), torch.arange(3))
    for train in (small, tensors):
        with pytest.raises(ValueError, match=r"have a size already, .* leave image_size out"):
            run(train, toy, source=toy, image_size=8)
    with pytest.raises(ValueError, match=r"image_size should be a side or \(height, width\).*got 0"):
        run(toy, toy, source=toy, image_size=0)


def test_a_damaged_picture_for_a_grey_set_names_its_dataset(toy_gray):
    grey = condense_dataset(toy_gray, "random", ipc=1, progress=False)
    with pytest.raises(ValueError, match=r"^test: row 0 has a picture that cannot be decoded"):
        run(grey, damaged(toy_gray))
    with pytest.raises(ValueError, match=r"^source: row 0 has a picture that cannot be decoded"):
        run(grey, toy_gray, source=damaged(toy_gray))
