"""Parts of a set, hard labels beside soft ones, and learning rates chosen on held-out training rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import hf_condense.evaluation.trials
from hf_condense import Teacher, combine_condensed, condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.scores.records import groups_of
from hf_condense.evaluation.draws import LabelledRows
from hf_condense.evaluation.request import Request
from hf_condense.networks.factory import list_networks
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.load import load_source
from tests.support.short_evaluations import run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")
SOFT = {"soft_labels": torch.eye(3), "recipe_changes": {"temperature": 2.0}}


@pytest.fixture
def trainings(monkeypatch):
    return watch_trainings(monkeypatch)


@pytest.fixture
def tested(monkeypatch):
    """The sources that networks are tested on, in turn."""
    sources = []
    original = hf_condense.evaluation.trials.predictions
    monkeypatch.setattr(
        hf_condense.evaluation.trials, "predictions", lambda net, test: sources.append(test) or original(net, test)
    )
    return sources


def pixels_of(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_hard_labels_stand_beside_soft_ones_under_the_same_training(toy, trainings):
    small = synthetic(toy, student_lr=torch.tensor(0.5), **SOFT)
    result = run(small, toy, seeds=[4], recipe="dsa")
    assert [s.set for s in result.scores] == ["dm_ipc1", "dm_ipc1 (hard labels)", "random"]
    soft, hard, _ = trainings
    assert soft.recipe == hard.recipe
    assert (soft.key, hard.data.soft, hard.data.temperature) == (hard.key, False, 1.0)
    assert torch.equal(soft.before, hard.before)
    assert not torch.equal(soft.after, hard.after)
    roles = groups_of(small.with_evaluation(result).recipe)
    assert list(roles[0]) == ["exact floats", "exact floats, hard labels", "random rows"]


def test_a_set_with_hard_labels_gets_no_second_row(toy, small):
    assert [s.set for s in run(small, toy, seeds=1).scores] == ["random_ipc2", "random"]


def test_a_coreset_is_cut_to_its_first_rows_and_so_are_its_baselines(toy, small, trainings):
    options = {"seeds": 1, "baselines": ("random", "full", "herding"), "cache": False}
    result = run(small, toy, ipc=[2, 1], **options)
    rows = [(s.set, s.ipc, s.rows) for s in result.scores]
    assert rows == [
        ("random_ipc2", 1, 3),
        ("random", 1, 3),
        ("herding", 1, 3),
        ("random_ipc2", 2, 6),
        ("random", 2, 6),
        ("full", None, 36),
        ("herding", 2, 6),
    ]
    first, random, herding, whole, more_random, _, more_herding = (training.data for training in trainings)
    assert torch.equal(first.images, whole.images[::2])
    assert first.labels.tolist() == [0, 1, 2]
    assert pixels_of(random.images) < pixels_of(more_random.images)
    assert pixels_of(herding.images) < pixels_of(more_herding.images)
    alone = run(small, toy, **options)
    assert [s.accuracies for s in alone.scores] == [s.accuracies for s in result.scores[3:]]
    assert "ipc" in str(result).splitlines()[0].split()
    assert "ipc" not in str(alone).splitlines()[0].split()
    assert [gap.mean for gap in result.differences()] == [
        pytest.approx(result.score(name, ipc=n).mean - result.score("random", ipc=n).mean)
        for name, n in (("random_ipc2", 1), ("herding", 1), ("random_ipc2", 2), ("herding", 2))
    ]


def test_a_part_of_a_set_in_another_form_has_the_rows_of_its_budget(toy, trainings):
    form = {"storage": "dct", "expand": 4, "network": "convnet-w4", "steps": 1, "batch_real": 2}
    small = condense_dataset(toy, "dm", ipc=2, progress=False, **form)
    result = run(small, toy, ipc=1, seeds=1, eight_bit=True)
    rows = {s.set: s.rows for s in result.scores}
    name = small.recipe.config_name
    assert rows == {name: 12, f"{name} (8-bit)": 12, "random": 3, "random x4": 12, "random as dct4": 12}
    whole = run(small, toy, seeds=1, baselines=())
    images, labels = trainings[-1].data.images, trainings[-1].data.labels
    for c in range(3):
        part = trainings[0].data.images[trainings[0].data.labels == c]
        assert torch.equal(part, images[labels == c][:4])
    assert (whole.scores[0].rows, result.scores[0].ipc) == (24, 1)


def test_classes_of_a_plain_set_give_their_first_rows(toy, trainings):
    run(toy.select(range(9)), toy, source=toy, ipc=1, seeds=1, baselines=())
    source = load_source(toy.select(range(3)), cache=False, progress=False)
    real = load_source(toy, cache=False, progress=False)
    expected = (source.images / 255 - real.mean.reshape(-1, 1, 1)) / real.std.reshape(-1, 1, 1)
    torch.testing.assert_close(trainings[0].data.images, expected)


def test_a_card_shows_the_whole_set_only(toy, small):
    measured = small.with_evaluation(run(small, toy, ipc=[1, 2], seeds=1))
    (group,) = groups_of(measured.recipe)
    assert {record["ipc"] for record in group.values()} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 3}, "ipc should be at most 2, which is what 'random_ipc2' stores of a class; got 3"),
        ({"ipc": [1, 0]}, "ipc should be at least 1; got 0"),
        ({"ipc": ()}, "ipc should be a number of images per class"),
        ({"lr": 0}, "lr should be larger than 0; got 0"),
        ({"lr": [0.1, float("nan")]}, "lr should be larger than 0; got nan"),
        ({"lr": ()}, "lr should be a learning rate, several to choose from, or 'search'; got none"),
        ({"lr": "serach"}, "lr should be a number, a list of numbers or 'search'; got 'serach'"),
    ],
)
def test_bad_parts_and_rates_are_refused_with_what_would_be_right(toy, small, options, message):
    with pytest.raises(ValueError, match=message):
        run(small, toy, **options)


@pytest.mark.parametrize("options", [{"ipc": "2"}, {"ipc": 1.0}, {"lr": ["0.1"]}, {"lr": True}])
def test_parts_and_rates_of_another_type_are_refused(toy, small, options):
    with pytest.raises(TypeError, match=f"{next(iter(options))} should be "):
        run(small, toy, **options)


def test_all_stands_for_every_kind_of_network():
    checked = Request.check(
        networks="all",
        recipe="dc",
        epochs=None,
        max_updates=None,
        seeds=1,
        baselines=(),
        augment=None,
        compile=False,
        seed=0,
    )
    assert checked.networks == tuple(list_networks())
    assert {"mlp", "lenet", "alexnet", "vgg11", "resnet18"} < set(checked.networks)


def test_one_rate_is_that_of_every_set(toy, trainings):
    small = synthetic(toy, student_lr=torch.tensor(0.5))
    result = run(small, toy, lr=0.03, seeds=1)
    assert [training.recipe.lr for training in trainings] == [0.03, 0.03]
    assert [score.lr for score in result.scores] == [0.03, 0.03]


def test_rates_are_chosen_on_held_out_training_rows(toy, small, trainings, tested):
    test = toy.select(range(12))
    slow = TrainingRecipe("slow", epochs=30, lr=1e-7)
    result = run(
        small,
        test,
        source=toy,
        recipe=slow,
        epochs=None,
        lr=[1e-6, 0.05],
        seeds=2,
        baselines=("random", "full", "herding"),
    )
    assert [score.lr for score in result.scores] == [0.05] * 4
    assert sum("search" in training.key for training in trainings) == 4 * 3, "the rate of the recipe is tried, too"
    searched, scored = tested[:12], tested[12:]
    (held_out,) = {id(source): source for source in searched}.values()
    assert [len(source) for source in scored] == [12] * 8
    assert len(held_out) == 3
    assert set(held_out.rows.tolist()).isdisjoint(small.recipe.rows)
    held_out_pixels = pixels_of(held_out.at(torch.arange(3)))
    for training in trainings:
        rows = training.data.part(torch.arange(len(training.data)))
        assert pixels_of(rows.images).isdisjoint(held_out_pixels)
    assert result.score("full").rows == 33
    assert "lr 0.05" in str(result).splitlines()[-1], "it is the same for all"


@pytest.mark.parametrize("form", ["dataset", "tensors"])
def test_rates_are_not_chosen_on_rows_that_a_plain_set_has(form, toy, trainings, tested):
    part = toy.select(range(0, 36, 2))
    pixels = load_source(part, cache=False, progress=False)
    tensors = pixels.images.float() / 255, pixels.labels
    run(part if form == "dataset" else tensors, toy, source=toy, lr=[0.01, 0.05], seeds=1, baselines=())
    held_out = tested[0]
    own = {pixels.images[i].numpy().tobytes() for i in range(len(pixels))}
    rows = [held_out.images[i].numpy().tobytes() for i in range(len(held_out))]
    assert len(rows) == 3, "one of each class"
    assert own.isdisjoint(rows)


def test_rates_of_a_set_that_is_its_source_cannot_be_searched(toy):
    with pytest.raises(ValueError, match="no class of source has a row to spare that the set does not have"):
        run(toy, toy, source=toy, lr=[0.01, 0.05], seeds=1)


BEST_RATES = {
    ("convnet-w8", "random_ipc2"): {0.05},
    ("convnet-w8", "random"): {0.001},
    ("convnet-w4", "random_ipc2"): {0.001, 0.05, 0.01},  # a tie with the rate of the recipe
    ("convnet-w4", "random"): {0.05},
    ("convnet-w5", "random_ipc2"): {0.001},
    ("convnet-w5", "random"): set(),  # no rate is better than any other
}


def test_every_set_has_a_rate_of_its_own_under_each_kind_of_network(toy, small, trainings, monkeypatch):
    """Say which rates are best; among equals that of the recipe, 0.01, is kept."""

    def accuracy(kind, contender, lr, held_out, on_update):
        return 0.75 if lr in BEST_RATES[kind.factory.name, contender.name] else 0.5

    monkeypatch.setattr(hf_condense.evaluation.trials.Trials, "held_out_accuracy", accuracy)
    kinds = ("convnet-w8", "convnet-w4", "convnet-w5")
    result = run(small, toy, source=toy, networks=kinds, lr=[0.001, 0.05, 0.1], seeds=1)
    chosen = {(score.network, score.set): score.lr for score in result.scores}
    assert chosen == {pair: min(best) if len(best) == 1 else 0.01 for pair, best in BEST_RATES.items()}
    assert [training.recipe.lr for training in trainings] == [score.lr for score in result.scores]


def test_rate_at_which_a_network_diverges_is_never_chosen(toy, caplog):
    """A diverged network gives class 0 to every image, of which there are most here."""
    positions = [row for row, label in enumerate(toy["label"]) if label == 0 or row < 9]
    source = toy.select(positions)
    small = condense_dataset(source, "random", 1, progress=False)
    with caplog.at_level("INFO", "hf_condense"):
        result = run(small, source, source=source, lr=[1e-6, 1e30], seeds=1, epochs=4, baselines=())
    assert "diverged at 1e+30" in caplog.text
    assert result.scores[0].lr < 1


def test_other_test_rows_change_no_rate(toy, small):
    tables = [
        run(small, test, source=toy, lr=[0.001, 0.01, 0.1], seeds=1, epochs=4)
        for test in (toy.select(range(6)), toy.select(range(6, 36)))
    ]
    assert [s.lr for s in tables[0].scores] == [s.lr for s in tables[1].scores]


def test_a_learned_rate_is_one_of_the_candidates(toy, trainings):
    small = synthetic(toy, student_lr=torch.tensor(0.25))
    run(small, toy, lr=[1e-6, 1e-5], seeds=1, baselines=())
    assert [t.recipe.lr for t in trainings[:3]] == [0.25, 1e-6, 1e-5]


def test_a_search_without_a_source_is_explained(toy, small):
    loaded = CondensedDataset.from_parts(small.select(range(6)), small.synthetic, small.recipe)
    with pytest.raises(ValueError, match=r"searched on held-out rows of the real training set.*source=.*lr=0.01"):
        run(loaded, toy, lr="search", baselines=())


def test_a_search_for_a_coreset_of_several_sources_is_refused(toy):
    first, second = toy.select(range(0, len(toy), 2)), toy.select(range(1, len(toy), 2))
    parts = [condense_dataset(ds, "random", 1, seed=i, progress=False) for i, ds in enumerate((first, second))]
    with pytest.raises(ValueError, match=r"combined from several sources are numbered in each of these; pass one rate"):
        run(combine_condensed(parts), toy, source=toy, lr="search")


def test_a_search_for_a_coreset_of_another_source_is_refused(toy):
    coreset = condense_dataset(toy.select(range(3, len(toy))), "random", 1, progress=False)
    with pytest.raises(ValueError, match=r"not the dataset that this coreset was selected from; pass that one"):
        run(coreset, toy, source=toy, lr="search")


def test_augmentation_that_is_switched_off_is_recorded_as_none(toy, small):
    assert run(small, toy, recipe="dsa", augment="none", baselines=(), seeds=1).scores[0].augment is None


@pytest.mark.parametrize("relabel", [False, True])
def test_teacher_whose_logits_are_not_finite_is_refused(toy, small, relabel):
    names = toy.features["label"].names
    lost = Teacher(lambda images: torch.full((len(images), len(names)), -torch.inf), names, name="lost")
    with pytest.raises(ValueError, match="the teacher 'lost' gives logits that are NaN or infinite"):
        run(small, toy, teacher=lost, relabel=relabel, baselines=(), seeds=1)


def test_a_source_without_a_row_to_spare_is_refused(toy):
    source = toy.select(range(3))
    small = condense_dataset(source, "random", 1, progress=False)
    with pytest.raises(ValueError, match="no class of source has a row to spare"):
        run(small, toy, source=source, lr="search", baselines=())


def test_class_with_fewer_images_than_the_part_keeps_them_in_the_baseline_too(toy, trainings):
    uneven = condense_dataset(toy, "random", ipc={"ball": 3, "cross": 1, "stripes": 2}, progress=False)
    run(uneven, toy, ipc=2, seeds=1)
    assert [training.data.labels.bincount().tolist() for training in trainings] == [[2, 1, 2]] * 2


def test_random_rows_are_labelled_in_every_update_if_the_set_is() -> None:
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    drawn = TrainingSet(images, torch.tensor([0, 0, 1, 2]), 3)
    like = TrainingSet(images, torch.zeros(4, 3), 3, temperature=4.0, relabel=lambda seen: seen.mean((2, 3)))
    rows = LabelledRows(SimpleNamespace(for_seed=lambda seed: drawn), lambda seen: pytest.fail("labelled once"), like)
    data = rows.for_seed(0)
    assert data.relabel is like.relabel
    assert data.temperature == 4.0
    assert torch.equal(data.images, images)


def test_a_rate_that_is_given_twice_is_one_rate(toy, small, trainings):
    run(small, toy, lr=[0.03, 0.03], seeds=1, baselines=())
    assert [training.recipe.lr for training in trainings] == [0.03]


def test_set_that_was_made_without_flips_is_trained_on_without_augmentation_if_flips_are_all(toy):
    small = synthetic(toy, recipe_changes={"augment": "color_crop"})
    assert run(small, toy, recipe="soft", seeds=1, epochs=1, baselines=()).scores[0].augment is None
    assert run(small, toy, recipe="soft", augment="flip", seeds=1, epochs=1, baselines=()).scores[0].augment == "flip"


def test_sets_that_are_larger_than_the_evaluated_one_are_trained_on_in_whole_batches(toy, small, monkeypatch):
    chunks = []
    original = hf_condense.evaluation.trials.train_network

    def watched(*args, chunk, **options):
        chunks.append(chunk)
        return original(*args, chunk=chunk, **options)

    monkeypatch.setattr(hf_condense.evaluation.trials, "train_network", watched)
    run(small, toy, seeds=1, epochs=1, baselines=("full",), cache=False)
    assert len(chunks) == 2
    assert min(chunks) >= len(toy)


def test_cached_scores_are_those_of_as_many_updates(toy, small):
    options = {"seeds": 1, "epochs": 40, "baselines": "full"}
    assert run(small, toy, **options).score("full").mean > 0.9
    assert run(small, toy, max_updates=3, **options).score("full").updates == 3


def test_network_with_one_parameter_that_is_not_finite_has_diverged() -> None:
    net = torch.nn.Linear(2, 3)
    assert hf_condense.evaluation.trials._count_diverged(net, 1) == 0
    with torch.no_grad():
        net.bias[1] = torch.inf
    assert hf_condense.evaluation.trials._count_diverged(net, 1) == 1
