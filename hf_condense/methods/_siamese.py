"""Shared parts of methods that compare real and synthetic batches: rows of a draw under siamese augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hf_condense.engine.options import option
from hf_condense.methods._images import ImageConfig, ImageMethod, batch_rows
from hf_condense.networks.augment import Transform

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


@dataclass(frozen=True)
class SiameseConfig(ImageConfig):
    """Options of methods that compare real and synthetic batches."""

    batch_real: int = option(256, "Real images per class and step.", ge=1, role="batch_real", tiny=6)
    batch_syn: int | None = option(
        None,
        "Decoded rows of each class per step, taken from permutations of the class's rows; None: all. A smaller number "
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
        """Return the real batch of a draw, augmented: (k * B, C, H, W), grouped by class; B is `batch_real` or less."""
        rows = run.real_batch(classes, self.config.batch_real, draw)  # (k, B, C, H, W)
        return self.augmented(run, rows.flatten(0, 1), torch.tensor(classes).repeat_interleave(rows.shape[1]), draw)

    def synthetic_rows(
        self, run: Run, classes: Sequence[int], draw: int, *, rows_of: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return decoded synthetic rows under the augmentation of a draw, and their labels.

        Args:
            run: The run.
            classes: The classes.
            draw: Number of the draw whose augmentation is taken.
            rows_of: Number of the draw whose rows are taken (`row_numbers`); None: the same.
        """
        numbers = self.row_numbers(run, classes, draw if rows_of is None else rows_of)
        rows, labels = run.synthetic.at(numbers)
        return self.augmented(run, rows, run.synthetic.classes_of(numbers), draw), labels

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many rows of every class a draw has."""
        return batch_rows(run, self.config.batch_syn)

    def row_numbers(self, run: Run, classes: Sequence[int], draw: int) -> Tensor | None:
        """Return the numbers of the synthetic rows of a draw, grouped by class, on the CPU: (n,), or None for all."""
        amounts = self.rows_per_step(run)
        if amounts == run.counts and tuple(classes) == run.classes:
            return None
        return torch.cat([_drawn_rows(run, c, amounts[c], draw) for c in classes])

    def augmented(self, run: Run, rows: Tensor, labels: Tensor, draw: int) -> Tensor:
        """Augment rows with the parameters of their class in this draw, the same for real and synthetic rows.

        The labels should be on the CPU, because those on a GPU would be waited for.
        """
        if self.augmentation is None:
            return rows
        if self._transform is None or self._transform[0] != draw:
            self._transform = draw, self.augmentation.draw(run.num_classes, run.rng("augment", draw))
        return self._transform[1](rows, labels)


def _drawn_rows(run: Run, c: int, n: int, draw: int) -> Tensor:
    """Return the numbers of a class's rows in a draw: the next ones of a permutation, so that all take turns."""
    rows = torch.tensor(run.synthetic.rows[c])
    if n == len(rows):
        return rows
    draws = len(rows) // n  # that one permutation gives; what is left over waits for the next one
    order = torch.randperm(len(rows), generator=run.rng("rows", run.source.class_names[c], draw // draws))
    return rows[order[draw % draws * n :][:n]]
