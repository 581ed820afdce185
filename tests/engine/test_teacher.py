"""Soft labels: a trained network gives them; they are stored, loaded and used in training."""

from pathlib import Path

import pytest
import torch

from hf_condense import evaluate, load_condensed
from hf_condense.networks.training import TrainingSet, train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.testing import quick_method, toy_dataset

SOFT = {"soft_labels": "teacher", "temperature": 2.0, "teacher_updates": 40}


@pytest.mark.parametrize("method", ["dm", "m3d", "dc", "dsa"])
def test_hard_labels_are_the_default(method: str) -> None:
    small = quick_method(method).condense(toy_dataset())
    assert small.synthetic.soft_labels is None
    assert "soft_label" not in small.column_names
    assert small.recipe.temperature is None


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
def test_soft_labels_are_stored_and_evaluated(kind: str, tmp_path: Path) -> None:
    ds = toy_dataset(names=("a", "b", "c"), rows=20)
    small = quick_method("dsa", **{**SOFT, "soft_labels": kind}).condense(ds)
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert torch.equal(loaded.synthetic.soft_labels, small.synthetic.soft_labels)
    table = evaluate(
        small,
        ds,
        networks="convnet-w8-d1",
        recipe="dc",
        epochs=5,
        seeds=2,
        baselines=(),
        progress=False,
        cache=False,
        compile=False,
    )
    hard = evaluate(
        quick_method("dsa").condense(ds),
        ds,
        networks="convnet-w8-d1",
        recipe="dc",
        epochs=5,
        seeds=2,
        baselines=(),
        progress=False,
        cache=False,
        compile=False,
    )
    assert table.to_records()[0]["mean"] != hard.to_records()[0]["mean"]


def test_learned_labels_without_an_objective_for_them_raise_value_error() -> None:
    with pytest.raises(ValueError, match="soft_labels should be one of 'none', 'teacher'; got 'learned'"):
        quick_method("dm", soft_labels="learned").condense(toy_dataset())
