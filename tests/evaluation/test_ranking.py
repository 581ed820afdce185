"""DD-Ranking's scores are those of their definitions, from networks that are trained as they say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hf_condense import Teacher, dd_ranking
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.evaluation.ranking import _ranking, exponential_score
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.testing import quick_method
from tests.reference.ranking import augmentation_robust, label_robust
from tests.support.short_evaluations import rows_of, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"network": "convnet-w8-d1", "lr": None, "epochs": 20, "seeds": 2, "progress": False}
LOGITS = torch.tensor([[5.0, 1, 0], [0, 5, 1], [1, 0, 5]])


def by_means(images: torch.Tensor) -> torch.Tensor:
    """Judge pixels by the mean of each channel."""
    return images.mean((2, 3))


def test_scores_of_fractions_are_exponential():
    assert exponential_score(-1) == 0
    assert exponential_score(1) == pytest.approx(1)
    assert exponential_score(0) == pytest.approx(1 / (1 + torch.e), abs=1e-12), "(1 - 1/e) / (e - 1/e)"


def test_the_scores_of_hard_labels_are_those_of_the_definitions(toy, small, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    scores = dd_ranking(small, toy, weight=0.25, cache=False, **QUICK)
    augmented, plain = rows_of(scores.evaluation), rows_of(scores.plain_evaluation)
    own, random, full = (augmented[name].accuracies for name in ("random_ipc2", "random", "full"))
    assert (scores.hlr.mean, scores.ior.mean, scores.lrs) == pytest.approx(label_robust(full, own, own, random, 0.25))
    own_plain, random_plain = (plain[name].accuracies for name in ("random_ipc2", "random"))
    assert scores.ars == pytest.approx(augmentation_robust(own, random, own_plain, random_plain, 0.25))
    assert scores.hlr.interval is not None
    assert [t.recipe.augment for t in trainings] == ["color_crop_cutout_flip_scale_rotate"] * 6 + [None] * 4


@pytest.mark.parametrize(
    ("recipe", "without"), [("idc", "cutmix_probability=0.0"), ("soft", "cutmix_probability=0.0, view_area=None")]
)
def test_training_without_augmentation_has_neither_cutmix_nor_crops(toy, small, monkeypatch, recipe, without):
    trainings = watch_trainings(monkeypatch)
    dd_ranking(small, toy, full_accuracy=1.0, recipe=recipe, **{**QUICK, "epochs": 1})
    augmented, plain = ([t.recipe for t in trainings[start : start + 4]] for start in (0, 4))
    assert augmented == [replace(RECIPES[recipe], epochs=1)] * 4
    changed = {"epochs": 1, "augment": None, "cutmix_probability": 0.0, "view_area": None}
    assert plain == [replace(RECIPES[recipe], name=f"{recipe} ({without})", **changed)] * 4


def test_cutmix_alone_is_an_augmentation(toy, small, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    dd_ranking(small, toy, full_accuracy=1.0, recipe="idc", augment="none", **{**QUICK, "epochs": 1})
    assert [t.recipe.cutmix_probability for t in trainings] == [0.5] * 4 + [0.0] * 4


def test_plain_training_is_headed_by_what_it_has(toy, small):
    recipe = replace(RECIPES["dsa"], batch_size=64, cutmix_probability=0.5)
    scores = dd_ranking(small, toy, full_accuracy=1.0, recipe=recipe, **{**QUICK, "epochs": 1})
    assert {s.recipe for s in scores.evaluation.scores} == {"dsa (batch_size=64, cutmix_probability=0.5)"}
    assert {s.recipe for s in scores.plain_evaluation.scores} == {"dsa (batch_size=64)"}


def test_the_scores_of_soft_labels_use_the_same_labels_for_random_rows(toy, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    small = synthetic(toy, soft_labels=LOGITS, recipe_changes={"temperature": 3.0})
    scores = dd_ranking(small, toy, teacher=Teacher(by_means, small.recipe.class_names), full_accuracy=0.75, **QUICK)
    augmented, plain = rows_of(scores.evaluation), rows_of(scores.plain_evaluation)
    names = ["dm_ipc1", "dm_ipc1 (hard labels)", "random", "random (soft labels)"]
    assert list(augmented) == list(plain) == names
    own, hard, _, labelled = (augmented[name].accuracies for name in names)
    expected = label_robust([0.75], hard, own, labelled, 0.5)
    assert (scores.hlr.mean, scores.ior.mean, scores.lrs) == pytest.approx(expected)
    own_plain, random_plain = plain["dm_ipc1"].accuracies, plain["random (soft labels)"].accuracies
    assert scores.ars == pytest.approx(augmentation_robust(own, labelled, own_plain, random_plain, 0.5))
    (hard_rows, soft_rows) = trainings[4].data, trainings[6].data
    images = hard_rows.part(torch.arange(3)).images
    assert torch.equal(soft_rows.images, images), "the same rows"
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (small.recipe.mean, small.recipe.std))
    torch.testing.assert_close(soft_rows.labels, by_means(images * std + mean))
    assert soft_rows.temperature == 3


def test_labels_of_views_are_soft_labels(toy):
    small = quick_method("rded", cache=False).condense(toy)
    scores = dd_ranking(small, toy, full_accuracy=0.75, **{**QUICK, "epochs": 1})
    name = small.recipe.config_name
    assert (scores.hlr.set, scores.hlr.baseline) == ("full", f"{name} (hard labels)")
    assert (scores.ior.set, scores.ior.baseline) == (name, "random (soft labels)")


def test_a_teacher_that_labels_every_update_gives_soft_labels(toy, small):
    options = {**QUICK, "epochs": 1, "full_accuracy": 0.75, "relabel": True}
    with pytest.raises(ValueError, match="pass teacher="):
        dd_ranking(small, toy, **options)
    scores = dd_ranking(small, toy, teacher=Teacher(by_means, small.recipe.class_names), **options)
    assert scores.ior.baseline == "random (relabelled)"


def test_soft_labels_without_a_teacher_are_refused_before_anything_is_trained(toy, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    with pytest.raises(ValueError, match=r"labelled by the same teacher; pass teacher="):
        dd_ranking(synthetic(toy, soft_labels=LOGITS, recipe_changes={"temperature": 1.0}), toy, **QUICK)
    images = torch.zeros(3, 3, 8, 8)
    with pytest.raises(ValueError, match="pass teacher="):
        dd_ranking((images, LOGITS), toy, source=toy, **QUICK)
    assert trainings == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "dc"}, ValueError, "the recipe has none; pass recipe='dsa' or augment="),
        ({"augment": "none"}, ValueError, "the recipe has none"),
        ({"weight": 1.5}, ValueError, "weight should be at most 1; got 1.5"),
        ({"full_accuracy": 97.6}, ValueError, "full_accuracy should be at most 1; got 97.6"),
        ({"baselines": "full"}, TypeError, "pass network=, and leave baselines out"),
        ({"networks": ["mlp"]}, TypeError, "scores one network and one set; pass network=, and leave networks out"),
        ({"network": "all"}, ValueError, "scores one network, such as 'convnet'; got network='all'"),
        ({"ipc": [1, 2]}, TypeError, r"ipc should be one number of images per class; got \[1, 2\]"),
        ({"seed_count": 3}, TypeError, "seed_count"),
        ({"teacher": "resnet18"}, TypeError, "teacher should be a Teacher.*got 'resnet18'"),
    ],
)
def test_bad_arguments_are_refused(toy, small, options, error, message):
    with pytest.raises(error, match=message):
        dd_ranking(small, toy, **{**QUICK, **options})


def test_a_teacher_with_other_classes_is_refused(toy, small):
    with pytest.raises(ValueError, match="lion"):
        dd_ranking(small, toy, teacher=Teacher(by_means, ["lion", "tiger", "bear"]), **QUICK)


def test_the_table_and_the_records_say_what_is_compared(toy, small):
    scores = dd_ranking(small, toy, full_accuracy=1.0, **{**QUICK, "epochs": 1})
    lines = str(scores).splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["score", "HLR", "IOR", "LRS", "ARS"]
    assert max(map(len, lines)) <= 80
    assert "full - random_ipc2; lower is better" in " ".join(str(scores).split())
    records = json.loads(scores.to_json())
    assert [record["score"] for record in records] == ["HLR", "IOR", "LRS", "ARS"]
    assert records[0]["low"] <= records[0]["value"] <= records[0]["high"]
    assert 0 <= records[2]["value"] <= 1


def test_teacher_none_is_the_one_in_memory(toy):
    small = quick_method("rded", cache=False).condense(toy)
    scores = dd_ranking(small, toy, teacher=None, full_accuracy=0.75, **{**QUICK, "epochs": 1})
    assert scores.ior.baseline == "random (soft labels)"


def test_networks_with_and_without_augmentation_have_the_rate_that_is_given(toy, small, monkeypatch):
    trainings = watch_trainings(monkeypatch)
    dd_ranking(small, toy, full_accuracy=1.0, **{**QUICK, "lr": 0.5, "epochs": 1})
    assert [t.recipe.lr for t in trainings] == [0.5] * 8


def test_weight_is_that_of_the_first_term_of_both_scores():
    def table(**accuracies):
        conditions = (10, "convnet-w8", "dsa", None, 300, 300)
        return Evaluation(tuple(Score(name, *conditions, (a, a), (0, 1), 4.2) for name, a in accuracies.items()))

    augmented, plain = table(own=0.5, random=0.4, full=0.9), table(own=0.45, random=0.25)
    scores = _ranking(augmented, plain, None, 0.25, soft=False)
    assert scores.lrs == pytest.approx(exponential_score(0.25 * 0.1 - 0.75 * 0.4))
    assert scores.ars == pytest.approx(exponential_score(0.25 * 0.1 + 0.75 * 0.2))
