"""What methods that compare real and synthetic batches share: siamese augmentation, embeddings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hf_condense.engine.method import Loss, option
from hf_condense.methods._images import ImageConfig, ImageMethod
from hf_condense.networks.augment import Transform

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


@dataclass(frozen=True)
class SiameseConfig(ImageConfig):
    """Options of methods that compare real and synthetic batches."""

    batch_real: int = option(256, "Real images per class and step.", ge=1, role="batch_real", tiny=6)


ConfigT = TypeVar("ConfigT", bound=SiameseConfig)


class SiameseMethod(ImageMethod[ConfigT]):
    """Base of methods that compare real and synthetic batches under the same augmentation."""

    def __init__(self, config: ConfigT) -> None:
        """Keep the options; nothing is drawn yet."""
        super().__init__(config)
        self._drawn: tuple[int, Transform] | None = None  # a draw and its parameters: all chunks of a step share them

    def real_rows(self, run: Run, classes: Sequence[int], draw: int) -> Tensor:
        """Return the real batch of a draw, augmented: (k * batch_real, C, H, W), grouped by class."""
        rows = run.real_batch(classes, self.config.batch_real, draw).flatten(0, 1)
        return self.augmented(run, rows, torch.tensor(classes).repeat_interleave(self.config.batch_real), draw)

    def synthetic_rows(self, run: Run, classes: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Return the decoded synthetic rows under the augmentation of a draw, and their labels."""
        rows, labels = run.synthetic.of(classes)
        return self.augmented(run, rows, labels, draw), labels

    def augmented(self, run: Run, rows: Tensor, labels: Tensor, draw: int) -> Tensor:
        """Transform rows with the parameters that their class has in this draw, real and synthetic alike."""
        if self.augmentation is None:
            return rows
        if self._drawn is None or self._drawn[0] != draw:
            self._drawn = draw, self.augmentation.draw(run.num_classes, run.rng("augment", draw))
        return self._drawn[1](rows, labels)


@dataclass(frozen=True)
class EmbeddingConfig(SiameseConfig):
    """Options of methods that compare embeddings under random networks."""

    ipm: int = option(1, "Steps per random network; a larger one saves forwards of the real images.", ge=1)
    reuse_real: bool = option(
        True, "Compare with the same real batch, under the same augmentation, in all the steps of a network."
    )


EmbeddingT = TypeVar("EmbeddingT", bound=EmbeddingConfig)


class EmbeddingMatching(SiameseMethod[EmbeddingT]):
    """Base of methods that compare embeddings of real and synthetic rows under fresh random networks."""

    def __init__(self, config: EmbeddingT) -> None:
        """Keep the options; no network is there yet."""
        super().__init__(config)
        self._born = -1  # the step for which the present network was drawn
        self._kept: dict[tuple[int, ...], Tensor] = {}  # what is known of the real rows under it, by chunk

    def summary(self, real: Tensor) -> Tensor:
        """Return what the comparison needs of the real embeddings (k, B, D); default: all of them."""
        return real

    @abstractmethod
    def discrepancy(self, real: Tensor, synthetic: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """Compare class by class and sum over classes.

        Shapes:
            real (k, ...) as `summary` returns it, synthetic (n, D), labels (n,), classes (k,) -> ()
        """

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the discrepancies, one chunk of classes at a time."""
        born = t - t % self.config.ipm
        if born != self._born:
            run.network("network", born)
            self._born, self._kept = born, {}
        draw = born if self.config.reuse_real else t
        for classes in run.chunks():
            wanted = torch.tensor(classes, device=run.device)
            rows, labels = self.synthetic_rows(run, classes, draw)
            loss = self.discrepancy(self._real(run, classes, draw), run.embed(rows), labels, wanted)
            yield Loss(loss, loss.detach())

    @torch.no_grad()
    def _real(self, run: Run, classes: tuple[int, ...], draw: int) -> Tensor:
        """Return the summary of the real rows of a chunk, kept while the same rows are compared with again."""
        if classes in self._kept:
            return self._kept[classes]
        embedded = run.embed(self.real_rows(run, classes, draw)).unflatten(0, (len(classes), -1))  # (k, B, D)
        known = self.summary(embedded)
        if self.config.reuse_real and self.config.ipm > 1:
            self._kept[classes] = known
        return known
