"""What a condensed set is worth: train fresh networks on it and on baselines, test them on real images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import datasets

from hf_condense.base.devices import CompileOption
from hf_condense.base.errors import did_you_mean
from hf_condense.base.processes import get_accelerator
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores import EIGHT_BIT, Evaluation
from hf_condense.engine.registry import list_methods
from hf_condense.evaluation.bench import Bench, run_benches
from hf_condense.evaluation.contenders import (
    Contender,
    Reader,
    Real,
    Subject,
    coreset,
    eight_bit_view,
    random_count,
    random_rows,
    read_subject,
)
from hf_condense.networks.factory import NetworkSpec, network_factory
from hf_condense.networks.training import TrainingSet
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe
from hf_condense.source.columns import check_dataset

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Evaluation", "evaluate"]


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

    The accuracy is that of the last epoch; the test images decide nothing. All sets share the networks' first weights
    and the order of draws of a seed. Everything runs in float32; the seeds are shared out over the processes.

    Args:
        train: What is evaluated. Of a `CondensedDataset` the exact floats, soft labels and learned learning rate are
            used, normalised as its recipe says; of any other dataset the pixels.
        test: Real images with classes of the same names, in any order. Resized to the size of `train`'s.
        source: The real training set: baselines are drawn from it, and pixels normalised with its mean and std.
            Default: what `train` was made from, if that is known.
        networks: One or more networks: names such as `"convnet"`, `"convnet-w32"`, `"resnet18"`, or callables.
        recipe: `"dc"` (300 epochs, no augmentation), `"dsa"` (1000 epochs, DSA augmentation), `"idc"` (1000 epochs,
            DSA augmentation and CutMix), or a `TrainingRecipe`.
        epochs: Scale the recipe to this many epochs, >= 1; its schedule is in fractions of the whole.
        max_updates: Cap the updates of every network, >= 1; the schedule shrinks with them.
        seeds: Networks per set, >= 1, or their seeds.
        baselines: `"random"` (rows redrawn for every seed, as many of each class as the set stores, and with a factor
            a second time as many as it decodes into), `"full"` (the whole source for `max_updates` updates, else for
            as many as the set itself takes; cached) and coreset methods (`"herding"`, `"kcenter"`, ...; features of the
            first network).
        augment: Families of augmentation joined by `_`, or `"none"`. Default: the recipe's, without `flip` if the set
            was made without it. For digits made in another way pass `"color_crop_cutout_scale_rotate"`.
        eight_bit: Also train on the 8-bit images of a `CondensedDataset`, which is what `load_dataset` gives, as
            `"<set> (8-bit)"`: the same networks and the same order of draws as on its floats. Real rows are 8-bit
            images themselves and get no second row.
        image_column: Image column of the datasets; default: the set's own, else the only Image column.
        label_column: Label column of the datasets; default: the set's own, else the only ClassLabel.
        cache: Keep decoded images and the scores of `"full"` under `$HF_HOME/condense`; obeys
            `datasets.disable_caching()`.
        compile: Compile the networks: True, False, or `"auto"`: on a CPU, when there is enough work to pay for it.
        progress: Show progress bars.
        accelerator: An `accelerate.Accelerator` to run on; default: the existing one, else a new one.
        seed: Seed of every draw, beside the networks' own.

    Returns:
        The table: accuracies are fractions, and print in per cent.

    Raises:
        TypeError: If `train`, `test` or `source` is no `Dataset`.
        ValueError: If a name is unknown, a number out of range, a baseline lacks its source, or `test` has a class that
            `train` does not know.

    Reference:
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
    compared = _baseline_names(baselines)
    source = _find_source(train, source, compared)
    train, test = check_dataset(train, "train"), check_dataset(test, "test")
    made = train.recipe if isinstance(train, CondensedDataset) else None
    settled = _settled(recipe, epochs, augment, made)
    _check_at_least_one("max_updates", max_updates)
    network_seeds = _seed_list(seeds)
    specs: list[NetworkSpec] = [networks] if isinstance(networks, str) or callable(networks) else list(networks)
    if not specs:
        raise ValueError('networks should name at least one network, such as "convnet"; got none')
    accelerator = get_accelerator(accelerator)
    shown = progress and accelerator.is_local_main_process
    reader = Reader(image_column, label_column, cache, shown, accelerator.device)
    with accelerator.main_process_first():
        subject = read_subject(train, source, reader)
        tested = subject.real(test, "test", reader)
        real = subject.real(source, "source", reader) if compared and source is not None else None
    channels, height, width = subject.data.image_shape
    factories = [
        network_factory(spec, channels=channels, image_size=(height, width), num_classes=len(subject.class_names))
        for spec in specs
    ]
    contenders = [_itself(subject, settled, max_updates)]
    if eight_bit and (view := eight_bit_view(train, subject)) is not None:
        contenders.append(dataclasses.replace(contenders[0], name=subject.name + EIGHT_BIT, make=partial(_same, view)))
    if real is not None and source is not None:
        choose = partial(
            coreset,
            subject=subject,
            real=real,
            source=source,
            network=specs[0],
            seed=seed,
            reader=reader,
            accelerator=accelerator,
        )
        contenders += _baselines(compared, subject, real, settled, max_updates, contenders[0].updates, seed, choose)
    benches = [
        Bench(factory, tested, contenders, network_seeds, seed, compile, cache and factory.named)
        for factory in factories
    ]
    return run_benches(benches, accelerator, shown)


def _itself(subject: Subject, recipe: TrainingRecipe, max_updates: int | None) -> Contender:
    """Return the evaluated set as a contender, with the learning rate that it may have learned."""
    if subject.student_lr is not None:
        recipe = dataclasses.replace(recipe, lr=subject.student_lr)
    return Contender(subject.name, len(subject.data), recipe, max_updates, partial(_same, subject.data))


def _baselines(
    names: Sequence[str],
    subject: Subject,
    real: Real,
    recipe: TrainingRecipe,
    max_updates: int | None,
    updates: int,
    seed: int,
    choose: Callable[[str], TrainingSet],
) -> list[Contender]:
    """Return the baselines as contenders; `updates` are those of the evaluated set."""
    found = []
    for name in names:
        if name == "random":
            for times in dict.fromkeys((1, subject.factor**2)):
                draw = partial(_drawn, subject, real, times, seed)
                title = name if times == 1 else f"{name} x{times}"
                found.append(Contender(title, random_count(subject, real, times), recipe, max_updates, draw))
        elif name == "full":
            whole = TrainingSet(real.images, real.outputs[real.images.labels], len(subject.class_names))
            content = real.images.content_hash
            found.append(Contender(name, len(whole), recipe, max_updates or updates, partial(_same, whole), content))
        else:
            chosen = choose(name)
            found.append(Contender(name, len(chosen), recipe, max_updates, partial(_same, chosen)))
    return found


def _same(data: TrainingSet, s: int) -> TrainingSet:
    """Return the same set for every network."""
    return data


def _drawn(subject: Subject, real: Real, times: int, seed: int, s: int) -> TrainingSet:
    """Draw random rows for the seed of a network."""
    return random_rows(subject, real, times, seed, "evaluate", "rows", s)


def _settled(
    recipe: str | TrainingRecipe, epochs: int | None, augment: str | None, made: Recipe | None
) -> TrainingRecipe:
    """Return the recipe as the caller wants it."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"unknown recipe {recipe!r}{did_you_mean(recipe, RECIPES)}; recipes: {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    elif not isinstance(recipe, TrainingRecipe):
        raise TypeError(f"recipe should be one of {', '.join(RECIPES)} or a TrainingRecipe; got {recipe!r}")
    _check_at_least_one("epochs", epochs)
    if augment is None and recipe.augment is not None and made is not None:
        used = made.options.get("augment")
        if isinstance(used, str) and used not in ("", "none") and "flip" not in used.split("_"):
            augment = "_".join(name for name in recipe.augment.split("_") if name != "flip") or "none"
    return dataclasses.replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        augment=recipe.augment if augment is None else augment,
    )


def _baseline_names(baselines: str | Sequence[str]) -> list[str]:
    """Check the names of the baselines, each once."""
    names = list(dict.fromkeys([baselines] if isinstance(baselines, str) else baselines))
    known = list(dict.fromkeys(["random", "full", *(info.name for info in list_methods() if info.kind == "coreset")]))
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown baseline {name!r}{did_you_mean(str(name), known)}; baselines: {', '.join(known)}"
            )
    return names


def _find_source(
    train: datasets.Dataset, source: datasets.Dataset | None, compared: Sequence[str]
) -> datasets.Dataset | None:
    """Return the real training set: the one that was given, else the one that the set carries in memory."""
    if source is None and isinstance(train, CondensedDataset):
        source = train.source
    if source is None and compared:
        raise ValueError(
            f"the baselines {', '.join(compared)} are drawn from the real training set, which is not known here (a set "
            "that was loaded does not carry it); pass source=, or baselines=() to go without"
        )
    return None if source is None else check_dataset(source, "source")


def _seed_list(seeds: int | Sequence[int]) -> list[int]:
    """Return the seed of every network."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        _check_at_least_one("seeds", seeds)
        return list(range(seeds))
    listed = list(seeds) if isinstance(seeds, Sequence) and not isinstance(seeds, str) else []
    whole = all(isinstance(s, int) and not isinstance(s, bool) for s in listed)
    if not listed or not whole or len(set(listed)) < len(listed):
        raise ValueError(f"seeds should be a number of networks, or their seeds, different integers; got {seeds!r}")
    return listed


def _check_at_least_one(name: str, value: int | None) -> None:
    """Check a number that may be left out."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} should be an integer; got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} should be at least 1; got {value}")
