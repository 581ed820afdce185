"""The synthetic set: learnable images while condensing, exact tensors afterwards, and multi-formation decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_condense.condensed.tensors import PAD_VALUE, CondensedTensors, decode
from hf_condense.source.whitening import Whitening


@dataclass
class SyntheticSet:
    """The learnable set, in normalised space, sorted by class; what the engine optimises.

    Attributes:
        images: Leaf that requires a gradient. (N, C, H, W), normalised.
        labels: Class of every stored image. int64 (N,).
        factor: Multi-formation factor, >= 1.
        mean: Per channel, in pixel units. (C,).
        std: Per channel, in pixel units. (C,).
        clamped: Keep the images inside the image of [0, 1] after every update.
        soft_labels: Logits of the decoded rows, learnable if they require a gradient. (N * factor**2, K), or None.
        extras: Other learnable tensors by name, for example `student_lr`.
        whitening: What the images have been whitened by, if they are learned in that space; it travels with the set.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor
    factor: int = 1
    clamped: bool = True
    soft_labels: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        self.images.requires_grad_(True)
        labels = self.labels.tolist()
        if labels != sorted(labels):
            raise ValueError("a synthetic set is sorted by class; got labels out of order")
        self.rows = {c: [i for i, label in enumerate(labels) if label == c] for c in dict.fromkeys(labels)}

    def parameters(self) -> dict[str, Tensor]:
        """Return everything that is learned, by name; the images come first."""
        found = {"images": self.images, **self.extras}
        if self.soft_labels is not None and self.soft_labels.requires_grad:
            found["soft_labels"] = self.soft_labels
        return found

    def of(self, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the decoded images of some classes and their labels, ready to be trained on.

        Shapes:
            (sum of ipc * factor**2, C, H, W) and (the same,), grouped by class in the order of `classes`.
        """
        if list(classes) == list(self.rows):
            stored, labels = self.images, self.labels
        else:
            index = torch.tensor([i for c in classes for i in self.rows[c]], device=self.images.device)
            stored, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        return self.decode(stored), labels.repeat_interleave(self.factor**2)

    def targets(self, classes: Sequence[int], temperature: float = 1.0) -> Tensor:
        """Return what the rows of `of(classes)` are trained towards: labels (n,), or probabilities (n, K) if soft."""
        index = torch.tensor([i for c in classes for i in self.rows[c]], device=self.images.device)
        if self.soft_labels is None:
            return self.labels.index_select(0, index).repeat_interleave(self.factor**2)
        logits = self.soft_labels.unflatten(0, (-1, self.factor**2)).index_select(0, index).flatten(0, 1)
        probabilities: Tensor = (logits / temperature).softmax(1)
        return probabilities

    def decode(self, stored: Tensor) -> Tensor:
        """Decode stored images of this set (normalised units): (n, C, H, W) -> (n * factor**2, C, H, W)."""
        pad = (PAD_VALUE - self.mean) / self.std
        return decode(stored, self.factor, pad)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the images back into the valid pixel range, if the set is clamped."""
        if self.clamped:
            shape = (1, -1, 1, 1)
            low, high = (-self.mean / self.std).reshape(shape), ((1 - self.mean) / self.std).reshape(shape)
            self.images.copy_(torch.maximum(torch.minimum(self.images, high), low))

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, by name."""
        return {name: tensor.detach() for name, tensor in self.parameters().items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite the learned tensors with those of `state()`."""
        for name, tensor in self.parameters().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def finished(self) -> CondensedTensors:
        """Return the exact tensors in pixel units, on the CPU; clamped sets are exactly within [0, 1]."""
        shape = (1, -1, 1, 1)
        if self.whitening is None:
            pixels = self.images * self.std.reshape(shape) + self.mean.reshape(shape)
        else:
            pixels = self.whitening.undo(self.images)
        if self.clamped:
            pixels = pixels.clamp(0, 1)
        kept = dict(self.extras)
        if self.whitening is not None:
            kept |= {"zca_matrix": self.whitening.matrix, "zca_mean": self.whitening.mean}
        if self.soft_labels is not None:
            kept["soft_labels"] = self.soft_labels
        cpu = {name: tensor.detach().float().cpu().contiguous() for name, tensor in kept.items()}
        return CondensedTensors(
            images=pixels.float().cpu().contiguous(),
            labels=self.labels.cpu(),
            factor=self.factor,
            soft_labels=cpu.get("soft_labels"),
            student_lr=cpu.get("student_lr"),
            zca_matrix=cpu.get("zca_matrix"),
            zca_mean=cpu.get("zca_mean"),
        )
