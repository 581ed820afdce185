"""The set that is evaluated, and real images brought to its size, channels and normalisation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import datasets
import torch
from torch import Tensor

from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import Decoder, Frame
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import eight_bit
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.evaluation.reader import Reader, naming
from hf_condense.networks.teachers import Teacher
from hf_condense.networks.training import TrainingSet
from hf_condense.source.class_source import ClassSource
from hf_condense.source.decode import GREY_MODES, header, raw_batches
from hf_condense.source.whitening import Whitening

logger = logging.getLogger("hf_condense")


@dataclass(frozen=True)
class RealImages:
    """Real images, normalised as the evaluated set is.

    Attributes:
        images: The images by their own classes.
        outputs: For each of these classes the output of a network that stands for it: the class of the evaluated set
            with the same name, or -1 for a class that the set does not know.
        own: The same images in the normalisation of their own dataset.
    """

    images: ClassSource
    outputs: Tensor
    own: ClassSource

    def training_set(self, positions: Tensor, num_classes: int) -> TrainingSet:
        """Return the images at some positions as training data, in memory."""
        return TrainingSet(self.images.at(positions), self.outputs[self.images.labels[positions]], num_classes)

    def of_classes(self, classes: Iterable[int]) -> ClassSource:
        """Return the images of some classes, by class index, in memory."""
        source = self.images
        positions = torch.cat([torch.tensor(source.positions(c)) for c in sorted(classes)])  # (n,)
        return dataclasses.replace(
            source,
            images=source.images[positions.to(source.images.device)],
            labels=source.labels[positions],
            rows=source.rows[positions],
        )


@dataclass(frozen=True)
class Subject:
    """The set that is evaluated, as training data.

    Attributes:
        name: Its name in the table.
        data: Its images and labels.
        class_names: Names of all classes: the outputs of a network.
        stored_per_class: Images that every class of the set may store (its ipc), by class index.
        mean: The normalisation that it was made for. (C,)
        std: The same. (C,)
        whitening: What takes their place, if the set was condensed in whitened space; else None.
        decoder: Its storage form, in the normalisation that it was made for, on the device of its data; None if it
            is not condensed.
        student_lr: Learned learning rate, or None.
        recipe: How the set was made, or None.
        logits_of: The set's teacher, if it is at hand: it gives logits (n, K) for normalised images (n, C, H, W).
    """

    name: str
    data: TrainingSet
    class_names: tuple[str, ...]
    stored_per_class: dict[int, int]
    mean: Tensor
    std: Tensor
    whitening: Whitening | None = None
    decoder: Decoder | None = None
    student_lr: float | None = None
    recipe: Recipe | None = None
    logits_of: Callable[[Tensor], Tensor] | None = None

    @property
    def store_dtype(self) -> torch.dtype:
        """Type of its stored numbers."""
        dtype: torch.dtype = torch.float32 if self.recipe is None else getattr(torch, self.recipe.store_dtype)
        return dtype

    def matching(self, source: ClassSource, device: torch.device) -> RealImages:
        """Return real images of this set's size and channels in its normalisation, with the outputs of its classes."""
        index = {name: c for c, name in enumerate(self.class_names)}
        outputs = torch.tensor([index.get(name, -1) for name in source.class_names])
        images = dataclasses.replace(source, mean=self.mean, std=self.std, whitening=self.whitening)
        return RealImages(images.to(device), outputs, source)

    def images_of(self, tensors: CondensedTensors) -> Tensor:
        """Return the decoded images of tensors in the form of this set, as networks get them: (rows, C, H, W)."""
        images = _normalised(tensors.decoded()[0], self.mean, self.std, self.whitening)
        return images.to(self.data.images.device)


def read_test(test: datasets.Dataset, subject: Subject, reader: Reader) -> RealImages:
    """Read the real images that networks are tested on.

    Raises:
        ValueError: If they have a class that the set does not know, or colours that it does not have.
    """
    source = _read_real(test, "test", subject, reader)
    if unknown := [name for c in source.classes if (name := source.class_names[c]) not in subject.class_names]:
        raise ValueError(
            f"test has classes that the set does not know: {listed(unknown)}; classes are matched by name, and "
            f"the set's are {listed(subject.class_names)}"
        )
    _warn_of_absent(source, "test", subject, "they count as wrong")
    return subject.matching(source, reader.device)


def read_source(source: datasets.Dataset, subject: Subject, reader: Reader, *, few: bool) -> RealImages:
    """Read the real training set that baselines are made from.

    Args:
        source: The set. It is read last, because others may not be content with some of its rows.
        subject: The evaluated set.
        reader: Reads it.
        few: Whether only some of its rows are needed, so that large pictures are decoded when they are asked for.

    Raises:
        ValueError: If it has colours that the set does not have.
    """
    real = _read_real(source, "source", subject, reader, streams=few)
    _warn_of_absent(real, "source", subject, "baselines are made from the other rows")
    return subject.matching(real, reader.device)


def _read_real(
    ds: datasets.Dataset, what: str, subject: Subject, reader: Reader, *, streams: bool = False
) -> ClassSource:
    """Read real images in the size and the channels of the set, in their own normalisation."""
    shape = subject.data.image_shape
    if shape[0] == 1:
        _check_grey(ds, reader.columns(ds, what, subject.recipe)[0], what)
    return reader.load(ds, what, subject.recipe, shape, streams=streams)


def _warn_of_absent(source: ClassSource, what: str, subject: Subject, consequence: str) -> None:
    """Say how many real images are of classes that the set has no rows of."""
    present = {subject.class_names[c] for c in subject.stored_per_class}
    absent = {source.class_names[c]: n for c, n in source.counts.items() if source.class_names[c] not in present}
    if absent:
        logger.warning(
            "%d of %d rows of %s are of classes that the set has no rows of (%s); %s",
            sum(absent.values()),
            len(source),
            what,
            listed(absent),
            consequence,
        )


def read_subject(
    train: datasets.Dataset, source: datasets.Dataset | None, reader: Reader, teacher: Teacher | None = None
) -> Subject:
    """Read the set to be evaluated: exact floats of a `CondensedDataset`, pixels of any other dataset.

    Args:
        train: The set.
        source: The real training set, or None.
        reader: Reads it.
        teacher: What labels the images of a `CondensedDataset` while networks are trained on them, or None.

    Raises:
        ValueError: If a teacher is given for another dataset, or it does not know the classes.
    """
    if isinstance(train, CondensedDataset):
        return _condensed_subject(train, reader.device, teacher)
    if teacher is not None:
        raise ValueError(
            "teacher labels the images of a condensed set, so train should be a CondensedDataset; got a "
            f"{type(train).__name__}"
        )
    images = reader.load(train, "train")
    mean, std = images.mean, images.std
    if source is None:
        logger.warning(
            "train is normalised with its own mean and std, which differ from those of the real training set; "
            "pass source= to use the real ones"
        )
    else:
        real = reader.load(source, "source", shape=images.image_shape)
        mean, std = real.mean, real.std
    data = TrainingSet(dataclasses.replace(images, mean=mean, std=std), images.labels, len(images.class_names))
    return Subject("train", data, images.class_names, images.counts, mean, std)


def _condensed_subject(train: CondensedDataset, device: torch.device, teacher: Teacher | None) -> Subject:
    recipe, tensors = train.recipe, train.synthetic
    whitening = None
    if tensors.zca_matrix is not None and tensors.zca_mean is not None:
        whitening = Whitening(tensors.zca_matrix, tensors.zca_mean)
    mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    frame = Frame(mean, std, clip=recipe.pixel_range == "valid")
    pixels, labels = tensors.decoded()
    images = _normalised(pixels, mean, std, whitening)
    targets = labels if tensors.soft_labels is None else tensors.soft_labels
    of_pixels = train.teacher if teacher is None else teacher.in_order(recipe.class_names)
    # What labels normalised images; a set in whitened space has no such teacher.
    logits_of = None if of_pixels is None or whitening is not None else partial(_labelled, of_pixels, mean, std)
    data = TrainingSet(
        images.to(device),
        targets,
        len(recipe.class_names),
        recipe.temperature or 1.0,
        views=tensors.view_labels,
        relabel=None if teacher is None else logits_of,
    )
    return Subject(
        name=recipe.config_name,
        data=data,
        class_names=tuple(recipe.class_names),
        stored_per_class={c: recipe.budget(recipe.class_names[c]) for c in tensors.labels.unique().tolist()},
        mean=mean,
        std=std,
        whitening=whitening,
        decoder=tensors.decoder.in_frame(frame.to(device)),
        student_lr=None if tensors.student_lr is None else float(tensors.student_lr),
        recipe=recipe,
        logits_of=logits_of,
    )


def _labelled(of_pixels: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, images: Tensor) -> Tensor:
    """Return the logits of normalised images (n, C, H, W) by a teacher that takes pixels."""
    pixels = images * std.to(images).reshape(-1, 1, 1) + mean.to(images).reshape(-1, 1, 1)
    return of_pixels(pixels.clamp(0, 1))


def eight_bit_view(train: datasets.Dataset, subject: Subject) -> TrainingSet | None:
    """Return a learned set as viewers and `load_dataset` get it; None for real rows, which are 8-bit images anyway."""
    if not isinstance(train, CondensedDataset) or train.recipe.kind == "coreset":
        return None
    pixels = torch.cat([coded.float() / 255 for _, coded in eight_bit(train.synthetic)])
    images = _normalised(pixels, subject.mean, subject.std, subject.whitening)
    return dataclasses.replace(subject.data, images=images.to(subject.data.images.device))


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor, whitening: Whitening | None) -> Tensor:
    """Normalise pixels (N, C, H, W), or whiten them if the set is whitened."""
    return (pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1) if whitening is None else whitening(pixels)


def _check_grey(ds: datasets.Dataset, column: str, what: str) -> None:
    """Refuse colour pictures for a grey set, judged by the first one."""
    with naming(what):
        (_, pictures) = next(raw_batches(ds.select([0]), column))
        mode = ds.features[column].mode or header(pictures[0], 0)[0]
    if mode not in GREY_MODES and not mode.startswith("I;16"):
        raise ValueError(
            f"{what} has pictures of mode {mode!r}, but the set's are grey (one channel); convert them to 'L', "
            "or make a set from colour pictures"
        )


def listed(names: Iterable[str], most: int = 10) -> str:
    """Write names for a message, at most `most` of them."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:most]) + (f" and {len(quoted) - most} more" if len(quoted) > most else "")
