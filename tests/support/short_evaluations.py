"""Short evaluations for the tests of `evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from datasets import ClassLabel, Dataset, Features, Image

import hf_condense.evaluation.trials
import hf_condense.networks.training
from hf_condense import evaluate
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from tests.support.condensed_sets import make_set

QUICK = {"networks": "convnet-w8-d1", "recipe": "dc", "epochs": 2, "progress": False}


def run(train, test, **options) -> Evaluation:
    return evaluate(train, test, **{**QUICK, **options})


class Training(NamedTuple):
    """One call of `train_network`: its arguments, and the weights before and after it."""

    data: TrainingSet
    recipe: TrainingRecipe
    key: tuple[object, ...]
    before: torch.Tensor
    after: torch.Tensor


def watch_trainings(monkeypatch) -> list[Training]:
    """Return a list to which every call of `train_network` is appended."""
    trainings: list[Training] = []
    original = hf_condense.networks.training.train_network

    def weights(net) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    def watched(net, data, recipe, *key, **options):
        before = weights(net)
        updates = original(net, data, recipe, *key, **options)
        trainings.append(Training(data, recipe, key, before, weights(net)))
        return updates

    monkeypatch.setattr(hf_condense.evaluation.trials, "train_network", watched)
    return trainings


def rows_of(evaluation: Evaluation) -> dict[str, Score]:
    return {score.set: score for score in evaluation.scores}


def relabelled(ds: Dataset, names: list[str]) -> Dataset:
    """Return the same pictures and class names with the names in another order."""
    old = ds.features["label"].names
    columns = {"image": ds["image"][:], "label": [names.index(old[label]) for label in ds["label"]]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def synthetic(toy, *, factor=1, recipe_changes=None, **tensors) -> CondensedDataset:
    """Return a set of one synthetic image per class of the toy set, with optional tensors."""
    names = toy.features["label"].names
    base = make_set(class_names=names, ipc=1, factor=factor, label_values=[0, 1, 2])
    if "images" in tensors:
        tensors["stored"] = {"images": tensors.pop("images")}
    exact = replace(base.synthetic, **tensors)
    recipe = replace(base.recipe, **(recipe_changes or {}))
    return CondensedDataset.from_parts(decoded_rows(exact, recipe), exact, recipe, toy)
