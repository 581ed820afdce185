"""Shared parts of methods that compare real and synthetic batches: siamese augmentation, embeddings."""

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
    batch_syn: int | None = option(
        None,
        "Decoded rows per class and step, taken from permutations of the class's rows; None: all. A smaller number "
        "makes steps cheaper where a storage form decodes into many rows.",
        ge=1,
    )


ConfigT = TypeVar("ConfigT", bound=SiameseConfig)


class SiameseMethod(ImageMethod[ConfigT]):
    """Base class of methods that compare real and synthetic batches under the same augmentation."""

    def __init__(self, config: ConfigT) -> None:
        super().__init__(config)
        # The number of the last draw and its augmentation: all chunks of a step share them.
        self._transform: tuple[int, Transform] | None = None

    def real_rows(self, run: Run, classes: Sequence[int], draw: int) -> Tensor:
        """Return the real batch of a draw, augmented: (k * batch_real, C, H, W), grouped by class."""
        rows = run.real_batch(classes, self.config.batch_real, draw).flatten(0, 1)
        return self.augmented(run, rows, torch.tensor(classes).repeat_interleave(self.config.batch_real), draw)

    def synthetic_rows(self, run: Run, classes: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Return the decoded synthetic rows of a draw under its augmentation, and their labels."""
        rows, labels = run.synthetic.at(self.row_numbers(run, classes, draw))
        return self.augmented(run, rows, labels, draw), labels

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many rows of every class a draw has."""
        return {c: min(self.config.batch_syn or n, n) for c, n in run.counts.items()}

    def row_numbers(self, run: Run, classes: Sequence[int], draw: int) -> Tensor | None:
        """Return the numbers of the synthetic rows of a draw, grouped by class: (n,), or None if they are all rows."""
        amounts = self.rows_per_step(run)
        if amounts == run.counts and tuple(classes) == run.classes:
            return None
        return torch.cat([self._drawn_rows(run, c, amounts[c], draw) for c in classes]).to(run.device)

    def _drawn_rows(self, run: Run, c: int, n: int, draw: int) -> Tensor:
        """Return the numbers of a class's rows in a draw: the next ones of a permutation, so that all take turns."""
        rows = torch.tensor(run.synthetic.rows[c])
        if n == len(rows):
            return rows
        draws = len(rows) // n  # that one permutation gives; what is left over waits for the next one
        order = torch.randperm(len(rows), generator=run.rng("rows", run.source.class_names[c], draw // draws))
        return rows[order[draw % draws * n :][:n]]

    def augmented(self, run: Run, rows: Tensor, labels: Tensor, draw: int) -> Tensor:
        """Augment rows with the parameters of their class in this draw, the same for real and synthetic rows."""
        if self.augmentation is None:
            return rows
        if self._transform is None or self._transform[0] != draw:
            self._transform = draw, self.augmentation.draw(run.num_classes, run.rng("augment", draw))
        return self._transform[1](rows, labels)


@dataclass(frozen=True)
class EmbeddingConfig(SiameseConfig):
    """Options of methods that compare embeddings under random networks."""

    ipm: int = option(1, "Steps per random network. A larger number saves forward passes of the real images.", ge=1)
    reuse_real: bool = option(True, "Use the same real batch and the same augmentation in all steps of a network.")


EmbeddingT = TypeVar("EmbeddingT", bound=EmbeddingConfig)


class EmbeddingMatching(SiameseMethod[EmbeddingT]):
    """Base class of methods that compare embeddings of real and synthetic rows under fresh random networks."""

    def __init__(self, config: EmbeddingT) -> None:
        super().__init__(config)
        self._network_step = -1  # the step for which the current network was drawn
        self._summaries: dict[tuple[int, ...], Tensor] = {}  # of the real rows under this network, by chunk

    def summary(self, real: Tensor) -> Tensor:
        """Return what the comparison needs of the real embeddings (k, B, D); default: all of them."""
        return real

    @abstractmethod
    def discrepancy(self, real: Tensor, synthetic: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """Return the discrepancy of each class, summed over classes.

        Args:
            real: What `summary` returned for the real embeddings. (k, ...).
            synthetic: Embeddings of the synthetic rows. (n, D).
            labels: Classes of the synthetic rows. (n,).
            classes: The classes of the chunk. (k,).

        Returns:
            ().
        """

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the discrepancies, one chunk of classes at a time."""
        network_step = t - t % self.config.ipm
        if network_step != self._network_step:
            run.network("network", network_step)
            self._network_step, self._summaries = network_step, {}
        draw = network_step if self.config.reuse_real else t
        for classes in run.chunks():
            rows, labels = run.synthetic.at(self.row_numbers(run, classes, t))
            rows = self.augmented(run, rows, labels, draw)
            real = self._real_summary(run, classes, draw)
            loss = self.discrepancy(real, run.embed(rows), labels, torch.tensor(classes, device=run.device))
            yield Loss(loss, loss.detach())

    @torch.no_grad()
    def _real_summary(self, run: Run, classes: tuple[int, ...], draw: int) -> Tensor:
        """Return the summary of the real rows of a chunk, and keep it if later steps use the same rows again."""
        if classes in self._summaries:
            return self._summaries[classes]
        embeddings = run.embed(self.real_rows(run, classes, draw)).unflatten(0, (len(classes), -1))  # (k, B, D)
        summary = self.summary(embeddings)
        if self.config.reuse_real and self.config.ipm > 1:
            self._summaries[classes] = summary
        return summary
