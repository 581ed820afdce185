"""The images that the networks of a contender are trained on: the same for all, or drawn anew for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_condense.base.rng import Key, keyed_generator
from hf_condense.base.spread import repeated
from hf_condense.condensed.decoders import Decoder, Origin
from hf_condense.condensed.tensors import CondensedTensors
from hf_condense.condensed.views import ViewLabels
from hf_condense.engine.initial import labels_of
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.evaluation.subject import RealImages, Subject
from hf_condense.networks.training_set import TrainingSet

_BATCH = 64  # images that a teacher labels at a time


class TrainingImages(ABC):
    """The images that networks are trained on."""

    content: str | None = None
    """Hash of the images if other evaluations train on the same ones, whose scores are cached; None otherwise."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def for_seed(self, network_seed: Key) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""


@dataclass(frozen=True)
class Fixed(TrainingImages):
    """The same images for every network.

    Attributes:
        data: The images and their labels.
        content: Their hash, or None.
    """

    data: TrainingSet
    content: str | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.data)

    def for_seed(self, network_seed: Key) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        return self.data


@dataclass(frozen=True)
class RandomDraws(TrainingImages):
    """Random real rows, drawn anew for every network.

    Attributes:
        real: The real training set.
        rows_per_class: Rows to draw of every class, by class index of `real`; at most as many as the class has.
        num_classes: Outputs of a network.
        seed: Seed of the evaluation.
    """

    real: RealImages
    rows_per_class: dict[int, int]
    num_classes: int
    seed: int

    def __len__(self) -> int:
        """Return the number of images."""
        return sum(self.rows_per_class.values())

    def positions(self, network_seed: Key) -> dict[int, Tensor]:
        """Return the positions in the source of the rows for a seed, int64 (n,), by class index of `real`."""
        draw = self.real.images.draw
        return {c: draw(c, n, self.seed, "evaluate", "rows", network_seed) for c, n in self.rows_per_class.items()}

    def for_seed(self, network_seed: Key) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        return self.real.training_set(torch.cat(list(self.positions(network_seed).values())), self.num_classes)


@dataclass(frozen=True)
class LabelledRows(TrainingImages):
    """Random real rows with the soft labels of a teacher, of the same kind as those of the evaluated set.

    Attributes:
        rows: Draws the rows.
        logits_of: The teacher: gives the logits (n, K) of normalised images (n, C, H, W).
        like: The evaluated set, whose temperature and views the rows share.
    """

    rows: RandomDraws
    logits_of: Callable[[Tensor], Tensor]
    like: TrainingSet

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @torch.no_grad()
    def for_seed(self, network_seed: Key) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        rows = self.rows.for_seed(network_seed)
        images, _ = rows.batch(torch.arange(len(rows)))
        rows = replace(rows, images=images, temperature=self.like.temperature)
        if self.like.relabel is not None:
            return replace(rows, relabel=self.like.relabel)
        if (views := self.like.views) is not None:
            # Views are cut as those of the set are, which has at least as many rows.
            return replace(rows, views=ViewLabels.of_images(images, self.logits_of, views.crops[: len(rows)], views.k))
        return replace(rows, labels=torch.cat([self.logits_of(part).float() for part in images.split(_BATCH)]))


@dataclass(frozen=True)
class StoredRows(TrainingImages):
    """Random real rows that are stored in the form of the evaluated set: where learning may start from.

    The rows for a seed are those that `rows` draws. The set itself gives its form and its normalisation, and nothing
    that it has learned.

    Attributes:
        rows: Draws the rows: as many of each class as the set decodes into, or all that the class has.
        subject: The evaluated set.
        decoder: Its storage form, in the normalisation that it was made for.
        cache: Whether fits to rows may be kept under `$HF_HOME/condense`.
        progress: Whether fits to rows show a progress bar.
    """

    rows: RandomDraws
    subject: Subject
    decoder: Decoder
    cache: bool
    progress: bool
    _memo: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _stored: dict[Key, CondensedTensors] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return sum(self._counts(self.decoder.rows).values())

    def for_seed(self, network_seed: Key) -> TrainingSet:
        """Return the images that the network of a seed is trained on."""
        if network_seed not in self._stored:  # the network of another kind has asked for them otherwise
            self._stored[network_seed] = self._store(network_seed)
        tensors = self._stored[network_seed]
        return TrainingSet(self.subject.images_of(tensors), tensors.row_labels, self.rows.num_classes)

    def _store(self, network_seed: Key) -> CondensedTensors:
        """Draw the rows for a seed and store them."""
        real, positions = self.rows.real, self.rows.positions(network_seed)
        source, own_class = real.images, {int(real.outputs[c]): c for c in positions}
        counts = self._counts(self.decoder.rows)
        # In the order of the set's classes. A class with fewer rows repeats them, as the start of a run does, but for
        # the noise of copies.
        rows = [repeated(positions[own_class[c]], n) for c, n in counts.items()]
        origin = Origin(
            rows_of=lambda c: source.batches(own_class[c]),
            generator=keyed_generator(self.rows.seed, "evaluate", "form", network_seed),
            cache=self.cache,
            progress=self.progress,
            memo=self._memo,
        )
        stored = self.decoder.start(source.at(torch.cat(rows)), labels_of(counts, source.device), origin)
        labels = labels_of(self._counts(self.decoder.entries), source.device)
        synthetic = SyntheticSet(stored, labels, self.decoder, whitening=source.whitening)
        synthetic.project_()
        return synthetic.finished(self.subject.store_dtype)

    def _counts(self, of_budget: Callable[[int], int]) -> dict[int, int]:
        """Return a number for the budget of every class, by class index of the set."""
        return {c: of_budget(budget) for c, budget in self.subject.stored_per_class.items()}
