"""What an evaluation trains on: the set itself, and the baselines that are drawn from the real training set."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from hf_condense.base.cache import content_key
from hf_condense.base.checks import listed
from hf_condense.base.words import plural
from hf_condense.condensed.scores import RELABELLED, SOFT_LABELS
from hf_condense.evaluation.draws import Fixed, LabelledRows, RandomDraws, StoredRows, TrainingImages
from hf_condense.evaluation.selection import Selection
from hf_condense.evaluation.subject import RealImages, Subject
from hf_condense.networks.training_recipe import TrainingRecipe, epochs_for
from hf_condense.networks.training_set import TrainingSet

logger = logging.getLogger("hf_condense")


@dataclass(frozen=True)
class Contender:
    """One set that networks are trained on, and how.

    Attributes:
        name: Its name in the table.
        images: Gives the images for every network.
        training: How networks are trained on them.
        max_updates: Cap on the updates of a network, or None.
        ipc: Images per class that the evaluated set was cut down to, or None.
    """

    name: str
    images: TrainingImages
    training: TrainingRecipe
    max_updates: int | None
    ipc: int | None = None

    @property
    def rows(self) -> int:
        """Images that a network is trained on."""
        return len(self.images)

    @property
    def updates(self) -> int:
        """Updates of a network."""
        return self.training.updates(self.rows, self.max_updates)


def subject_contenders(
    subject: Subject, training: TrainingRecipe, max_updates: int | None, ipc: int | None
) -> list[Contender]:
    """Return the evaluated set as contenders: as it is, and, where that differs, in 8 bits and with hard labels."""
    return [
        Contender(subject.name + ending, Fixed(data), training, max_updates, ipc)
        for ending, data in subject.variants().items()
    ]


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
        ipc: Images per class that the evaluated set was cut down to, or None.
    """

    subject: Subject
    real: RealImages
    selection: Selection
    training: TrainingRecipe
    max_updates: int | None
    subject_updates: int
    seed: int
    ipc: int | None = None

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
        """Return as many random rows as the set stores, also with the labels of its teacher if that is at hand.

        If it decodes into more, also return as many as that, and these in the form of the set.
        """
        rows = self._random_rows(1)
        contenders = [self._drawn("random", rows)]
        if self.subject.logits_of is not None:
            labelled = LabelledRows(rows, self.subject.logits_of, self.subject.data)
            ending = SOFT_LABELS if self.subject.data.relabel is None else RELABELLED
            contenders.append(self._drawn("random" + ending, labelled))
        decoder = self.subject.decoder
        if decoder is not None and decoder.expand > 1:
            rows = self._random_rows(decoder.expand)
            stored = StoredRows(rows, self.subject, decoder, self.selection.cache, self.selection.progress)
            contenders.append(self._drawn(f"random x{decoder.expand}", rows))
            contenders.append(self._drawn(f"random as {decoder.name}{decoder.expand}", stored))
        return contenders

    def _random_rows(self, times: int) -> RandomDraws:
        """Return some times as many random rows of each class as the set stores, or all that the class has."""
        available = self.real.images.counts
        rows = {c: min(times * n, available[c]) for c, n in self._rows_per_class.items()}
        if scarce := sum(rows[c] < times * n for c, n in self._rows_per_class.items()):
            logger.warning(
                "%d of %d %s too few real rows for a baseline of random rows (%d for each image that the set stores), "
                "which then takes all of them",
                scarce,
                len(rows),
                f"{plural(len(rows), 'class')} {'has' if scarce == 1 else 'have'}",
                times,
            )
        return RandomDraws(self.real, rows, self._num_classes, self.seed)

    def _drawn(self, name: str, images: TrainingImages) -> Contender:
        return Contender(name, images, self.training, self.max_updates, self.ipc)

    def _full(self) -> Contender:
        """Return all real rows of the classes that the set has rows of."""
        source = self.real.images
        if self._rows_per_class.keys() != source.counts.keys():
            source = self.real.of_classes(self._rows_per_class).images
        data = TrainingSet(source, self.real.outputs[source.labels], self._num_classes)
        updates, training = self.max_updates or self.subject_updates, self.training
        if training.updates(len(data)) < self.subject_updates:  # a form may decode into more rows than a small source
            training = replace(training, epochs=epochs_for(self.subject_updates, len(data), training.batch_size))
        # The same rows may stand for other outputs of networks.
        content = content_key(content=source.content_hash, outputs=self.real.outputs.tolist())
        return Contender("full", Fixed(data, content), training, updates)

    def _coreset(self, name: str) -> Contender:
        positions = self.selection.positions(name, self._rows_per_class)
        data = self.real.training_set(positions, self._num_classes)
        return Contender(name, Fixed(data), self.training, self.max_updates, self.ipc)

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
