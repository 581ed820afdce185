"""What a condensed set is worth: train fresh networks on it and on baselines, test them on real images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import datasets

from hf_condense.base.checks import integer, one_of
from hf_condense.base.devices import CompileOption
from hf_condense.base.processes import get_accelerator
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.scores import Evaluation
from hf_condense.engine.registry import list_methods
from hf_condense.evaluation.contenders import Baselines, eight_bit_contender, subject_contender
from hf_condense.evaluation.reader import Reader
from hf_condense.evaluation.selection import Selection
from hf_condense.evaluation.subject import eight_bit_view, read_subject
from hf_condense.evaluation.trials import Trials, run_trials
from hf_condense.networks.factory import NetworkSpec, network_factory
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe
from hf_condense.source.columns import check_dataset

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Evaluation", "evaluate"]


@plain_torch()
def evaluate(
    train: datasets.Dataset,
    test: datasets.Dataset,
    *,
    source: datasets.Dataset | None = None,
    networks: NetworkSpec | Sequence[NetworkSpec] = ("convnet",),
    recipe: str | TrainingRecipe = "dsa",
    epochs: int | None = None,
    max_updates: int | None = None,
    seeds: int | Sequence[int] = 5,
    baselines: str | Sequence[str] = ("random",),
    augment: str | None = None,
    eight_bit: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    cache: bool = True,
    compile: CompileOption = "auto",
    progress: bool = True,
    accelerator: Accelerator | None = None,
    seed: int = 0,
) -> Evaluation:
    """Train fresh networks on a set and on its baselines, all under one recipe, and test them on real images.

    The accuracy is that of the last epoch; nothing is chosen by looking at the test images. Networks of one seed start
    from the same weights on every set. Everything runs in float32, whatever state torch is in, and the networks are
    shared out over the processes. Every dataset is read once.

    Args:
        train: The set that is evaluated. A `CondensedDataset` is trained on with its exact floats, soft labels and
            learned learning rate, normalised as its recipe says; any other dataset with its pixels.
        test: Real images with classes of the same names, in any order. They are resized to the size of `train`'s.
        source: The real training set: baselines are drawn from it, and pixels normalised with its mean and std.
            Default: what `train` was made from, if that is known.
        networks: One or more networks: names such as `"convnet"`, `"convnet-w32"`, `"resnet18"`, or functions or
            classes that make a new one, called with those of `channels=, num_classes=, image_size=` that they take.
        recipe: How networks are trained: `"dc"` (300 epochs, no augmentation), `"dsa"` (1000 epochs, DSA augmentation),
            `"idc"` (1000 epochs, DSA augmentation and CutMix), or a `TrainingRecipe`.
        epochs: Epochs instead of the recipe's, >= 1; the schedule is scaled to them.
        max_updates: Cap on the updates of every network, >= 1; the schedule is scaled to it.
        seeds: Networks per set, >= 1, or a list of their seeds.
        baselines: What the set is compared with. `"random"`: random rows, redrawn for every seed, as many of each class
            as the set stores; for a set with a factor also as many as it decodes into. `"full"`: the whole source, for
            `max_updates` updates, else for as many as the set itself takes; its scores are cached. Coreset methods
            (`"herding"`, `"kcenter"`, ...) choose rows by the features of the first network.
        augment: Families of augmentation joined by `_`, or `"none"`. Default: the recipe's, without `flip` if the set
            was made without it. For other sets of digits pass `"color_crop_cutout_scale_rotate"`.
        eight_bit: Also train on the 8-bit images of a `CondensedDataset`, which are what `load_dataset` gives; their
            row is called `"<set> (8-bit)"`. Networks and draws are the same as on its floats. Coresets have 8-bit
            images anyway and get no second row.
        image_column: Image column of the datasets; default: the set's own, else the only Image column.
        label_column: Label column of the datasets; default: the set's own, else the only ClassLabel.
        cache: Keep decoded images and the scores of `"full"` under `$HF_HOME/condense`; obeys
            `datasets.disable_caching()`.
        compile: Compile the networks: True, False, or `"auto"`: on a CPU, when there is enough work to pay for it.
        progress: Show progress bars.
        accelerator: An `accelerate.Accelerator` to run on; default: the existing one, else a new one.
        seed: Seed of every draw, beside the networks' own.

    Returns:
        The table of accuracies: fractions, printed in per cent.

    Raises:
        TypeError: If `train`, `test` or `source` is no `Dataset`, or an option has the wrong type.
        ValueError: If a name is unknown, a number is out of range, a baseline lacks its source or enough rows in it,
            or `test` has a class that `train` does not know.

    References:
        Zhao et al., ICLR 2021 (`dc`, arXiv:2006.05929); Zhao and Bilen, ICML 2021 (`dsa`, arXiv:2102.08259); Kim et
        al., ICML 2022 (`idc`, arXiv:2205.14959).

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> ds = load_demo()
        >>> small = condense_dataset(ds["train"], "random", ipc=1, progress=False)
        >>> table = evaluate(small, ds["test"], networks="convnet-w4", recipe="dc", epochs=1, seeds=2, progress=False)
        >>> [(row["set"], row["n"]) for row in table.to_records()]
        [('random_ipc1', 2), ('random', 2)]
    """
    baseline_names = _baseline_names(baselines)
    source = _find_source(train, source, baseline_names)
    train, test = check_dataset(train, "train"), check_dataset(test, "test")
    training = _training_recipe(recipe, epochs, augment, train)
    if max_updates is not None:
        max_updates = integer("max_updates", max_updates, least=1)
    network_seeds = _network_seeds(seeds)
    specs = _network_specs(networks)
    accelerator = get_accelerator(accelerator)
    show_progress = progress and accelerator.is_local_main_process
    reader = Reader(image_column, label_column, cache, show_progress, accelerator.device)
    with accelerator.main_process_first():
        subject = read_subject(train, source, reader)
        test_images = subject.matching(test, "test", reader)
        real = subject.matching(source, "source", reader) if baseline_names and source is not None else None
    channels, height, width = subject.data.image_shape
    factories = [
        network_factory(spec, channels=channels, image_size=(height, width), num_classes=len(subject.class_names))
        for spec in specs
    ]
    floats = subject_contender(subject, training, max_updates)
    contenders = [floats]
    if eight_bit and (view := eight_bit_view(train, subject)) is not None:
        contenders.append(eight_bit_contender(floats, view))
    if real is not None and source is not None:
        selection = Selection(real.own, specs[0], seed, accelerator, cache, show_progress)
        real_sets = Baselines(subject, real, selection, training, max_updates, floats.updates, seed)
        contenders += real_sets.contenders(baseline_names)
    trials = [
        Trials(factory, test_images, contenders, network_seeds, seed, compile, cache and factory.named)
        for factory in factories
    ]
    return run_trials(trials, accelerator, show_progress)


def _training_recipe(
    recipe: str | TrainingRecipe, epochs: int | None, augment: str | None, train: datasets.Dataset
) -> TrainingRecipe:
    """Return the training recipe with what the caller changes in it, without flips if the set was made without them."""
    if isinstance(recipe, str):
        one_of("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    elif not isinstance(recipe, TrainingRecipe):
        raise TypeError(f"recipe should be one of {', '.join(RECIPES)} or a TrainingRecipe; got {recipe!r}")
    epochs = recipe.epochs if epochs is None else integer("epochs", epochs, least=1)
    if augment is None and recipe.augment is not None and isinstance(train, CondensedDataset):
        families = train.recipe.options.get("augment")
        if isinstance(families, str) and families not in ("", "none") and "flip" not in families.split("_"):
            augment = "_".join(name for name in recipe.augment.split("_") if name != "flip") or "none"
    return dataclasses.replace(recipe, epochs=epochs, augment=recipe.augment if augment is None else augment)


def _baseline_names(baselines: str | Sequence[str]) -> list[str]:
    """Check the names of the baselines, each once."""
    names = list(dict.fromkeys([baselines] if isinstance(baselines, str) else baselines))
    coresets = [info.name for info in list_methods() if info.kind == "coreset"]
    for name in names:
        one_of("baselines", name, dict.fromkeys(["random", "full", *coresets]))
    return names


def _find_source(
    train: datasets.Dataset, source: datasets.Dataset | None, baseline_names: Sequence[str]
) -> datasets.Dataset | None:
    """Return the real training set: the one that was given, else the one that the set carries in memory."""
    if source is None and isinstance(train, CondensedDataset):
        source = train.source
    if source is None and baseline_names:
        raise ValueError(
            f"the baselines {', '.join(baseline_names)} are drawn from the real training set, which is not known here "
            "(a set that was loaded does not carry it); pass source=, or baselines=() to go without"
        )
    return None if source is None else check_dataset(source, "source")


def _network_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seed of every network."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return list(range(integer("seeds", seeds, least=1)))
    values = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else []
    integers = all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)
    if not values or not integers or len(set(values)) < len(values):
        raise ValueError(f"seeds should be a number of networks, or their seeds, different integers; got {seeds!r}")
    return [int(value) for value in values]


def _network_specs(networks: NetworkSpec | Sequence[NetworkSpec]) -> list[NetworkSpec]:
    """Return the networks as a list."""
    specs: list[NetworkSpec] = [networks] if isinstance(networks, str) or callable(networks) else list(networks)
    if not specs:
        raise ValueError('networks should name at least one network, such as "convnet"; got none')
    return specs
