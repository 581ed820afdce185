"""A set of some classes is compared with rows of these, and the caller hears of the rows of others."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from hf_condense import condense_dataset
from hf_condense.testing import toy_dataset
from tests.support.short_evaluations import rows_of, run, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")

BASELINES = ("random", "full", "herding", "kcenter")
NAMES = tuple(f"class {c}" for c in range(10))
KNOWN = (1, 4, 5)  # not the first ones, and not next to each other


@pytest.fixture(scope="module")
def ten() -> Dataset:
    """Ten classes of four rows each."""
    return toy_dataset(tuple(range(10)), rows=4, names=NAMES)


@pytest.fixture(scope="module")
def three(ten) -> Dataset:
    """The rows of three of these classes; the feature still names all ten."""
    return ten.filter(lambda row: row["label"] in KNOWN)


@pytest.fixture(scope="module")
def small(three):
    return condense_dataset(three, "random", ipc=2, progress=False)


def watched(monkeypatch, *args, **options) -> tuple[dict[str, int], list[Counter[int]]]:
    """Evaluate, and return the rows of every contender and how many of each class it was trained on."""
    trainings = watch_trainings(monkeypatch)
    scores = rows_of(run(*args, seeds=1, epochs=1, cache=False, **options))
    return {name: score.rows for name, score in scores.items()}, [Counter(t.data.labels.tolist()) for t in trainings]


def test_baselines_are_drawn_within_the_classes_of_a_condensed_set(ten, small, monkeypatch, caplog):
    rows, classes = watched(monkeypatch, small, ten, source=ten, baselines=BASELINES)
    assert rows == {"random_ipc2": 6, "random": 6, "full": 12, "herding": 6, "kcenter": 6}
    assert classes == [dict.fromkeys(KNOWN, n) for n in (2, 2, 4, 2, 2)]
    absent = ", ".join(f"'class {c}'" for c in range(10) if c not in KNOWN)
    assert [record.getMessage() for record in caplog.records] == [
        f"28 of 40 rows of test are of classes that the set has no rows of ({absent}); they count as wrong",
        f"28 of 40 rows of source are of classes that the set has no rows of ({absent}); baselines are made from the "
        "other rows",
        "40 of 40 test images are in the real training set, too; accuracies on these say little about new images",
    ]


def test_baselines_are_drawn_within_the_classes_of_a_plain_set(ten, three, monkeypatch, caplog):
    rows, classes = watched(monkeypatch, three, three, source=ten, baselines=BASELINES)
    assert rows == {"train": 12, "random": 12, "full": 12, "herding": 12, "kcenter": 12}
    assert classes == [dict.fromkeys(KNOWN, 4)] * 5
    of_classes, of_test_rows = caplog.messages
    assert "28 of 40 rows of source" in of_classes
    assert "12 of 12 test images" in of_test_rows


def test_baselines_are_drawn_within_classes_that_only_the_set_names(ten, three, monkeypatch, caplog):
    def as_text(ds):
        return ds.map(lambda row: {"label": NAMES[row["label"]]}, features=text_features)

    text_features = ten.features.copy()
    text_features["label"] = Value("string")
    train, source = as_text(three), as_text(ten)
    rows, classes = watched(monkeypatch, train, train, source=source, label_column="label", baselines=BASELINES)
    assert rows == {"train": 12, "random": 12, "full": 12, "herding": 12, "kcenter": 12}
    assert classes == [{0: 4, 1: 4, 2: 4}] * 5
    assert "28 of 40 rows of source are of classes that the set has no rows of ('class 0', 'class 2'" in caplog.text
    with pytest.raises(ValueError, match="test has classes that the set does not know: 'class 0', 'class 2'"):
        run(train, source, label_column="label", baselines=())


def test_rows_of_other_classes_change_no_baseline(ten, three, small):
    options = {"baselines": ("random", "full"), "seeds": 2, "epochs": 5, "cache": False}
    apart = rows_of(run(small, three, source=three, **options))
    within = rows_of(run(small, three, source=ten, **options))
    assert {name: s.accuracies for name, s in within.items()} == {name: s.accuracies for name, s in apart.items()}


def test_cached_scores_of_the_full_source_are_those_of_the_same_classes(ten, three, small, monkeypatch):
    four = ten.filter(lambda row: row["label"] in (*KNOWN, 7))
    other = condense_dataset(four, "random", ipc=2, progress=False)
    options = {"source": ten, "baselines": "full", "seeds": 1, "epochs": 1}
    assert rows_of(run(small, three, **options))["full"].rows == 12
    assert rows_of(run(other, three, **options))["full"].rows == 16
    trainings = watch_trainings(monkeypatch)
    run(small, three, **options)
    assert len(trainings) == 1, "only the set itself is trained on again"


def test_rows_of_absent_classes_count_as_wrong(ten, three, small):
    own = run(small, three, epochs=60, seeds=1, baselines=()).scores[0].mean
    all_ten = run(small, ten, epochs=60, seeds=1, baselines=()).scores[0].mean
    assert own > 0.5
    assert all_ten == pytest.approx(own * len(three) / len(ten))


def test_a_set_of_all_classes_gets_no_warning(three, small, caplog):
    run(small, three, source=three, seeds=1, epochs=1, baselines=("random", "full"))
    names = [NAMES[c] for c in KNOWN]
    renamed = Dataset.from_dict(
        {"image": three["image"][:], "label": [KNOWN.index(c) for c in three["label"]]},
        features=Features({"image": Image(), "label": ClassLabel(names=names)}),
    )
    run(small, renamed, source=renamed, seeds=1, epochs=1)
    told = ("the test images are those", "test images are in the real training set")
    assert not [message for message in caplog.messages if not any(text in message for text in told)]


def test_a_source_that_lacks_a_class_of_the_set_is_refused(ten, small):
    lacking = ten.filter(lambda row: row["label"] != 4)
    for baseline in BASELINES:
        with pytest.raises(ValueError, match="source has no rows of 'class 4': baselines cannot be drawn"):
            run(small, ten, source=lacking, baselines=baseline)
