"""What an evaluation trains on: the set itself, and the baselines that are drawn from the real training set."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets
import torch
from torch import Tensor

from hf_condense.base.rng import Key, keyed_generator
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import eight_bit
from hf_condense.networks.factory import NetworkSpec
from hf_condense.networks.training import TrainingSet
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.class_source import ClassSource, load_source
from hf_condense.source.columns import find_image_column
from hf_condense.source.decode import GREY_MODES, header, raw_batches
from hf_condense.source.whitening import Whitening

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")


@dataclass(frozen=True)
class Contender:
    """One set that networks are trained on.

    Attributes:
        name: How the table calls it.
        rows: Images in it.
        recipe: How networks are trained on it.
        max_updates: Cap on the updates of a network, or None.
        make: Gives the images for the seed of a network.
        content: Hash of the images if the same ones come back in other evaluations; None otherwise.
    """

    name: str
    rows: int
    recipe: TrainingRecipe
    max_updates: int | None
    make: Callable[[int], TrainingSet]
    content: str | None = None

    @property
    def updates(self) -> int:
        """Updates of a network."""
        return self.recipe.updates(self.rows, self.max_updates)


@dataclass(frozen=True)
class Real:
    """Real images, normalised as the evaluated set is.

    Attributes:
        images: The images by their own classes.
        outputs: For each of these classes the class of the evaluated set with the same name; -1 for one without rows
            that the set does not know.
    """

    images: ClassSource
    outputs: Tensor

    def training_set(self, positions: Tensor, num_classes: int) -> TrainingSet:
        """Return some of the images to be trained on, in memory."""
        return TrainingSet(self.images.at(positions), self.outputs[self.images.labels[positions]], num_classes)


@dataclass(frozen=True)
class Reader:
    """How datasets are read.

    Attributes:
        image_column: The caller's choice, or None.
        label_column: The caller's choice, or None.
        cache: Whether decoded images are cached.
        progress: Whether progress bars are shown.
        device: Where tensors go.
    """

    image_column: str | None
    label_column: str | None
    cache: bool
    progress: bool
    device: torch.device

    def columns(self, ds: datasets.Dataset, recipe: Recipe | None) -> tuple[str | None, str | None]:
        """Return the image and label column: the caller's, else the recipe's if it is there, else None."""
        known = (recipe.image_column, recipe.label_column) if recipe else (None, None)
        image, label = (name if name in ds.column_names else None for name in known)
        return self.image_column or image, self.label_column or label

    def load(
        self, ds: datasets.Dataset, recipe: Recipe | None = None, shape: tuple[int, ...] | None = None
    ) -> ClassSource:
        """Read a dataset, in a given (channels, height, width) or its own."""
        image_column, label_column = self.columns(ds, recipe)
        channels, size = (shape[0], (shape[1], shape[2])) if shape else (None, None)
        return load_source(
            ds,
            image_column=image_column,
            label_column=label_column,
            image_size=size,
            channels=channels,
            cache=self.cache,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Subject:
    """The set that is evaluated, as training data.

    Attributes:
        name: How the table calls it.
        data: Its images and labels.
        class_names: Names of all classes: the outputs of a network.
        stored: Stored images of every class that has any.
        factor: Decoded images per stored one are `factor**2`.
        mean: The normalisation that it was made for. (C,)
        std: The same. (C,)
        whitening: What takes their place, if the set was condensed in whitened space; else None.
        student_lr: Learned learning rate, or None.
        recipe: How the set was made, or None.
    """

    name: str
    data: TrainingSet
    class_names: tuple[str, ...]
    stored: dict[int, int]
    mean: Tensor
    std: Tensor
    whitening: Whitening | None = None
    factor: int = 1
    student_lr: float | None = None
    recipe: Recipe | None = None

    def real(self, ds: datasets.Dataset, what: str, reader: Reader) -> Real:
        """Read real images in the size, the channels and the normalisation of this set.

        Raises:
            ValueError: If they have a class that this set does not know, or colours that it does not have.
        """
        shape = self.data.image_shape
        if shape[0] == 1:
            column = find_image_column(ds, reader.columns(ds, self.recipe)[0])
            mode = header(next(raw_batches(ds.select([0]), column))[1][0], 0)[0]
            if mode not in GREY_MODES and not mode.startswith("I;16"):
                raise ValueError(
                    f"{what} has pictures of mode {mode!r}, but the set's are grey (one channel); convert them to 'L', "
                    "or make a set from colour pictures"
                )
        loaded = reader.load(ds, self.recipe, shape)
        index = {name: c for c, name in enumerate(self.class_names)}
        if unknown := [loaded.class_names[c] for c in loaded.classes if loaded.class_names[c] not in index]:
            raise ValueError(
                f"{what} has classes that the set does not know: {_listed(unknown)}; classes are matched by name, and "
                f"the set's are {_listed(self.class_names)}"
            )
        outputs = torch.tensor([index.get(name, -1) for name in loaded.class_names])
        alike = dataclasses.replace(loaded, mean=self.mean, std=self.std, whitening=self.whitening)
        return Real(alike.to(reader.device), outputs)


def read_subject(train: datasets.Dataset, source: datasets.Dataset | None, reader: Reader) -> Subject:
    """Read the set to be evaluated: exact floats of a `CondensedDataset`, pixels of any other dataset."""
    if isinstance(train, CondensedDataset):
        return _condensed(train, reader.device)
    loaded = reader.load(train)
    mean, std = loaded.mean, loaded.std
    if source is None:
        logger.warning(
            "train is normalised with its own mean and std, which differ from those of the real training set; "
            "pass source= to use the real ones"
        )
    else:
        real = reader.load(source, shape=loaded.image_shape)
        mean, std = real.mean, real.std
    images = dataclasses.replace(loaded, mean=mean, std=std).to(reader.device)
    data = TrainingSet(images, loaded.labels, len(loaded.class_names))
    return Subject("train", data, loaded.class_names, loaded.counts, mean, std)


def _condensed(train: CondensedDataset, device: torch.device) -> Subject:
    """Read the exact tensors of a condensed set."""
    recipe, tensors = train.recipe, train.synthetic
    whitening = None
    if tensors.zca_matrix is not None and tensors.zca_mean is not None:
        whitening = Whitening(tensors.zca_matrix, tensors.zca_mean)
    mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    pixels, labels = tensors.decoded()
    images = _normal(pixels, mean, std, whitening)
    targets = labels if tensors.soft_labels is None else tensors.soft_labels
    data = TrainingSet(images.to(device), targets, len(recipe.class_names), recipe.temperature or 1.0)
    classes, amounts = tensors.labels.unique(return_counts=True)
    return Subject(
        name=recipe.config_name,
        data=data,
        class_names=tuple(recipe.class_names),
        stored=dict(zip(classes.tolist(), amounts.tolist(), strict=True)),
        mean=mean,
        std=std,
        whitening=whitening,
        factor=tensors.factor,
        student_lr=None if tensors.student_lr is None else float(tensors.student_lr),
        recipe=recipe,
    )


def eight_bit_view(train: datasets.Dataset, subject: Subject) -> TrainingSet | None:
    """Return a learned set as viewers and `load_dataset` get it; None for real rows, which are 8-bit images anyway."""
    if not isinstance(train, CondensedDataset) or train.recipe.kind == "coreset":
        return None
    pixels = torch.cat([coded.float() / 255 for _, coded in eight_bit(train.synthetic)])
    images = _normal(pixels, subject.mean, subject.std, subject.whitening)
    return dataclasses.replace(subject.data, images=images.to(subject.data.images.device))


def _normal(pixels: Tensor, mean: Tensor, std: Tensor, whitening: Whitening | None) -> Tensor:
    """Normalise pixels (N, C, H, W), or whiten them if the set is whitened."""
    return (pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1) if whitening is None else whitening(pixels)


def random_rows(subject: Subject, real: Real, times: int, *key: Key) -> TrainingSet:
    """Draw `times` as many real rows of every class as the set stores (all rows, if a class has no more)."""
    picked = []
    for c, n in _amounts(subject, real).items():
        own = real.images.positions(c)
        generator = keyed_generator(*key, real.images.class_names[c])
        picked.append(torch.randperm(len(own), generator=generator)[: times * n] + own.start)
    return real.training_set(torch.cat(picked), len(subject.class_names))


def random_count(subject: Subject, real: Real, times: int) -> int:
    """Return the number of rows that `random_rows` draws."""
    return sum(min(times * n, len(real.images.positions(c))) for c, n in _amounts(subject, real).items())


def coreset(
    method: str,
    subject: Subject,
    real: Real,
    source: datasets.Dataset,
    network: NetworkSpec,
    seed: int,
    reader: Reader,
    accelerator: Accelerator,
) -> TrainingSet:
    """Choose real rows by a registered method, as many of every class as the set stores."""
    from hf_condense.api import condense_dataset

    amounts = {real.images.class_names[c]: n for c, n in _amounts(subject, real).items()}
    chosen = condense_dataset(
        source,
        method,
        amounts,
        network=network,
        seed=seed,
        image_size=real.images.image_shape[1:],
        image_column=real.images.image_column,
        label_column=real.images.label_column,
        accelerator=accelerator,
        cache=reader.cache,
        progress=reader.progress,
    )
    # The rows are those of `source`; their pixels are read here in the set's own channels and normalisation.
    rows = torch.tensor(chosen.recipe.rows)
    place = torch.empty(len(real.images), dtype=torch.int64)
    place[real.images.rows] = torch.arange(len(place))
    return real.training_set(place[rows], len(subject.class_names))


def _amounts(subject: Subject, real: Real) -> dict[int, int]:
    """Return for every class of the set its class in the source and how many images it stores."""
    place = {output: c for c, output in enumerate(real.outputs.tolist()) if output >= 0}
    counts = real.images.counts
    if missing := [subject.class_names[c] for c in subject.stored if place.get(c) not in counts]:
        raise ValueError(f"source has no rows of {_listed(missing)}: baselines cannot be drawn; pass the training set")
    return {place[c]: n for c, n in subject.stored.items()}


def _listed(names: Iterable[str], most: int = 10) -> str:
    """Write names for a message."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")
