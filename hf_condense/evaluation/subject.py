"""The set that is evaluated, and real images brought to its size, channels and normalisation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import torch
from torch import Tensor

from hf_condense.base.checks import listed
from hf_condense.base.devices import to_device
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import Decoder, Frame
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import SOFT_LABEL_COLUMN, eight_bit
from hf_condense.condensed.scores import EIGHT_BIT, HARD_LABELS, RELABELLED
from hf_condense.condensed.tensors import CondensedTensors, turns_of
from hf_condense.evaluation.reader import Reader, naming
from hf_condense.evaluation.tensor_sets import TensorSet, check_tensor_set
from hf_condense.networks.teachers import Teacher, refuse_infinite
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource
from hf_condense.source.columns import read_labels
from hf_condense.source.decode import Size, header, is_grey, raw_batches
from hf_condense.source.whitening import Whitening

logger = logging.getLogger("hf_condense")

_TRIED = 8  # images for which the logits of a teacher are looked at
_OWN_CONSTANTS = (
    "train is normalised with its own mean and std, which differ from those of the real training set; pass source= to "
    "use the real ones"
)


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

    def of_classes(self, classes: Iterable[int]) -> RealImages:
        """Return the images of some classes, by class index."""
        return self.part(torch.cat([torch.tensor(self.images.positions(c)) for c in sorted(classes)]))

    def part(self, positions: Tensor) -> RealImages:
        """Return the images at some positions, sorted, int64 (n,)."""
        return RealImages(self.images.part(positions), self.outputs, self.own.part(positions))


@dataclass(frozen=True)
class Subject:
    """The set that is evaluated, as training data.

    Attributes:
        name: Its name in the table.
        data: Its images and labels.
        row_classes: Class of every image, whatever its label is. int64 (N,).
        class_names: Names of all classes: the outputs of a network.
        stored_per_class: Images that every class of the set may store (its ipc), by class index.
        mean: The normalisation that it was made for. (C,)
        std: The same. (C,)
        whitening: What takes their place, if the set was condensed in whitened space; else None.
        decoder: Its storage form, in the normalisation that it was made for, on the device of its data; None if it
            is not condensed.
        student_lr: Learned learning rate, or None.
        recipe: How the set was made, or None.
        eight_bit: The same images in 8 bits, if they are evaluated too; else None.
        logits_of: The set's teacher, if it is at hand: it gives logits (n, K) for normalised images (n, C, H, W).
    """

    name: str
    data: TrainingSet
    row_classes: Tensor
    class_names: tuple[str, ...]
    stored_per_class: dict[int, int]
    mean: Tensor
    std: Tensor
    whitening: Whitening | None = None
    decoder: Decoder | None = None
    student_lr: float | None = None
    recipe: Recipe | None = None
    eight_bit: TrainingSet | None = None
    logits_of: Callable[[Tensor], Tensor] | None = None

    def variants(self) -> dict[str, TrainingSet]:
        """Return what networks are trained on, by what stands behind the set's name in the table."""
        ending = RELABELLED if self.data.relabel is not None else ""
        variants = {ending: self.data}
        if self.eight_bit is not None:
            variants[EIGHT_BIT + ending] = self.eight_bit
        if self.data.soft:
            variants[HARD_LABELS] = dataclasses.replace(
                self.data, labels=self.row_classes, temperature=1.0, views=None, relabel=None
            )
        return variants

    def first(self, ipc: int) -> Subject:
        """Return the set with the first images of every class that it stores, at most `ipc`, and what they give.

        Raises:
            ValueError: If no class stores that many.
        """
        if ipc > (most := max(self.stored_per_class.values())):
            raise ValueError(f"ipc should be at most {most}, which is what {self.name!r} stores of a class; got {ipc}")
        rows = ipc if self.decoder is None else self.decoder.rows(ipc)
        turns = torch.tensor(turns_of(self.row_classes.tolist()))
        index = (turns < rows).nonzero()[:, 0]
        return dataclasses.replace(
            self,
            data=self.data.part(index),
            row_classes=self.row_classes[index],
            stored_per_class={c: min(n, ipc) for c, n in self.stored_per_class.items()},
            eight_bit=None if self.eight_bit is None else self.eight_bit.part(index),
        )

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
            f"the set's are {listed(subject.class_names)}{_numbers_hint(test, unknown, source, subject)}"
        )
    _warn_of_absent(source, "test", subject, "they count as wrong")
    return subject.matching(source, reader.device)


def _numbers_hint(test: datasets.Dataset, unknown: Sequence[str], source: ClassSource, subject: Subject) -> str:
    """Say how numbers become the names of the set's classes, if the unknown classes of the test rows are numbers."""
    column = source.label_column
    if isinstance(test.features[column], datasets.ClassLabel) or not all(name.isdecimal() for name in unknown):
        return ""
    if max(map(int, unknown)) >= len(subject.class_names):
        return ""
    return (
        f". If they are numbers of these classes, in this order: test.cast_column({column!r}, "
        "datasets.ClassLabel(names=[...])) with all names"
    )


def read_source(source: datasets.Dataset, subject: Subject, reader: Reader, *, few: bool) -> RealImages:
    """Read the real training set that baselines are made from.

    Args:
        source: The set. It is read last: the reader keeps what it has read, and a streamed source serves no other.
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
    channels, height, width = subject.data.image_shape
    if channels == 1:
        _check_grey(ds, reader.columns(ds, what, subject.recipe)[0], what)
    return reader.load(ds, what, subject.recipe, (channels, height, width), streams=streams)


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
    train: datasets.Dataset | TensorSet,
    test: datasets.Dataset,
    source: datasets.Dataset | None,
    reader: Reader,
    *,
    image_size: Size | None = None,
    eight_bit: bool = False,
    teacher: Teacher | None = None,
    relabel: bool = False,
) -> Subject:
    """Read the set to be evaluated: exact floats of a `CondensedDataset` or of tensors, pixels of any other dataset.

    Args:
        train: The set.
        test: The real images that networks are tested on: they name the classes of tensors if there is no source.
        source: The real training set, or None.
        reader: Reads datasets.
        image_size: (height, width) that the pictures of a plain dataset are brought to; None: their own.
        eight_bit: Whether the 8-bit images of a learned set are wanted, too.
        teacher: The set's teacher, or None: that which a `CondensedDataset` with soft labels still has in memory.
        relabel: Whether the teacher labels the images of every update, in place of the labels of the set.

    Raises:
        ValueError: If there is no teacher to relabel images, it does not know the classes or gives logits that are not
            finite, or the set is whitened.
    """
    subject = _subject_of(train, test, source, reader, image_size)
    if eight_bit and isinstance(train, CondensedDataset):
        subject = dataclasses.replace(subject, eight_bit=_eight_bit_rows(train, subject))
    if subject.whitening is not None:
        if relabel or teacher is not None:
            raise ValueError(
                "a teacher labels pixels, but the set is whitened (zca=True); leave out teacher and relabel"
            )
        return subject
    of_pixels = None if teacher is None else teacher.in_order(subject.class_names)
    if of_pixels is None and isinstance(train, CondensedDataset) and subject.data.soft:
        of_pixels = train.labeller
    if of_pixels is None:
        if relabel:
            raise ValueError("relabel=True needs the teacher of the set; pass teacher=Teacher(...)")
        return subject
    logits_of = partial(_labelled, of_pixels, subject.mean, subject.std)
    if teacher is not None:
        images, _ = subject.data.batch(torch.arange(min(len(subject.data), _TRIED)))
        refuse_infinite(teacher.name, logits_of(images))
    data, rows = subject.data, subject.eight_bit
    if relabel:
        data = dataclasses.replace(data, relabel=logits_of)
        rows = None if rows is None else dataclasses.replace(rows, relabel=logits_of)
    return dataclasses.replace(subject, data=data, eight_bit=rows, logits_of=logits_of)


def _subject_of(
    train: datasets.Dataset | TensorSet,
    test: datasets.Dataset,
    source: datasets.Dataset | None,
    reader: Reader,
    image_size: Size | None,
) -> Subject:
    """Read the set without its teacher; see `read_subject`."""
    if isinstance(train, CondensedDataset):
        return _condensed_subject(train, reader.device)
    if isinstance(train, tuple):
        return _tensor_subject(train, test, source, reader)
    if SOFT_LABEL_COLUMN in train.column_names:
        logger.warning(
            "train has a column %r, which is not used: each image has its class as label. load_condensed reads a "
            "condensed set with its soft labels",
            SOFT_LABEL_COLUMN,
        )
    images = reader.load(train, "train", shape=None if image_size is None else (None, *image_size))
    mean, std = images.mean, images.std
    if source is None:
        logger.warning(_OWN_CONSTANTS)
    else:
        real = reader.load(source, "source", shape=images.image_shape)
        mean, std = real.mean, real.std
    data = TrainingSet(dataclasses.replace(images, mean=mean, std=std), images.labels, len(images.class_names))
    return Subject("train", data, images.labels, images.class_names, images.counts, mean, std)


def has_soft_labels(train: datasets.Dataset | TensorSet) -> bool:
    """Return whether a set has soft labels, before it is read."""
    if isinstance(train, tuple):
        return len(train) == 2 and isinstance(train[1], Tensor) and train[1].is_floating_point()
    return isinstance(train, CondensedDataset) and train.synthetic.has_soft_labels


def _tensor_subject(
    train: TensorSet, test: datasets.Dataset, source: datasets.Dataset | None, reader: Reader
) -> Subject:
    """Read a set of tensors, whose classes are those of the real images in their order."""
    real, what = (test, "test") if source is None else (source, "source")
    names = read_labels(real, reader.columns(real, what)[1]).names
    images, labels = check_tensor_set(train, len(names))
    if source is None:
        logger.warning(_OWN_CONSTANTS)
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)
        std[std < 1e-6] = 1.0  # as of the pixels of datasets
    else:
        channels, height, width = images.shape[1:]
        constants = reader.load(source, "source", shape=(channels, height, width))
        mean, std = constants.mean.cpu(), constants.std.cpu()
    data = TrainingSet(_normalised(images, mean, std, None).to(reader.device), labels, len(names))
    row_classes = labels.argmax(1) if data.soft else labels
    stored = {c: n for c, n in enumerate(row_classes.bincount().tolist()) if n}
    return Subject("train", data, row_classes, names, stored, mean, std)


def _condensed_subject(train: CondensedDataset, device: torch.device) -> Subject:
    recipe, tensors = train.recipe, train.synthetic
    whitening = None
    if tensors.zca_matrix is not None and tensors.zca_mean is not None:
        whitening = Whitening(tensors.zca_matrix, tensors.zca_mean)
    mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    frame = Frame(mean, std, clip=recipe.pixel_range == "valid")
    pixels, labels = tensors.decoded()
    images = _normalised(pixels, mean, std, whitening)
    targets = labels if tensors.soft_labels is None else tensors.soft_labels
    data = TrainingSet(
        images.to(device),
        targets,
        len(recipe.class_names),
        recipe.temperature or 1.0,
        views=tensors.view_labels,
    )
    return Subject(
        name=recipe.config_name,
        data=data,
        row_classes=labels,
        class_names=tuple(recipe.class_names),
        stored_per_class={c: recipe.budget(recipe.class_names[c]) for c in tensors.labels.unique().tolist()},
        mean=mean,
        std=std,
        whitening=whitening,
        decoder=tensors.decoder.in_frame(frame.to(device)),
        student_lr=None if tensors.student_lr is None else float(tensors.student_lr),
        recipe=recipe,
    )


def _labelled(of_pixels: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, images: Tensor) -> Tensor:
    """Return the logits of normalised images (n, C, H, W) by a teacher that takes pixels."""
    mean, std = (to_device(constants, images.device).to(images.dtype) for constants in (mean, std))
    return of_pixels(Frame(mean, std, clip=True).to_pixels(images))


def _eight_bit_rows(train: CondensedDataset, subject: Subject) -> TrainingSet | None:
    """Return a learned set as viewers and `load_dataset` get it; None for real rows, which are 8-bit images anyway."""
    if train.recipe.kind == "coreset":
        return None
    pixels = torch.cat([coded.float() / 255 for _, coded in eight_bit(train.synthetic)])
    images = _normalised(pixels, subject.mean, subject.std, subject.whitening)
    return dataclasses.replace(subject.data, images=images.to(subject.data.images.device))


def _normalised(pixels: Tensor, mean: Tensor, std: Tensor, whitening: Whitening | None) -> Tensor:
    """Normalise pixels (N, C, H, W), or whiten them if the set is whitened."""
    return Frame(mean, std).from_pixels(pixels) if whitening is None else whitening(pixels)


def _check_grey(ds: datasets.Dataset, column: str, what: str) -> None:
    """Refuse colour pictures for a grey set, judged by the first one."""
    with naming(what):
        (_, pictures) = next(raw_batches(ds.select([0]), column))
        mode = ds.features[column].mode or header(pictures[0], 0)[0]
    if not is_grey(mode):
        raise ValueError(
            f"{what} has pictures of mode {mode!r}, but the set's are grey (one channel); convert them to 'L', "
            "or make a set from colour pictures"
        )
