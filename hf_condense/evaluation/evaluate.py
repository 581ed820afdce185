"""What a condensed set is worth: train fresh networks on it and on baselines, test them on real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import datasets

from hf_condense.base.devices import CompileOption
from hf_condense.base.processes import get_accelerator
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.scores import Evaluation
from hf_condense.evaluation.contenders import Baselines, eight_bit_contender, subject_contender
from hf_condense.evaluation.reader import Reader
from hf_condense.evaluation.request import Request
from hf_condense.evaluation.selection import Selection
from hf_condense.evaluation.subject import eight_bit_view, read_source, read_subject, read_test
from hf_condense.evaluation.trials import Trials, run_trials
from hf_condense.networks.factory import NetworkSpec, network_factory
from hf_condense.networks.training_recipe import TrainingRecipe
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
    from the same weights on every set. Everything runs in float32, whatever state torch is in (on a CUDA device,
    convolutions round to TF32 unless `torch.backends.cudnn.allow_tf32` is off), and the networks are shared out over
    the processes. Every dataset is read once.

    Args:
        train: The set that is evaluated. A `CondensedDataset` is trained on with its exact floats, soft labels and
            learned learning rate, normalised as its recipe says; any other dataset with its pixels.
        test: Real images with classes of the same names, in any order. They are resized to the size of `train`'s. Rows
            of classes that `train` has no rows of count as wrong, and a warning says how many they are.
        source: The real training set: baselines are drawn from it, and pixels normalised with its mean and std.
            Default: what `train` was made from, if that is known. Baselines have rows of `train`'s classes only.
        networks: One or more networks: names such as `"convnet"`, `"convnet-w32"`, `"resnet18"`, or functions or
            classes that make a new one, called with those of `channels=, num_classes=, image_size=` that they take.
        recipe: How networks are trained: `"dc"` (300 epochs, no augmentation), `"dsa"` (1000 epochs, DSA augmentation),
            `"idc"` (1000 epochs, DSA augmentation and CutMix), or a `TrainingRecipe`.
        epochs: Epochs instead of the recipe's, >= 1; the schedule is scaled to them.
        max_updates: Cap on the updates of every network, >= 1; the schedule is scaled to it.
        seeds: Networks per set, >= 1, or a list of their seeds.
        baselines: What the set is compared with. `"random"`: random rows, redrawn for every seed, as many of each class
            as the set stores. If the set decodes into more rows, for example 16 for each image of the budget, it also
            gives as many random rows as that (`random x16`), and these stored in the form of the set
            (`random as dct16`), which is what learning adds to. `"full"`: the whole source, for `max_updates` updates,
            else for as many as the set itself takes; its scores are cached. Coreset methods (`"herding"`, `"kcenter"`,
            ...) choose rows by the features of the first network.
        augment: Families of augmentation joined by `_`, or `"none"`. Default: the recipe's, without `flip` if the set
            was made without it. For other sets of digits pass `"color_crop_cutout_scale_rotate"`.
        eight_bit: Also train on the 8-bit images of a `CondensedDataset`, which are what `load_dataset` gives; their
            row is called `"<set> (8-bit)"`. Networks and draws are the same as on its floats. Coresets have 8-bit
            images anyway and get no second row.
        image_column: Image column of those datasets that have it. Of the others, and by default: the one that the set
            was made from, if they have it, else the only Image column.
        label_column: Label column of those datasets that have it. Of the others, and by default: the one that the set
            was made from, if they have it, else the only ClassLabel.
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
    request = Request.check(
        networks=networks,
        recipe=recipe,
        epochs=epochs,
        max_updates=max_updates,
        seeds=seeds,
        baselines=baselines,
        augment=augment,
        compile=compile,
        seed=seed,
    )
    source = _find_source(train, source, request.baselines)
    train, test = check_dataset(train, "train"), check_dataset(test, "test")
    training = request.training_on(train)
    accelerator = get_accelerator(accelerator)
    show_progress = progress and accelerator.is_local_main_process
    reader = Reader(image_column, label_column, cache, show_progress, accelerator.device)
    reader.check_columns({"train": _read_rows(train), "test": test, "source": source})
    with accelerator.main_process_first():
        subject = read_subject(train, source, reader)
        test_images = read_test(test, subject, reader)
        real = read_source(source, subject, reader) if request.baselines and source is not None else None
    channels, height, width = subject.data.image_shape
    factories = [
        network_factory(spec, channels=channels, image_size=(height, width), num_classes=len(subject.class_names))
        for spec in request.networks
    ]
    floats = subject_contender(subject, training, request.max_updates)
    contenders = [floats]
    if eight_bit and (view := eight_bit_view(train, subject)) is not None:
        contenders.append(eight_bit_contender(floats, view))
    if real is not None and source is not None:
        selection = Selection(real.own, request.networks[0], request.seed, accelerator, cache, show_progress)
        real_sets = Baselines(subject, real, selection, training, request.max_updates, floats.updates, request.seed)
        contenders += real_sets.contenders(request.baselines)
    trials = [
        Trials(
            factory,
            test_images,
            contenders,
            request.network_seeds,
            request.seed,
            request.compile,
            cache and factory.named,
        )
        for factory in factories
    ]
    return run_trials(trials, accelerator, show_progress)


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


def _read_rows(train: datasets.Dataset) -> datasets.Dataset | None:
    """Return the set if its rows are read; None for a condensed set, whose tensors are used."""
    return None if isinstance(train, CondensedDataset) else train
