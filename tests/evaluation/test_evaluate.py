"""An evaluation is fair, repeatable and honest about what it compares."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import datasets
import pytest
import torch

import hf_condense.evaluation.trials
import hf_condense.networks.accuracy
from hf_condense import Teacher, condense_dataset, register_method
from hf_condense.base.paths import cache_folder
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.engine.method import MethodInfo, Selector
from hf_condense.engine.options import MethodConfig
from hf_condense.engine.registry import unregister_method
from hf_condense.methods.random import RandomRowsConfig
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.load import load_source
from tests.support.short_evaluations import relabelled, rows_of, run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trainings(monkeypatch):
    return watch_trainings(monkeypatch)


def test_a_separable_set_is_learned(toy, small):
    result = run(small, toy, epochs=60, seeds=2)
    assert rows_of(result)["random_ipc2"].mean > 0.95


def test_classes_are_matched_by_name(toy, small):
    turned = relabelled(toy, ["stripes", "ball", "cross"])
    plain = run(small, toy, epochs=30, seeds=2)
    other = run(small, turned, source=relabelled(toy, ["cross", "stripes", "ball"]), epochs=30, seeds=2)
    assert rows_of(plain)["random_ipc2"].accuracies == rows_of(other)["random_ipc2"].accuracies
    assert rows_of(other)["random"].mean > 0.9, "rows of the source are matched by name too"


def test_a_test_set_may_lack_classes_and_know_more_names(toy, small):
    part = toy.filter(lambda row: row["label"] != 1)
    names = ["none", *toy.features["label"].names]
    assert run(small, relabelled(part, names), epochs=30, seeds=1).scores[0].mean > 0.9


def test_the_test_set_decides_nothing(toy, small, trainings, monkeypatch):
    tests = []
    original = hf_condense.networks.accuracy.predictions
    monkeypatch.setattr(
        hf_condense.evaluation.trials, "predictions", lambda *args: tests.append(len(trainings)) or original(*args)
    )
    result = run(small, toy, seeds=2)
    assert tests == [1, 2, 3, 4], "one look at the test set for every network, after its last update"
    run(small, relabelled(toy.select(range(6)), ["stripes", "ball", "cross"]), seeds=2)
    for (*_, a), (*_, b) in zip(trainings[:4], trainings[4:], strict=True):
        assert torch.equal(a, b), "other test images should leave the trained networks as they are"
    assert {score.n for score in result.scores} == {2}


def test_the_same_seed_gives_the_same_bits(toy, small, trainings):
    first, again = (run(small, toy, recipe="dsa", seeds=2) for _ in range(2))
    other = run(small, toy, recipe="dsa", seeds=2, seed=1)
    states = [state for *_, state in trainings]
    assert all(torch.equal(a, b) for a, b in zip(states[:4], states[4:8], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(states[:4], states[8:], strict=True))
    assert not torch.equal(states[0], states[1]), "two seeds, two networks"
    timeless = [replace(score, seconds=0) for score in first.scores]
    assert timeless == [replace(score, seconds=0) for score in again.scores]
    assert other.scores[0].seeds == (0, 1)


def test_listed_seeds_train_the_same_networks(toy, small):
    counted = rows_of(run(small, toy, seeds=3))
    listed = rows_of(run(small, toy, seeds=[2, 0]))
    for name, score in listed.items():
        assert score.seeds == (2, 0)
        assert score.accuracies == (counted[name].accuracies[2], counted[name].accuracies[0])


def test_epochs_and_updates_are_counted(toy, small):
    by_epochs = rows_of(run(small, toy, seeds=1, epochs=7, baselines=("random", "full"), cache=False))
    assert {name: (s.updates, s.epochs, s.rows) for name, s in by_epochs.items()} == {
        "random_ipc2": (7, 7, 6),
        "random": (7, 7, 6),
        "full": (7, 7, 36),
    }
    capped = rows_of(run(small, toy, seeds=1, epochs=7, max_updates=3, baselines=()))
    assert (capped["random_ipc2"].updates, capped["random_ipc2"].epochs) == (3, 3)
    tiny = TrainingRecipe("tiny", epochs=4, batch_size=4)
    by_recipe = rows_of(run(small, toy, recipe=tiny, epochs=None, seeds=1, baselines="full", cache=False))
    assert (by_recipe["random_ipc2"].updates, by_recipe["full"].updates) == (8, 8), "as many as the set itself takes"
    assert by_recipe["full"].epochs == pytest.approx(8 / 9, abs=0.01)


def test_random_rows_are_balanced_and_redrawn(toy, trainings):
    uneven = condense_dataset(toy, "random", ipc={"ball": 3, "cross": 1, "stripes": 2}, progress=False)
    run(uneven, toy, seeds=4, epochs=1)
    draws = [data for data, *_ in trainings[4:]]
    assert [Counter(data.labels.tolist()) for data in draws] == [{0: 3, 1: 1, 2: 2}] * 4
    assert len({data.images.sum().item() for data in draws}) == 4
    whole = load_source(toy, cache=False, progress=False)
    real = {
        image.numpy().tobytes(): c for image, c in zip(whole.at(torch.arange(36)), whole.labels.tolist(), strict=True)
    }
    for data in draws:
        labels = [real[image.numpy().tobytes()] for image in data.images]
        assert labels == data.labels.tolist(), "real rows, each with its own label"
        assert len({image.numpy().tobytes() for image in data.images}) == 6, "no row twice"


def test_factor_adds_random_rows_of_the_decoded_count(toy):
    small = synthetic(toy, factor=2)
    scores = rows_of(run(small, toy, seeds=1))
    rows = {name: s.rows for name, s in scores.items()}
    assert rows == {"dm_ipc1_f2": 12, "random": 3, "random x4": 12, "random as patches4": 12}


def test_random_rows_are_never_more_than_a_class_has(toy):
    small = synthetic(toy, factor=4)
    assert rows_of(run(small, toy, seeds=1))["random x16"].rows == 36


def test_exact_floats_are_used(toy, trainings):
    images = torch.linspace(-0.5, 1.5, 3 * 3 * 64).reshape(3, 3, 8, 8)
    small = synthetic(toy, images=images, recipe_changes={"pixel_range": "free", "mean": [0.1, 0.2, 0.3]})
    run(small, toy, seeds=1, baselines=())
    data = trainings[0][0]
    torch.testing.assert_close(data.images, (images - torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / 0.25)
    assert data.labels.tolist() == [0, 1, 2]


def test_soft_labels_and_learned_rate_are_used(toy, trainings):
    logits = torch.tensor([[5.0, 1, 0], [0, 1, 5], [1, 0, 5]])
    small = synthetic(toy, soft_labels=logits, student_lr=torch.tensor(0.0125), recipe_changes={"temperature": 3.0})
    run(small, toy, seeds=1)
    (data, recipe, *_), (hard, *_), (random, plain, *_) = trainings
    assert torch.equal(data.labels, logits)
    assert data.temperature == 3
    assert (recipe.lr, plain.lr) == (pytest.approx(0.0125), 0.01)
    assert not random.soft
    assert torch.equal(hard.images, data.images)
    assert hard.labels.tolist() == [0, 1, 2], "the class of each image, whatever its soft label says"


def test_pixels_are_normalised_with_the_source(toy, small, trainings, caplog):
    view = small.select(range(len(small)))
    assert not isinstance(view, CondensedDataset)
    run(view, toy, source=toy, seeds=1)
    constants = load_source(toy, cache=False, progress=False).mean
    assert torch.equal(trainings[0][0].images.mean, constants)
    assert "own mean and std" not in caplog.text
    run(view, toy, baselines=(), seeds=1)
    assert "own mean and std" in caplog.text
    assert "source=" in caplog.text
    assert not torch.equal(trainings[2][0].images.mean, constants)


def test_soft_labels_of_a_plain_dataset_are_not_used_and_a_warning_says_so(toy, small, trainings, caplog):
    view = small.select(range(len(small))).add_column("soft_label", [[0.0, 1.0, 2.0]] * len(small))
    run(view, toy, source=toy, seeds=1, baselines=())
    assert "'soft_label', which is not used" in caplog.text
    assert not trainings[0][0].soft


def test_the_view_of_a_coreset_is_trained_on_as_its_floats_are(toy, small, trainings):
    exact = run(small, toy, seeds=1)
    view = run(small.select(range(len(small))), toy, source=toy, seeds=1)
    own, random, seen, again = (training.data.part(torch.arange(6)) for training in trainings)
    assert torch.equal(own.labels, seen.labels)
    torch.testing.assert_close(own.images, seen.images, rtol=0, atol=1e-4)
    assert torch.equal(random.images, again.images)
    assert rows_of(view)["random"].accuracies == rows_of(exact)["random"].accuracies


@pytest.mark.parametrize(
    ("used", "given", "expected"),
    [
        ("color_crop", None, "color_crop_cutout_scale_rotate"),
        ("color_flip", None, "color_crop_cutout_flip_scale_rotate"),
        ("none", None, "color_crop_cutout_flip_scale_rotate"),
        (None, None, "color_crop_cutout_flip_scale_rotate"),
        ("color_crop", "flip", "flip"),
        ("color_crop", "none", None),
    ],
)
def test_flips_follow_the_set(toy, used, given, expected):
    options = {} if used is None else {"augment": used}
    small = synthetic(toy, recipe_changes={"options": options})
    result = run(small, toy, recipe="dsa", augment=given, seeds=1, epochs=1)
    assert {score.augment for score in result.scores} == {expected}


def test_dc_stays_without_augmentation(toy):
    small = synthetic(toy, recipe_changes={"options": {"augment": "color"}})
    assert run(small, toy, seeds=1).scores[0].augment is None


def test_scores_of_the_full_source_are_cached(toy, small, trainings):
    options = {"baselines": "full", "seeds": [11, 12]}
    first = run(small, toy, **options)
    assert len(trainings) == 4
    again = run(small, toy, **options)
    assert len(trainings) == 6, "only the set itself is trained on again"
    assert rows_of(again)["full"] == rows_of(first)["full"]
    misses = [{"seed": 5}, {"epochs": 3}, {"recipe": "dsa"}, {"networks": "convnet-w4-d1"}, {"cache": False}]
    for number, change in enumerate(misses, start=1):
        run(small, toy, **options, **change)
        assert len(trainings) == 6 + 4 * number, f"{change} should train anew"
    run(small, toy.select(range(9)), source=toy, **options)
    assert len(trainings) == 30, "another test set should train anew"
    datasets.disable_caching()
    try:
        run(small, toy, **options)
    finally:
        datasets.enable_caching()
    assert len(trainings) == 34


def test_cache_that_cannot_be_written_or_read_costs_no_score(toy, small, trainings, monkeypatch, caplog):
    options = {"baselines": "full", "seeds": [31]}
    run(small, toy, seeds=1, baselines=())  # decoded images are in the cache from now on
    trainings.clear()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse_to_sync)
        first = run(small, toy, **options)
    assert len(trainings) == 2
    assert "no space left while writing" in caplog.text
    assert "The score is used, but not cached" in caplog.text
    assert rows_of(run(small, toy, **options))["full"].accuracies == rows_of(first)["full"].accuracies
    assert len(trainings) == 4, "nothing had been cached"
    caplog.clear()
    for file in cache_folder("evaluations").glob("*.json"):
        file.write_text("{")
    assert rows_of(run(small, toy, **options))["full"].accuracies == rows_of(first)["full"].accuracies
    assert len(trainings) == 6
    assert "in the cache cannot be read" in caplog.text
    assert rows_of(run(small, toy, **options))["full"].accuracies == rows_of(first)["full"].accuracies
    assert len(trainings) == 7, "the damaged file should have been replaced"


def refuse_to_sync(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("together", [False, True])
def test_networks_that_diverge_are_told(toy, small, together, monkeypatch, caplog):
    monkeypatch.setattr("hf_condense.networks.network_stack._SLOWER_TOGETHER", set() if together else {"cpu"})
    diverging = TrainingRecipe("wild", epochs=20, batch_size=256, lr=1e30, momentum=0.9)
    run(small, toy, recipe=diverging, epochs=None, seeds=2, baselines=(), cache=False)
    told = [message for message in caplog.messages if "diverged" in message]
    assert len(told) == 1
    assert told[0].startswith("2 of 2 networks trained on 'random_ipc2' diverged: their weights are not finite")
    caplog.clear()
    run(small, toy, seeds=2, baselines=(), cache=False)
    assert "diverged" not in caplog.text


def test_training_rows_as_test_rows_are_told(toy, caplog):
    small = condense_dataset(toy.select(range(30)), "random", ipc=1, label_column="label", progress=False)
    run(small, toy, seeds=1, epochs=1)
    assert "the test images are those" not in caplog.text
    run(small, toy.select(range(30)), seeds=1, epochs=1)
    assert "the test images are those that the set was made from" in caplog.text


def test_test_rows_that_are_among_the_training_rows_are_counted(toy, small, caplog):
    run(small, toy.select(range(16, 36)), source=toy.select(range(26)), seeds=1, epochs=1)
    assert "10 of 20 test images are in the real training set, too" in caplog.text
    caplog.clear()
    run(small, toy.select(range(26, 36)), source=toy.select(range(26)), seeds=1, epochs=1)
    assert "in the real training set" not in caplog.text


def fulls(trainings) -> int:
    """Return how many networks were trained on all 36 rows."""
    return sum(len(training.data) == 36 for training in trainings)


@pytest.mark.parametrize("change", [{"mean": [0.4, 0.5, 0.6]}, {"std": [0.2, 0.3, 0.4]}])
def test_scores_of_the_full_source_in_another_normalisation_are_not_taken(toy, trainings, change):
    options = {"baselines": "full", "seeds": [21]}
    run(synthetic(toy), toy, **options)
    before = fulls(trainings)
    for _ in range(2):
        run(synthetic(toy, recipe_changes=change), toy, **options)
    assert fulls(trainings) == before + 1, "once, and from then on it is in the cache"


def test_scores_of_the_full_source_under_another_whitening_are_not_taken(toy, trainings):
    identity, mean = torch.eye(3 * 8 * 8), torch.full((3 * 8 * 8,), 0.5)
    sets = [
        synthetic(toy),
        *(synthetic(toy, zca_matrix=scale * identity, zca_mean=mean) for scale in (1, 2)),
        synthetic(toy, zca_matrix=identity, zca_mean=mean / 2),
    ]
    for small in sets * 2:
        run(small, toy, baselines="full", seeds=[22])
    assert fulls(trainings) == 4


def test_a_teacher_of_pixels_is_refused_for_a_whitened_set(toy):
    whitening = {"zca_matrix": torch.eye(3 * 8 * 8), "zca_mean": torch.full((3 * 8 * 8,), 0.5)}
    small = synthetic(toy, **whitening)
    teacher = Teacher(lambda images: torch.zeros(len(images), 3), small.recipe.class_names)
    with pytest.raises(ValueError, match=r"the set is whitened \(zca=True\); leave out teacher and relabel"):
        run(small, toy, teacher=teacher, baselines=())


def test_scores_of_the_full_source_for_other_outputs_are_not_taken(toy, small, trainings):
    names = toy.features["label"].names
    other = condense_dataset(relabelled(toy, [names[i] for i in (1, 2, 0)]), "random", ipc=2, progress=False)
    scores = [rows_of(run(s, toy, source=toy, baselines="full", seeds=[23]))["full"] for s in (small, other, small)]
    assert fulls(trainings) == 2
    assert scores[0] == scores[2]


@pytest.mark.parametrize(("cap", "expected"), [(None, (3, 3)), (10, (3, 10)), (2, (2, 2))])
def test_the_full_source_gets_the_updates_of_the_set_unless_the_caller_says_how_many(toy, small, cap, expected):
    """In three epochs of batches of six rows, the set has 3 updates, and the source would have 18."""
    recipe = TrainingRecipe("short", epochs=3, batch_size=6)
    scores = rows_of(run(small, toy, recipe=recipe, epochs=None, max_updates=cap, baselines="full", seeds=1))
    assert (scores["random_ipc2"].updates, scores["full"].updates) == expected


def test_full_source_of_fewer_rows_than_the_set_decodes_into_gets_as_many_updates(toy, small):
    """In two epochs of batches of eight rows, a set of 36 rows has 10 updates, and a source of 4 would have 2."""
    recipe = TrainingRecipe("short", epochs=2, batch_size=8)
    few = toy.select([toy["label"][:].index(c) for c in range(3)] + [35])
    scores = rows_of(run(toy, toy, source=few, recipe=recipe, epochs=None, baselines="full", seeds=1))
    assert (scores["train"].updates, scores["full"].updates, scores["full"].epochs) == (10, 10, 10)
    capped = rows_of(run(small, toy, recipe=recipe, epochs=None, max_updates=50, baselines="full", seeds=1))
    assert (capped["random_ipc2"].updates, capped["full"].updates) == (2, 10), "a cap is no aim"


class FirstRows(Selector[MethodConfig]):
    """Takes the first rows of each class."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="first",
        title="First rows",
        kind="coreset",
        summary="-",
        paper="-",
        authors="-",
        venue="-",
        year=2026,
        link="https://example.org",
        cost="none",
    )
    Config = RandomRowsConfig

    def select(self, features, n, generator):
        return torch.arange(n)


def test_any_coreset_method_can_be_a_baseline(toy, small, trainings):
    register_method(FirstRows)
    try:
        scores = rows_of(run(small, toy, baselines=("random", "first"), seeds=2))
    finally:
        unregister_method("first")
    assert list(scores) == ["random_ipc2", "random", "first"]
    source = load_source(toy, cache=False, progress=False)
    first = torch.tensor([p for c in source.classes for p in list(source.positions(c))[:2]])
    torch.testing.assert_close(trainings[4][0].images, source.at(first))
    assert trainings[4][0].labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_teacher_that_labels_every_update_sees_valid_pixels(toy):
    seen = []

    def label(pixels):
        seen.append(pixels)
        return pixels.mean((2, 3))

    images = torch.linspace(-0.5, 1.5, 3 * 3 * 64).reshape(3, 3, 8, 8)
    small = synthetic(toy, images=images, recipe_changes={"pixel_range": "free"})
    teacher = Teacher(label, small.recipe.class_names)
    run(small, toy, teacher=teacher, relabel=True, seeds=1, epochs=1, baselines=())
    pixels = torch.cat(seen)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)


def test_another_seed_draws_other_random_rows(toy, small, trainings):
    for seed in (0, 1):
        run(small, toy, seeds=1, epochs=1, seed=seed)
    (_, one, _, other) = (training.data.images for training in trainings)
    assert not torch.equal(one, other)
