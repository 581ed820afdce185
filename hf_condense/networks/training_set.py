"""What a network is trained on: images and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.base.rng import Key, keyed_generator
from hf_condense.condensed.views import ViewLabels
from hf_condense.source.class_source import ClassSource


@dataclass(frozen=True)
class TrainingSet:
    """The images and labels that a network is trained on.

    Attributes:
        images: Normalised images (N, C, H, W) on the training device, or a source, whose images are read and
            normalised one batch at a time.
        labels: Class of every image, int64 (N,), or soft labels: logits, float32 (N, K).
        num_classes: Number K of the network's outputs.
        temperature: The temperature of soft labels, > 0. Targets are softmax(logits / temperature), and the network's
            own logits are divided by it too.
        views: Soft labels of several views of every image, or None. Each update sees a random view of an image.
        relabel: What gives new logits (n, K) for the images (n, C, H, W) of every update, after they were augmented and
            mixed; or None. It takes the place of all labels.
    """

    images: Tensor | ClassSource
    labels: Tensor
    num_classes: int
    temperature: float = 1.0
    views: ViewLabels | None = None
    relabel: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (C, H, W)."""
        return self.images.image_shape if isinstance(self.images, ClassSource) else tuple(self.images.shape[1:])

    @property
    def soft(self) -> bool:
        """Return whether the labels are soft: logits."""
        return self.labels.is_floating_point() or self.views is not None or self.relabel is not None

    @property
    def sees_views(self) -> bool:
        """Return whether an update sees the views that have labels of their own."""
        return self.views is not None and self.relabel is None

    @classmethod
    def joined(cls, sets: Sequence[TrainingSet]) -> TrainingSet:
        """Return the rows of several sets, whose labels are of one kind, one after the other and in memory."""
        views = [data.views for data in sets if data.views is not None]
        return replace(
            sets[0],
            images=torch.cat([data._images_at(torch.arange(len(data))) for data in sets]),
            labels=torch.cat([data.labels for data in sets]),
            views=ViewLabels.joined(views) if views else None,
        )

    @cached_property
    def _labels(self) -> Tensor:
        """The labels, where the images are kept: one copy of an index then serves both."""
        kept = self.images.images if isinstance(self.images, ClassSource) else self.images
        return to_device(self.labels, kept.device)

    def part(self, index: Tensor) -> TrainingSet:
        """Return some rows (n,) as a training set, in memory."""
        labels, views = self.labels[index.to(self.labels.device)], self.views
        part_of_views = None if views is None else views.part(index)
        return replace(self, images=self._images_at(index), labels=labels, views=part_of_views)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (n, C, H, W) of some rows (n,), and the probabilities (n, K) that they should get."""
        index = to_device(index, self._labels.device)
        images = self._images_at(index)
        labels = to_device(self._labels[index], images.device)  # (n,) or (n, K)
        if labels.is_floating_point():
            return images, (labels / self.temperature).softmax(1)
        return images, F.one_hot(labels, self.num_classes).to(images.dtype)

    def _images_at(self, index: Tensor) -> Tensor:
        """Return the images of some rows (n,): (n, C, H, W)."""
        if isinstance(self.images, ClassSource):
            return self.images.at(index)
        return self.images[to_device(index, self.images.device)]

    def draw(self, index: Tensor, *keys: tuple[Key, ...]) -> tuple[Tensor, Tensor]:
        """Return what `batch` does, or a random view of each row if views have labels.

        Args:
            index: Numbers of the rows. int64 (n,).
            *keys: Addresses of the draws: one for each of as many equal parts of the rows.
        """
        images, targets = self.batch(index)
        if self.views is None or not self.sees_views:
            return images, targets
        index, n = index.cpu(), len(index) // len(keys)
        chosen = torch.cat(
            [torch.randint(self.views.num_views, (n,), generator=keyed_generator(*key, "view")) for key in keys]
        )
        return self.views.seen(images, index, chosen, self.temperature)
