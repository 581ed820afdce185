"""What an evaluation trains on: the set itself, and the baselines that are drawn from the real training set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from hf_condense.base.cache import content_key
from hf_condense.base.rng import keyed_generator
from hf_condense.condensed.scores import EIGHT_BIT
from hf_condense.evaluation.selection import Selection
from hf_condense.evaluation.subject import RealImages, Subject, listed
from hf_condense.networks.training import TrainingSet
from hf_condense.networks.training_recipe import TrainingRecipe


@dataclass(frozen=True)
class Fixed:
    """The same images for every network.

    Attributes:
        data: The images and their labels.
        content: Hash of the images if other evaluations train on the same ones; None otherwise.
    """

    data: TrainingSet
    content: str | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def for_seed(self, network_seed: int) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        return self.data


@dataclass(frozen=True)
class RandomRows:
    """Random real rows, drawn anew for every network.

    Attributes:
        real: The real training set.
        rows_per_class: Rows to draw of every class, by class index of `real`; at most as many as the class has.
        num_classes: Outputs of a network.
        seed: Seed of the evaluation.
        content: None, because scores of rows that are drawn anew are not cached.
    """

    real: RealImages
    rows_per_class: dict[int, int]
    num_classes: int
    seed: int
    content: ClassVar[None] = None

    def __len__(self) -> int:
        """Return the number of images."""
        return sum(self.rows_per_class.values())

    def for_seed(self, network_seed: int) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        source = self.real.images
        positions = []
        for c, n in self.rows_per_class.items():
            of_class = source.positions(c)
            generator = keyed_generator(self.seed, "evaluate", "rows", network_seed, source.class_names[c])
            positions.append(torch.randperm(len(of_class), generator=generator)[:n] + of_class.start)
        return self.real.training_set(torch.cat(positions), self.num_classes)


@dataclass(frozen=True)
class Contender:
    """One set that networks are trained on, and how.

    Attributes:
        name: Its name in the table.
        images: Gives the images for every network.
        training: How networks are trained on them.
        max_updates: Cap on the updates of a network, or None.
    """

    name: str
    images: Fixed | RandomRows
    training: TrainingRecipe
    max_updates: int | None

    @property
    def rows(self) -> int:
        """Images that a network is trained on."""
        return len(self.images)

    @property
    def updates(self) -> int:
        """Updates of a network."""
        return self.training.updates(self.rows, self.max_updates)


def subject_contender(subject: Subject, training: TrainingRecipe, max_updates: int | None) -> Contender:
    """Return the evaluated set as a contender, with the learning rate that it may have learned."""
    if subject.student_lr is not None:
        training = dataclasses.replace(training, lr=subject.student_lr)
    return Contender(subject.name, Fixed(subject.data), training, max_updates)


def eight_bit_contender(floats: Contender, view: TrainingSet) -> Contender:
    """Return the 8-bit images of the evaluated set as a contender, trained on as its floats are."""
    return dataclasses.replace(floats, name=floats.name + EIGHT_BIT, images=Fixed(view))


@dataclass(frozen=True)
class Baselines:
    """What the baselines of one evaluation are made from.

    Attributes:
        subject: The evaluated set.
        real: The real training set.
        selection: How coreset methods choose rows of it.
        training: How networks are trained.
        max_updates: The caller's cap on the updates of a network, or None.
        subject_updates: Updates of a network on the evaluated set.
        seed: Seed of the evaluation.
    """

    subject: Subject
    real: RealImages
    selection: Selection
    training: TrainingRecipe
    max_updates: int | None
    subject_updates: int
    seed: int

    def contenders(self, names: Iterable[str]) -> list[Contender]:
        """Return the baselines of some names: `"random"`, `"full"` or coreset methods."""
        contenders: list[Contender] = []
        for name in names:
            if name == "random":
                contenders += self._random()
            elif name == "full":
                contenders.append(self._full())
            else:
                contenders.append(self._coreset(name))
        return contenders

    def _random(self) -> list[Contender]:
        """Return as many random rows as the set stores and, if it decodes into more, as many as that."""
        contenders = []
        for times in dict.fromkeys((1, self.subject.rows_per_image)):
            name = "random" if times == 1 else f"random x{times}"
            available = self.real.images.counts
            rows = {c: min(times * n, available[c]) for c, n in self._rows_per_class.items()}
            images = RandomRows(self.real, rows, self._num_classes, self.seed)
            contenders.append(Contender(name, images, self.training, self.max_updates))
        return contenders

    def _full(self) -> Contender:
        """Return all real rows of the classes that the set has rows of."""
        source, content = self.real.images, self.real.images.content_hash
        if self._rows_per_class.keys() != source.counts.keys():
            source = self.real.of_classes(self._rows_per_class)
            content = content_key(content=content, classes=[source.class_names[c] for c in source.classes])
        data = TrainingSet(source, self.real.outputs[source.labels], self._num_classes)
        updates = self.max_updates or self.subject_updates
        return Contender("full", Fixed(data, content), self.training, updates)

    def _coreset(self, name: str) -> Contender:
        positions = self.selection.positions(name, self._rows_per_class)
        data = self.real.training_set(positions, self._num_classes)
        return Contender(name, Fixed(data), self.training, self.max_updates)

    @property
    def _num_classes(self) -> int:
        return len(self.subject.class_names)

    @cached_property
    def _rows_per_class(self) -> dict[int, int]:
        """How many images the set stores of each class, by class index of the real training set."""
        subject = self.subject
        index = {output: c for c, output in enumerate(self.real.outputs.tolist()) if output >= 0}
        counts = self.real.images.counts
        if missing := [subject.class_names[c] for c in subject.stored_per_class if index.get(c) not in counts]:
            raise ValueError(
                f"source has no rows of {listed(missing)}: baselines cannot be drawn; pass the training set"
            )
        return {index[c]: n for c, n in subject.stored_per_class.items()}
