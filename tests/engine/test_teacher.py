"""Soft labels: a trained network gives them; they are stored, loaded and used in training."""

from pathlib import Path

import datasets
import pytest
import torch

from hf_condense import CondensedFormatError, load_condensed
from hf_condense.cli.text import facts_table
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.recipe import Recipe
from hf_condense.engine import soft_labels, trained_networks
from hf_condense.engine.soft_labels import teacher_facts
from hf_condense.engine.trained_networks import network_key, training_set_without
from hf_condense.methods.mtt import TrajectoryMatching
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source import class_source
from hf_condense.source.load import load_source
from hf_condense.testing import law_resume, quick_method, toy_dataset
from tests.support.short_evaluations import run, watch_trainings
from tests.support.trajectory_step import observe

SOFT = {"soft_labels": "teacher", "temperature": 2.0, "teacher_updates": 40}


@pytest.mark.parametrize("method", ["dm", "m3d", "dc", "dsa"])
def test_hard_labels_are_the_default(method: str) -> None:
    small = quick_method(method).condense(toy_dataset())
    assert small.synthetic.soft_labels is None
    assert "soft_label" not in small.column_names
    assert small.recipe.temperature is None


@pytest.mark.parametrize("early", [False, True])
def test_teacher_that_diverged_raises_value_error(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "network_logits", lambda network, rows: network(rows) / 0.0)
    with pytest.raises(
        ValueError, match=r"the logits of the teacher, convnet-w8 after \d+ updates, are NaN or infinite"
    ):
        quick_method("dm", **SOFT, early_teacher=early).condense(toy_dataset())


@pytest.mark.parametrize("factor", [1, 2])
def test_teacher_predicts_the_classes_of_the_finished_images(factor: int) -> None:
    small = quick_method("dm", **SOFT).condense(toy_dataset(names=("a", "b", "c")), factor=factor)
    images, labels = small.synthetic.decoded()
    assert small.synthetic.soft_labels.shape == (len(images), 3)
    assert (small.synthetic.soft_labels.argmax(1) == labels).float().mean() > 0.6
    assert small.recipe.temperature == 2.0
    rows = small.with_format("torch")
    assert (rows["soft_label"][:].argmax(1) == rows["label"][:]).float().mean() > 0.6


def test_soft_labels_are_the_logits_of_the_stored_images() -> None:
    """The teacher is the network of the same seed, trained on the source. The test trains it a second time."""
    runs = []
    bench = quick_method("dm", **SOFT, callbacks=[lambda run, done, loss: runs.append(run)])
    small = bench.condense(toy_dataset(), factor=2)
    run = runs[0]
    teacher = run.factory.build(run.seed, "features")
    whole = TrainingSet(run.source, run.source.labels, run.num_classes)
    train_network(teacher, whole, RECIPES["dc"], run.seed, "features", max_updates=40)
    images, _ = small.synthetic.decoded()
    with torch.no_grad():
        expected = teacher.eval()(run.source.normalise(images))
    torch.testing.assert_close(small.synthetic.soft_labels, expected, rtol=1e-3, atol=1e-3)


def test_images_do_not_depend_on_labels_that_are_made_afterwards() -> None:
    hard, soft = (quick_method("dm", **options).condense(toy_dataset()) for options in ({}, SOFT))
    assert torch.equal(hard.synthetic.images, soft.synthetic.images)


@pytest.mark.parametrize("kind", ["teacher", "learned"])
def test_soft_labels_are_stored_and_evaluated(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = toy_dataset(names=("a", "b", "c"), rows=20)
    small = quick_method("dsa", **{**SOFT, "soft_labels": kind}).condense(ds)
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert torch.equal(loaded.synthetic.soft_labels, small.synthetic.soft_labels)
    trainings = watch_trainings(monkeypatch)
    run(small, ds, seeds=1, epochs=1, baselines=(), cache=False, compile=False)
    soft, hard = trainings
    assert torch.equal(soft.data.labels, small.synthetic.soft_labels)
    assert soft.data.temperature == small.recipe.temperature
    assert not hard.data.soft


def test_learned_labels_without_an_objective_for_them_raise_value_error() -> None:
    with pytest.raises(ValueError, match="soft_labels should be one of 'none', 'teacher'; got 'learned'"):
        quick_method("dm", soft_labels="learned").condense(toy_dataset())


EARLY = {**SOFT, "early_teacher": True}


def test_recipe_names_the_teacher_and_its_class_order(tmp_path: Path) -> None:
    ds = toy_dataset(names=("a", "b", "c"))
    small = quick_method("dm", **SOFT).condense(ds)
    teacher = small.recipe.teacher
    assert (teacher["network"], teacher["networks"], teacher["updates"], teacher["seed"]) == ("convnet-w8", 1, 40, 0)
    assert (teacher["classes"], teacher["held_out"]) == (["a", "b", "c"], 0)
    assert quick_method("dm", **SOFT, cache=False).condense(ds).recipe.teacher == teacher
    for options in ({"teacher_updates": 41}, {"seed": 1}):
        assert (
            quick_method("dm", **{**SOFT, **options}).condense(ds).recipe.teacher["content_hash"]
            != (teacher["content_hash"])
        )
    assert quick_method("dm").condense(ds).recipe.teacher is None
    folder = small.save_condensed(tmp_path)
    assert load_condensed(tmp_path).recipe.teacher == teacher
    line = f"convnet-w8 after 40 updates; seed 0, weights {teacher['content_hash'][:12]}"
    assert f"`{folder.name}`: the soft labels are logits of {line};" in (tmp_path / "README.md").read_text()
    assert line in facts_table(folder.name, small, read_facts(folder))


def test_recipe_states_the_updates_that_were_done() -> None:
    """The recipe of a teacher ends after 300 epochs: here one update each."""
    small = quick_method("dm", **{**SOFT, "teacher_updates": 1000}).condense(toy_dataset(rows=2))
    assert small.recipe.teacher["updates"] == 300


def test_teacher_of_another_form_in_a_recipe_raises_format_error() -> None:
    recipe = quick_method("dm", **SOFT).condense(toy_dataset()).recipe.to_dict()
    without_teacher = Recipe.from_dict({name: value for name, value in recipe.items() if name != "teacher"})
    assert (without_teacher.teacher, without_teacher.teacher_text) == (None, "")
    for change in ({"updates": "40"}, {"networks": 0}, {"classes": ["2", "1", "0"]}, {"content_hash": None}):
        with pytest.raises(CondensedFormatError, match="teacher should have network"):
            Recipe.from_dict({**recipe, "teacher": {**recipe["teacher"], **change}})


@pytest.mark.parametrize("cache", [True, False])
def test_early_teacher_is_the_best_of_its_states_on_held_out_rows(cache: bool, monkeypatch, caplog) -> None:
    """Repeat the choice in plain steps: train on the other rows, label, train a student, score it on held-out rows."""
    monkeypatch.setattr(class_source, "_HELD_OUT_SHARE", 2)
    monkeypatch.setattr(soft_labels, "_STUDENT_UPDATES", 12)
    runs = []
    caplog.set_level("INFO", "hf_condense")
    bench = quick_method("dm", **EARLY, steps=1, cache=cache, callbacks=[lambda run, done, loss: runs.append(run)])
    small = bench.condense(noisy_dataset())
    run, source = runs[0], runs[0].source
    held_out = []
    for c, count in source.counts.items():
        order = torch.randperm(count, generator=run.rng("held out", source.class_names[c]))
        held_out += sorted((order[: count // 2] + source.positions(c).start).tolist())
    seen = [i for i in range(60) if i not in held_out]
    rows, test = source.at(torch.tensor(seen)), source.at(torch.tensor(held_out))
    images = run.synthetic.all()[0].detach()
    scores, hashes, logits = {}, {}, {}
    for updates in (10, 20, 40):
        teacher = run.factory.build(run.seed, "features")
        states = []

        def record(states: list = states, teacher: torch.nn.Module = teacher) -> None:
            states.append({name: tensor.clone() for name, tensor in teacher.state_dict().items()})

        data = TrainingSet(rows, source.labels[seen], 3)
        train_network(teacher, data, RECIPES["dc"], run.seed, "early teacher", max_updates=40, on_update=record)
        teacher.load_state_dict(states[updates - 1])
        with torch.no_grad():
            logits[updates] = teacher.eval()(images)
        hashes[updates] = teacher_facts(run, [teacher.state_dict()], updates)["content_hash"]
        student = run.factory.build(run.seed, "student of the teacher")
        labelled = TrainingSet(images, logits[updates], 3, 2.0)
        train_network(student, labelled, RECIPES["dc"], run.seed, "early teacher", max_updates=12)
        with torch.no_grad():
            scores[updates] = float((student.eval()(test).argmax(1) == source.labels[held_out]).float().mean())
    assert len(set(scores.values())) > 1, "the test should tell the states apart"
    best = max(scores, key=scores.get)
    listing = ", ".join(f"{score:.1%} after {updates}" for updates, score in scores.items())
    assert f"held-out accuracies of students: {listing}" in caplog.text
    assert small.recipe.teacher["updates"] == best
    assert small.recipe.teacher["held_out"] == len(held_out)
    assert small.recipe.teacher["content_hash"] == hashes[best]
    torch.testing.assert_close(small.synthetic.soft_labels, logits[best], rtol=1e-3, atol=1e-3)


def test_rows_that_are_not_held_out_are_a_training_set() -> None:
    source = load_source(toy_dataset(rows=4, names=("a", "b", "c")), cache=False, progress=False)
    data = training_set_without(source, torch.tensor([0, 5]))
    seen = torch.tensor([1, 2, 3, 4, *range(6, 12)])
    assert len(data) == 10
    images, targets = data.batch(torch.tensor([3, 0]))
    assert torch.equal(images, source.at(seen[[3, 0]]))
    assert targets.argmax(1).tolist() == [1, 0]
    assert torch.equal(data.part(torch.tensor([5, 1])).images, source.at(seen[[5, 1]]))
    assert torch.equal(TrainingSet.joined([data, data]).labels, source.labels[seen].repeat(2))


def noisy_dataset() -> datasets.Dataset:
    """Return rows of which every fourth has the label of another class, so that long training does harm."""
    ds = toy_dataset(rows=20)
    labels = [(row["label"] + (i % 4 == 0)) % 3 for i, row in enumerate(ds)]
    return ds.remove_columns("label").add_column("label", labels)


def test_early_teacher_that_diverges_later_stops_before(monkeypatch: pytest.MonkeyPatch) -> None:
    original = soft_labels._early_states

    def spoilt(*args):
        states = original(*args)
        for count in list(states)[finite:]:
            states[count] = {name: torch.full_like(tensor, torch.nan) for name, tensor in states[count].items()}
        return states

    monkeypatch.setattr(soft_labels, "_early_states", spoilt)
    monkeypatch.setattr(soft_labels, "_student_accuracy", lambda run, data, rows: float(data.labels[0, 0] > 1e9))
    finite = 1
    small = quick_method("dm", **EARLY, steps=1, cache=False).condense(noisy_dataset())
    assert small.recipe.teacher["updates"] == 10
    finite = 0
    with pytest.raises(ValueError, match=r"the logits of the teacher, .* after 40 updates, are NaN or infinite"):
        quick_method("dm", **EARLY, steps=1, cache=False).condense(noisy_dataset())


def test_early_teacher_without_rows_to_hold_out_raises_value_error() -> None:
    losses: list[float] = []
    with pytest.raises(ValueError, match="no class has more than one row; pass early_teacher=False"):
        quick_method("dm", **EARLY, callbacks=[lambda run, t, loss: losses.append(loss)]).condense(
            toy_dataset(rows=1), 1
        )
    assert not losses, "it is known before the first step"


def test_class_of_one_row_is_seen_by_the_early_teacher() -> None:
    ds = toy_dataset(rows=8)
    ds = ds.select([i for i, row in enumerate(ds) if row["label"] != 2 or i < 3])
    assert quick_method("dm", **EARLY).condense(ds, 1).recipe.teacher["held_out"] == 2


@pytest.mark.parametrize("method", ["mtt", "dc"])
def test_early_teacher_gives_the_first_labels_of_a_resumed_run(method: str, monkeypatch) -> None:
    monkeypatch.setattr(soft_labels, "_STUDENT_UPDATES", 2)
    law_resume(
        quick_method(method, soft_labels="learned", teacher_updates=20, steps=3, early_teacher=True, temperature=2.0)
    )


@pytest.mark.parametrize("options", [{}, {"early_teacher": True}, {"soft_labels": "learned"}])
def test_random_rows_with_labels_of_the_same_teacher_stand_beside_the_set(options: dict) -> None:
    ds = toy_dataset(names=("a", "b", "c"), rows=20)
    small = quick_method("dsa", **{**SOFT, **options}, steps=1).condense(ds, 1)
    if options.get("soft_labels") != "learned":
        labels = small.labeller(small.synthetic.decoded()[0])
        torch.testing.assert_close(labels, small.synthetic.soft_labels, atol=1e-4, rtol=1e-4)
    table = run(small, ds, seeds=1, epochs=1, cache=False, compile=False)
    assert [score.set for score in table.scores][2:] == ["random", "random (soft labels)"]


def test_teacher_of_whitened_images_labels_no_pixels() -> None:
    small = quick_method("mtt", **SOFT, zca=True, pixel_range="free").condense(toy_dataset(), 1)
    assert small.synthetic.soft_labels is not None
    assert small.labeller is None


@pytest.mark.parametrize("early", [False, True])
def test_teacher_that_diverges_is_told_before_the_first_step(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(net: torch.nn.Module, *args: object, on_update=None, **options: object) -> int:
        with torch.no_grad():
            next(net.parameters()).fill_(torch.nan)
        for _ in range(40 if on_update else 0):
            on_update()
        return 40

    monkeypatch.setattr(soft_labels, "train_network", diverge)
    monkeypatch.setattr(trained_networks, "train_network", diverge)
    steps: list[int] = []
    options = {**SOFT, "early_teacher": early, "seed": 31}  # of which no weights are cached
    bench = quick_method("dm", **options, cache=True, callbacks=[lambda run, done, loss: steps.append(done)])
    with pytest.raises(ValueError, match=r"logits of the teacher, convnet-w8 after 40 updates, are NaN or infinite"):
        bench.condense(toy_dataset())
    assert not steps


def test_students_that_try_an_early_teacher_are_trained_at_the_temperature_of_the_labels(monkeypatch) -> None:
    temperatures: list[float] = []
    original = soft_labels._student_accuracy
    monkeypatch.setattr(
        soft_labels,
        "_student_accuracy",
        lambda run, data, held_out: temperatures.append(data.temperature) or original(run, data, held_out),
    )
    monkeypatch.setattr(soft_labels, "_STUDENT_UPDATES", 2)
    quick_method("dm", **EARLY, steps=1).condense(toy_dataset())
    assert set(temperatures) == {2.0}


def test_early_teachers_with_other_held_out_rows_are_cached_apart() -> None:
    runs = []
    quick_method("dm", steps=1, callbacks=[lambda run, done, loss: runs.append(run)]).condense(toy_dataset())
    one, other = (soft_labels._early_states(runs[0], 10, torch.tensor([row]))[10] for row in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_teacher_is_trained_once_without_a_cache_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    train = trained_networks.train_network

    def counted(*args, **options):
        trainings.append(1)
        return train(*args, **options)

    monkeypatch.setattr(trained_networks, "train_network", counted)
    datasets.disable_caching()
    try:
        quick_method("mtt", **SOFT).condense(toy_dataset())
        quick_method("dm", **SOFT).condense(toy_dataset())
    finally:
        datasets.enable_caching()
    assert len(trainings) == 2


def test_networks_of_whitened_images_and_of_other_versions_of_torch_have_their_own_key(monkeypatch) -> None:
    run = observe(TrajectoryMatching, t=0, pixel_range="free").run
    keys = [network_key(run, 3)]
    run.whiten()
    keys.append(network_key(run, 3))
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    keys.append(network_key(run, 3))
    assert len(set(keys)) == 3
