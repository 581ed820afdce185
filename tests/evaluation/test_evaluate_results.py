"""What the result of an evaluation tells: classes, differences from a baseline, and formats to keep it in."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hf_condense.condensed.scores import Difference, Evaluation, Score
from hf_condense.source.load import load_source
from tests.reference.intervals import confusion
from tests.support.short_evaluations import relabelled, rows_of, run, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")


def score(name: str, accuracies: tuple[float, ...], **changes) -> Score:
    made = Score(name, 10, "convnet", "dc", None, 300, 300, accuracies, tuple(range(len(accuracies))), 1.0)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def table(toy, small) -> Evaluation:
    return run(small, toy, seeds=2, epochs=12, baselines=("random", "full"))


def test_predictions_are_in_the_order_of_the_test_rows(toy, small, table):
    assert table.class_names == ("ball", "cross", "stripes")
    assert table.labels.tolist() == toy["label"][:]
    for score in table.scores:
        assert score.predictions.shape == (2, 36)
        shares = (score.predictions == np.array(toy["label"][:])).mean(1)
        assert tuple(shares) == pytest.approx(score.accuracies)
    backwards = toy.select(range(35, -1, -1))
    turned = run(small, backwards, seeds=2, epochs=12, baselines=())
    assert np.array_equal(turned.scores[0].predictions, table.scores[0].predictions[:, ::-1])


def test_predictions_are_classes_of_the_set_whatever_the_test_set_calls_them(toy, small, table):
    other = run(small, relabelled(toy, ["stripes", "ball", "cross"]), seeds=2, epochs=12, baselines=())
    assert np.array_equal(other.scores[0].predictions, table.scores[0].predictions)
    assert np.array_equal(other.labels, table.labels)


def test_the_confusion_table_counts_every_row(table, toy):
    for name in ("random_ipc2", "full"):
        classes = table.by_class(name)
        score = table.score(name)
        assert classes.confusion.tolist() == [confusion(toy["label"][:], row.tolist(), 3) for row in score.predictions]
        assert classes.confusion.sum() == 2 * len(toy)
        assert classes.accuracies.mean(1).tolist() == pytest.approx(score.accuracies), "classes of equal size"
        assert np.allclose(classes.shares.sum(1), 1)
        frame = classes.to_pandas()
        assert np.allclose(np.diag(frame), classes.accuracies.mean(0))
        assert list(frame.columns) == list(frame.index) == ["ball", "cross", "stripes"]


def test_classes_without_test_rows_are_left_out(toy, small):
    part = toy.filter(lambda row: row["label"] != 1)
    classes = run(small, part, seeds=1, baselines=()).by_class()
    assert [record["class"] for record in classes.to_records()] == ["ball", "stripes"]
    assert np.isnan(classes.accuracies[0, 1])
    assert np.isnan(classes.shares[1]).all()


def test_mistakes_are_listed_with_the_largest_share_first():
    labels = np.array([0] * 10 + [1] * 4, np.int32)
    predictions = np.array([[0] * 7 + [2] * 2 + [1] + [1] * 4, [0] * 8 + [2] * 2 + [0, 1, 1, 1]], np.int32)
    classes = Evaluation((score("a", (11 / 14, 11 / 14), predictions=predictions),), ("x", "y", "z"), labels).by_class()
    first, second = classes.to_records()
    assert first == {
        "class": "x",
        "rows": 10,
        "mean": pytest.approx(0.75),
        "std": pytest.approx(math.sqrt(0.005)),
        "n": 2,
        "taken_for": {"z": pytest.approx(0.2), "y": pytest.approx(0.05)},
    }
    assert second["taken_for"] == {"x": pytest.approx(1 / 8)}
    assert str(classes).splitlines() == [
        "class  rows     accuracy %  taken for",
        "x        10   75.00 ± 7.07  z 20.0 %, y 5.0 %",
        "y         4  87.50 ± 17.68  x 12.5 %",
    ]


def test_what_was_not_measured_is_refused_with_what_was(table):
    with pytest.raises(ValueError, match=r"no score of 'herding' with network 'convnet-w8'; there are 'random_ipc2'"):
        table.by_class("herding")
    with pytest.raises(ValueError, match="'random' with network 'mlp'"):
        table.score("random", network="mlp")
    read = Evaluation.from_records(table.to_records())
    with pytest.raises(ValueError, match="read from records, which hold no predictions"):
        read.by_class()


def test_differences_are_paired_by_seed_and_have_students_interval():
    table = Evaluation((score("a", (0.8, 0.7, 0.9)), score("random", (0.5, 0.3, 0.7)), score("full", (0.9, 0.9, 0.9))))
    first, full = table.differences()
    gaps = [0.3, 0.4, 0.2]
    reach = 4.302653 * np.std(gaps, ddof=1) / math.sqrt(3)
    assert (first.set, first.baseline, first.n) == ("a", "random", 3)
    assert first.mean == pytest.approx(0.3)
    assert first.interval == pytest.approx((0.3 - reach, 0.3 + reach))
    assert str(first) == "+30.00 (+5.16 to +54.84)"
    assert full.mean == pytest.approx(0.4)
    assert [gap.set for gap in table.differences("full")] == ["a", "random"]
    assert table.differences("herding") == []


def test_a_difference_that_rounds_to_zero_has_no_minus():
    assert str(Difference("a", "random", "convnet", -1e-6, (-0.1, -1e-9), 2)) == "+0.00 (-10.00 to +0.00)"


def test_differences_are_taken_within_a_network_and_an_ipc():
    conditions = [{}, {"network": "mlp"}, {"ipc": 1}, {"augment": "flip"}]
    scores = [
        score(name, (accuracy, accuracy), **changes)
        for i, changes in enumerate(conditions)
        for name, accuracy in (("a", 0.5 + i / 10), ("random", 0.25))
    ]
    assert [gap.mean for gap in Evaluation(tuple(scores)).differences()] == pytest.approx([0.25, 0.35, 0.45, 0.55])


def test_scores_of_other_seeds_are_not_compared():
    other = score("random", (0.5, 0.5), seeds=(4, 5))
    assert Evaluation((score("a", (0.8, 0.7)), other)).differences() == []
    with pytest.raises(ValueError, match="paired by seed"):
        score("a", (0.8, 0.7)).over(other)


def test_a_single_network_has_a_difference_without_an_interval():
    (gap,) = Evaluation((score("a", (0.8,)), score("random", (0.5,)))).differences()
    assert (gap.interval, str(gap)) == (None, "+30.00")


def test_the_table_shows_the_difference_from_random_rows(table):
    text = str(table).splitlines()
    assert "points over random (95 %)" in text[0]
    (gap, _) = table.differences()
    assert str(gap) in text[1]
    assert "(" not in text[2]
    frame = table.to_pandas()
    assert frame["over_random"].tolist()[0] == pytest.approx(gap.mean)
    assert (frame["low"][0], frame["high"][0]) == pytest.approx(gap.interval)
    assert frame["over_random"].isna().tolist() == [False, True, False]


def test_random_rows_share_weights_with_the_set_seed_by_seed(toy, small, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    run(small, toy, seeds=2)
    for one, other in zip(trainings[:2], trainings[2:], strict=True):
        assert torch.equal(one.before, other.before)


def test_records_and_json_give_the_evaluation_back(table):
    records = json.loads(table.to_json())
    assert records == table.to_records()
    again = Evaluation.from_records(records)
    assert [replace(s, seconds=0) for s in again.scores] == [replace(s, seconds=0) for s in table.scores]
    assert again.scores[0].lr == 0.01


def test_records_of_earlier_versions_are_read():
    old = {"set": "dm_ipc1", "rows": 10, "network": "convnet", "recipe": "dc", "augment": None, "mean": 0.5}
    old |= {"std": None, "n": 1, "seconds": 2.0, "updates": 3, "epochs": 3, "accuracies": [0.5], "seeds": [0]}
    assert Evaluation.from_records([old]).scores[0].accuracies == (0.5,)
    del old["updates"]
    with pytest.raises(ValueError, match="a record of an evaluation should have updates"):
        Evaluation.from_records([old])


def test_markdown_escapes_names(table):
    named = replace(table, scores=(score("<a|b>", (0.5,)),))
    head, line, row = named.to_markdown().splitlines()
    assert head == "| set | rows | network | recipe | accuracy % | n | updates | seconds |"
    assert set(line) == set("| -")
    assert row == "| &#60;a&#124;b&#62; | 10 | convnet | dc | 50.00 | 1 | 300 | 1.0 |"


def test_cached_scores_keep_their_predictions(toy, small, monkeypatch):
    options = {"baselines": "full", "seeds": [21], "epochs": 3}
    first = run(small, toy, **options)
    trainings = watch_trainings(monkeypatch)
    again = run(small, toy, **options)
    assert len(trainings) == 1, "the score of the full source is in the cache"
    assert np.array_equal(rows_of(again)["full"].predictions, rows_of(first)["full"].predictions)
    assert again.score("full").predictions.shape == (1, len(load_source(toy, progress=False)))
