"""What a condensed set is worth: train fresh networks on it and on baselines, test them on real images."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets

from hf_condense.base.checks import boolean, names_arguments
from hf_condense.base.compiled_code import removes_unfinished_code
from hf_condense.base.devices import CompileOption
from hf_condense.base.processes import get_accelerator, main_first
from hf_condense.base.torch_state import plain_torch
from hf_condense.base.words import plural
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.scores import Evaluation
from hf_condense.evaluation.contenders import Baselines, Contender, subject_contenders
from hf_condense.evaluation.reader import Reader
from hf_condense.evaluation.request import Request
from hf_condense.evaluation.search import hold_out, search_rates
from hf_condense.evaluation.selection import Selection
from hf_condense.evaluation.subject import (
    RealImages,
    Subject,
    read_source,
    read_subject,
    read_test,
)
from hf_condense.evaluation.tensor_sets import TensorSet
from hf_condense.evaluation.trials import Trials, run_trials
from hf_condense.networks.factory import NetworkFactory, NetworkSpec, network_factory
from hf_condense.networks.teachers import Teacher
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.columns import check_dataset
from hf_condense.source.decode import Size
from hf_condense.source.load import checked_size

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")


@names_arguments
@plain_torch()
@removes_unfinished_code()
def evaluate(
    train: datasets.Dataset | TensorSet,
    test: datasets.Dataset,
    *,
    source: datasets.Dataset | None = None,
    networks: NetworkSpec | Sequence[NetworkSpec] = ("convnet",),
    recipe: str | TrainingRecipe = "dsa",
    epochs: int | None = None,
    max_updates: int | None = None,
    lr: str | float | Sequence[float] | None = None,
    ipc: int | Sequence[int] | None = None,
    seeds: int | Sequence[int] = 5,
    baselines: str | Sequence[str] = ("random",),
    augment: str | None = None,
    teacher: Teacher | None = None,
    relabel: bool = False,
    eight_bit: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | Size | None = None,
    cache: bool = True,
    compile: CompileOption = "auto",
    progress: bool = True,
    accelerator: Accelerator | None = None,
    seed: int = 0,
) -> Evaluation:
    """Train fresh networks on a set and on its baselines, all under one recipe, and test them on real images.

    The accuracy is that of the last epoch; nothing is chosen by looking at the test images. A set with soft labels has
    a second row, `"<set> (hard labels)"`, with the class of each image as its label, which shows what the images are
    worth alone. Networks of one seed start from the same weights on every set. Everything runs in float32, whatever
    state torch is in (on a CUDA device, convolutions round to TF32 unless `torch.backends.cudnn.allow_tf32` is off),
    and the networks are divided among the processes. On devices other than a CPU, small networks that train on the same
    set are trained together; each has the random draws that it would have alone, and its result differs by rounding
    only. Every dataset is read once.

    Args:
        train: The set that is evaluated. A `CondensedDataset` is trained on with its exact floats, soft labels and
            learned learning rate, normalised as its recipe says; any other dataset with its pixels. A set that another
            program made may also be two tensors: images in pixel units (0 black, 1 white), float or uint8
            (N, C, H, W), and their classes in the order of those of `source` (else of `test`), int (N,), or soft labels
            as logits, float (N, K).
        test: Real images with classes of the same names, in any order. They are resized to the size of `train`'s. Test
            rows of a class that `train` names but has no rows of count as errors, and a warning gives their number; a
            class that `train` does not name is refused. A warning gives the number of test images that `source` has,
            too.
        source: The real training set: baselines are drawn from it, and pixels normalised with its mean and std.
            Default: what `train` was made from, if that is known. Baselines have rows of `train`'s classes only.
        networks: One or more networks: names such as `"convnet"`, `"convnet-w32"`, `"mlp"`, `"lenet"`, `"alexnet"`,
            `"vgg11"`, `"resnet18"` or one of `torchvision.models`, or functions or classes that make a new one, called
            with those of `channels=, num_classes=, image_size=` that they take. `"all"` stands for the six built-in
            kinds, of default width.
        recipe: How networks are trained: `"dc"` (300 epochs, no augmentation), `"dsa"` (1000 epochs, DSA augmentation),
            `"idc"` (1000 epochs, flips and colours always, one more family of DSA, and CutMix), `"soft"` (300 epochs of
            AdamW on random crops with CutMix, for soft labels), or an `hf_condense.TrainingRecipe`.
        epochs: Epochs instead of the recipe's, >= 1; the schedule is scaled to them.
        max_updates: Cap on the updates of every network, >= 1; the schedule is scaled to it.
        lr: Learning rate in place of the recipe's and of one that the set has learned, > 0; or several to choose from,
            or `"search"`: .001, .005, .01, .05 and .1. A choice is made for every set and every kind of network, with
            one more network for each rate (the one that the set would have otherwise is always among them), by the
            accuracy on rows of `source` that are held out: a tenth, at most 1,000. No network or baseline is trained on
            them; a set that was learned from the whole source has seen them.
        ipc: Images per class: the set is cut down to the first images of every class, this many, and so are its
            baselines. Give several for the accuracy against ipc in one table. Coresets are in greedy order. Default:
            all.
        seeds: Networks per set, >= 1, or a list of their seeds, in -2**63..2**64 - 1.
        baselines: What the set is compared with, or `"none"`. `"random"`: random rows, redrawn for every seed, as many
            of each class as the set stores. If the set decodes into more rows, for example 16 for each image of the
            budget, it also gives as many random rows as that (`random x16`), and these stored in the form of the set
            (`random as dct16`), which is what learning adds to. If the teacher that labelled the set is at hand, random
            rows with its labels stand there too (`random (soft labels)`). `"full"`: the whole source, for the recipe's
            epochs up to `max_updates`, or without that cap for as many updates as the set itself takes; its scores are
            cached. Coreset methods (`"herding"`, `"kcenter"`, ...) choose rows by the features of the first network.
        augment: Some of `color`, `crop`, `cutout`, `flip`, `scale` and `rotate`, joined by `_`, or `"none"`. Default:
            the recipe's, without `flip` if the set was made without it. For other sets of digits pass
            `"color_crop_cutout_scale_rotate"`.
        teacher: The `Teacher` that labelled the set: `"random"` then also gives random rows with its soft labels, at
            the temperature of the set's, so that one sees what the labels alone are worth. Default: none; a set
            that was just made still has its own in memory (but not the experts that labelled one).
        relabel: Whether the teacher labels the images of every update, after they were augmented and mixed, in place of
            the stored labels. The rows are then called `"<set> (relabelled)"` and `random (relabelled)`.
        eight_bit: Also train on the 8-bit images of a `CondensedDataset`, which are what `load_dataset` gives; their
            row is called `"<set> (8-bit)"`. Networks and draws are the same as on its floats. Coresets have 8-bit
            images anyway and get no second row; a `train` that is not condensed has one kind of images only, and is
            refused.
        image_column: Image column, for every dataset that has it. Datasets without it, and all by default, use the
            column that the set was made from, else their only Image column.
        label_column: Label column, for every dataset that has it. Datasets without it, and all by default, use the
            column that the set was made from, else their only ClassLabel.
        image_size: Side or (height, width) that the pictures of `train` are brought to, if it is neither condensed nor
            tensors: the shorter side is resized and the centre cropped. Pictures of different sizes need it. Default:
            their own size.
        cache: Keep decoded images, networks that are fitted to random rows (for a set in the form `siren`, for every
            seed) and the scores of `"full"` under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        compile: Compile the networks: True, False, or `"auto"`: on a CPU, when there is enough work to pay for it.
        progress: Show progress bars.
        accelerator: An `accelerate.Accelerator` to run on, whose mixed precision is not used. Default: the existing
            one, else a new one.
        seed: Seed of every draw but the networks' own, in 0..2**64 - 1.

    Returns:
        The table of accuracies: fractions, printed in per cent.

    Raises:
        TypeError: If `train`, `test` or `source` is no `Dataset`, or an option has the wrong type.
        ValueError: If a name is unknown, a number is out of range, a baseline lacks its source or enough rows in it,
            `test` has a class that `train` does not know, or `test` is a condensed set and `train` is none.
        MemoryError: If the training of a single network does not fit into memory.
        OSError: If the cache cannot be read or written.
        RuntimeError: If compiled code in torch's cache was unfinished, because a process was killed (the file is
            removed, so that the same call works), or if processes are set up in a way that is not supported.

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
        lr=lr,
        ipc=ipc,
        seeds=seeds,
        baselines=baselines,
        augment=augment,
        compile=compile,
        seed=seed,
    )
    relabel, eight_bit = boolean("relabel", relabel), boolean("eight_bit", eight_bit)
    cache, progress = boolean("cache", cache), boolean("progress", progress)
    if teacher is not None and not isinstance(teacher, Teacher):
        raise TypeError(f"teacher should be a Teacher, which knows the names of its classes; got {teacher!r:.80}")
    if isinstance(test, CondensedDataset) and not isinstance(train, CondensedDataset):
        raise ValueError(
            f"networks would be tested on the condensed set {test.recipe.config_name!r}; pass it first, and the real "
            "test set second: evaluate(small, test)"
        )
    train = train if isinstance(train, tuple) else check_dataset(train, "train")
    source = _find_source(train, source, request)
    test = check_dataset(test, "test")
    size = _size_of_pictures(train, image_size)
    _check_eight_bit(train, eight_bit)
    training = request.shared_training(train)
    accelerator = get_accelerator(accelerator, any_precision=True)
    shows_progress = progress and accelerator.is_local_main_process
    reader = Reader(image_column, label_column, cache, shows_progress, accelerator.device)
    reader.check_columns({"train": _read_rows(train), "test": test, "source": source})

    how: dict[str, Any] = {"image_size": size, "eight_bit": eight_bit, "teacher": teacher, "relabel": relabel}
    read = partial(_read, train, test, source, reader, request, **how)
    subject, test_images, real = main_first(accelerator, read)
    if accelerator.is_main_process:
        _warn_of_training_rows(train, test_images, real)
    held_out = None
    if request.rates and real is not None:
        real, held_out = hold_out(real, subject, request.seed)
    factories = _factories(request.networks, subject)  # first: coresets may take long
    contenders = _contenders(subject, real, request, training, accelerator, cache, shows_progress)
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
    if held_out is not None:
        search_rates(trials, request.rates, held_out, accelerator, shows_progress)
    table = run_trials(trials, subject.class_names, accelerator, shows_progress)
    return table if subject.recipe is None else dataclasses.replace(table, run=subject.recipe.run)


def _read(
    train: datasets.Dataset | TensorSet,
    test: datasets.Dataset,
    source: datasets.Dataset | None,
    reader: Reader,
    request: Request,
    **how: Any,
) -> tuple[Subject, RealImages, RealImages | None]:
    """Read the set, the test images and, if something needs it, the real training set.

    Args:
        train: The set.
        test: The real images that networks are tested on.
        source: The real training set, or None.
        reader: Reads them.
        request: What the caller asks for.
        **how: How the set is read; see `read_subject`.
    """
    subject = read_subject(train, test, source, reader, **how)
    test_images = read_test(test, subject, reader)
    real = None
    if source is not None and (request.baselines or request.rates):
        reads_all = subject.decoder is not None and subject.decoder.expand > 1 and subject.decoder.reads_classes
        few = request.baselines == ["random"] and not request.rates and not reads_all
        real = read_source(source, subject, reader, few=few)
    return subject, test_images, real


def _warn_of_training_rows(train: datasets.Dataset | TensorSet, test: RealImages, real: RealImages | None) -> None:
    """Log a warning if test images are those that a condensed set was made from, or are in the real training set."""
    made_from = train.recipe.sources if isinstance(train, CondensedDataset) else []
    if test.images.content_hash in [source.get("content_hash") for source in made_from]:
        logger.warning(
            "the test images are those that the set was made from, so the accuracies say little about new ones; "
            "pass the test split as test="
        )
    elif real is not None and (shared := test.images.count_also_in(real.images)):
        logger.warning(
            "%d of %d test images are in the real training set, too; accuracies on these say little about new images",
            shared,
            len(test.images),
        )


def _contenders(
    subject: Subject,
    real: RealImages | None,
    request: Request,
    training: TrainingRecipe,
    accelerator: Accelerator,
    cache: bool,
    shows_progress: bool,
) -> list[Contender]:
    """Return all sets of training images that networks are compared on: the subject, cut to each ipc, and baselines."""
    contenders: list[Contender] = []
    for n in request.ipc:
        part = subject if n is None else subject.first(n)
        own = subject_contenders(part, request.training_for_set(part, training), request.max_updates, n)
        contenders += own
        if real is not None and request.baselines:
            selection = Selection(real.own, request.networks[0], request.seed, accelerator, cache, shows_progress)
            cap, updates = request.max_updates, own[0].updates
            real_sets = Baselines(part, real, selection, training, cap, updates, request.seed, n)
            # The whole source stays the same, however few images of the set are used.
            is_last = n == request.ipc[-1]
            contenders += real_sets.contenders(name for name in request.baselines if is_last or name != "full")
    return contenders


def _factories(networks: Sequence[NetworkSpec], subject: Subject) -> list[NetworkFactory]:
    """Return factories of different networks: callables of the same name get a number."""
    channels, height, width = subject.data.image_shape
    seen: Counter[str] = Counter()
    named: set[str] = set()
    factories = []
    for spec in networks:
        factory = network_factory(
            spec, channels=channels, image_size=(height, width), num_classes=len(subject.class_names)
        )
        if factory.named and factory.name in named:  # another spelling of it
            continue
        if factory.named:
            named.add(factory.name)
        seen[factory.name] += 1
        number = seen[factory.name]
        factories.append(factory if number == 1 else dataclasses.replace(factory, name=f"{factory.name} ({number})"))
    return factories


def _find_source(
    train: datasets.Dataset | TensorSet, source: datasets.Dataset | None, request: Request
) -> datasets.Dataset | None:
    """Return the real training set: the one that was given, else the one that the set carries in memory."""
    if source is None and isinstance(train, CondensedDataset):
        source = train.source
    if source is not None:
        return check_dataset(source, "source")
    unknown = "which is not known here (a loaded set does not carry it, and a set combined of others may not)"
    if request.baselines:
        number = len(request.baselines)
        what = f"the {plural(number, 'baseline')} {', '.join(request.baselines)} {'is' if number == 1 else 'are'}"
        raise ValueError(
            f"{what} drawn from the real training set, {unknown}; pass source=, or baselines='none' to go without"
        )
    if request.rates:
        raise ValueError(
            f"the learning rate is searched on held-out rows of the real training set, {unknown}; pass source=, or one "
            "rate, such as lr=0.01"
        )
    return None


def _size_of_pictures(train: datasets.Dataset | TensorSet, image_size: int | Size | None) -> Size | None:
    """Check the size to which the pictures of a plain dataset are brought; None: their own."""
    size = checked_size(image_size)
    if size is not None and isinstance(train, (CondensedDataset, tuple)):
        raise ValueError(
            "image_size is for a train whose pictures are read; the images of this one have a size already, to which "
            "test and source are brought: leave image_size out"
        )
    return size


def _check_eight_bit(train: datasets.Dataset | TensorSet, eight_bit: bool) -> None:
    """Refuse to look for 8-bit images beside those of a set that has one kind of images only."""
    if eight_bit and not isinstance(train, CondensedDataset):
        kind = "tensors are" if isinstance(train, tuple) else "the images of a plain dataset are"
        raise ValueError(
            "eight_bit is for a condensed set, which has 8-bit images beside its exact ones; "
            f"{kind} used as given: leave out eight_bit=True"
        )


def _read_rows(train: datasets.Dataset | TensorSet) -> datasets.Dataset | None:
    """Return the set if its rows are read; None for a condensed set, whose tensors are used, and for tensors."""
    return None if isinstance(train, (CondensedDataset, tuple)) else train
