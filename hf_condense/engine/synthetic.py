"""The learnable set: the stored tensors of a decoder, which a run optimises in normalised space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.condensed.decoders import Decoder
from hf_condense.condensed.tensors import CondensedTensors, eight_bit_pixels
from hf_condense.condensed.views import ViewLabels
from hf_condense.source.whitening import Whitening

_ROWS = 256  # that are rounded at a time: large pictures fill the memory


@dataclass
class SyntheticSet:
    """The learnable set, in normalised space and sorted by class. The engine optimises it.

    Attributes:
        stored: The decoder's tensors by name. Tensors of a floating-point type are learned: they are leaves that
            require a gradient. The others, such as positions, never change.
        labels: Class of every entry. int64 (N,).
        decoder: Turns the stored tensors into rows.
        soft_labels: Logits of the decoded rows. They are learned if they require a gradient. (rows, K), or None.
        student_lr: Learning rate of a student, which is learned and stored with the images. (), or None.
        whitening: The whitening, if images are learned in whitened space; it is stored with the set.
        teacher: Facts about the networks that gave the soft labels, or the first ones, as `Recipe.teacher` has them; or
            None.
        view_labels: Soft labels of several augmented views of every decoded row, in place of `soft_labels`; or None.
        labeller: What gives logits for images in pixel units, in the order of the class names, if it is at hand:
            (n, C, H, W) -> (n, K). It is not stored.
        row_labels: Class of every decoded row. int64 (rows,).
        row_classes: The same on the CPU, where they are read without waiting for the device.
        rows: Numbers of the decoded rows of each class.
    """

    stored: dict[str, Tensor]
    labels: Tensor
    decoder: Decoder
    soft_labels: Tensor | None = None
    student_lr: Tensor | None = None
    whitening: Whitening | None = None
    teacher: dict[str, Any] | None = None
    view_labels: ViewLabels | None = None
    labeller: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for tensor in self.learned().values():
            tensor.requires_grad_(True)
        labels = self.labels.tolist()
        if labels != sorted(labels):
            raise ValueError("labels of a synthetic set should be sorted by class; got labels out of order")
        self.row_labels = self.labels.repeat_interleave(self.decoder.rows_per_entry)  # (rows,)
        self.row_classes = self.row_labels.cpu()  # (rows,)
        self.rows: dict[int, list[int]] = {c: [] for c in labels}
        for i, c in enumerate(self.row_classes.tolist()):
            self.rows[c].append(i)

    def learned(self) -> dict[str, Tensor]:
        """Return the stored tensors that are learned, by name."""
        return {name: tensor for name, tensor in self.stored.items() if tensor.is_floating_point()}

    def parameters(self) -> dict[str, Tensor]:
        """Return every learned tensor by name; the images come first."""
        parameters = self.learned()
        if self.student_lr is not None:
            parameters["student_lr"] = self.student_lr
        if self.soft_labels is not None and self.soft_labels.requires_grad:
            parameters["soft_labels"] = self.soft_labels
        return parameters

    def of(self, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the decoded rows of some classes and their labels.

        Args:
            classes: Class indices; rows are grouped in this order.

        Returns:
            (n, C, H, W) and (n,), where n is the number of rows of these classes.
        """
        return self.at(self._index(classes))

    def at(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return some decoded rows and their labels.

        Args:
            rows: Numbers of the rows, int64 (n,), on the CPU or on the device. None returns all.

        Returns:
            (n, C, H, W) and (n,), on the device.
        """
        rows = self._on_device(rows)
        labels = self.row_labels if rows is None else self.row_labels.index_select(0, rows)
        if torch.is_grad_enabled():
            return self.decoder.decode(self.stored, rows), labels
        return self.decoder.images(self.stored, rows, len(self.row_labels)), labels

    def classes_of(self, rows: Tensor | None) -> Tensor:
        """Return the labels of some rows, given by their numbers on the CPU, or of all rows: (n,), on the CPU."""
        return self.row_classes if rows is None else self.row_classes[rows]

    def all(self) -> tuple[Tensor, Tensor]:
        """Return all decoded rows and their labels: (rows, C, H, W) and (rows,)."""
        return self.of(list(self.rows))

    def targets_at(self, rows: Tensor | None, temperature: float = 1.0) -> Tensor:
        """Return the training targets of the rows of `at(rows)`: labels (n,), or probabilities (n, K) if soft."""
        rows = self._on_device(rows)
        labels = self.row_labels if self.soft_labels is None else self.soft_labels
        labels = labels if rows is None else labels.index_select(0, rows)
        return labels if self.soft_labels is None else (labels / temperature).softmax(1)

    def zero(self) -> Tensor:
        """Return 0 with a graph that leads to every learned image, for a share of the objective without rows: ()."""
        return torch.stack([0 * tensor.sum() for tensor in self.learned().values()]).sum()

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the stored tensors back into their valid range, if they have one."""
        self.decoder.project_(self.stored)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, by name: the stored tensors and everything else that is learned."""
        return {name: tensor.detach() for name, tensor in {**self.stored, **self.parameters()}.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite the tensors with those of `state()`."""
        for name, tensor in {**self.stored, **self.parameters()}.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def finished(self, dtype: torch.dtype = torch.float32) -> CondensedTensors:
        """Return the exact tensors on the CPU, images in pixel units. Clipped images lie exactly within [0, 1].

        Args:
            dtype: Type to which stored floating-point numbers are rounded; uint8 is for images only.

        Raises:
            OverflowError: If a number is too large for this type.
        """
        exported, decoder = self.decoder.export(self.stored, self._to_pixels)
        stored = {name: _rounded(name, t, dtype) if t.is_floating_point() else t for name, t in exported.items()}
        return CondensedTensors(
            stored=stored,
            labels=self.labels.cpu(),
            decoder=decoder,
            soft_labels=_exact(self.soft_labels),
            student_lr=_exact(self.student_lr),
            zca_matrix=None if self.whitening is None else _exact(self.whitening.matrix),
            zca_mean=None if self.whitening is None else _exact(self.whitening.mean),
            view_labels=self.view_labels,
        )

    @torch.no_grad()
    def pixels_at(self, rows: Tensor) -> Tensor:
        """Return some decoded rows in pixel units, on the CPU, as they are now.

        Args:
            rows: Numbers of the rows, int64 (n,).

        Returns:
            float32 (n, C, H, W).
        """
        images = self._to_pixels(self.at(rows.to(self.labels.device))[0])
        return images.detach().float().cpu()

    def _to_pixels(self, images: Tensor) -> Tensor:
        """Convert images from the space of this set to pixel units."""
        return self.decoder.frame.to_pixels(images) if self.whitening is None else self.whitening.undo(images)

    def _index(self, classes: Sequence[int]) -> Tensor | None:
        """Return the row numbers of some classes, or None if they are all rows in order."""
        if list(classes) == list(self.rows):
            return None
        return torch.tensor([i for c in classes for i in self.rows[c]])

    def _on_device(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else to_device(rows, self.labels.device)


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another type; raise if that cannot hold its numbers. Pixels become 8-bit numbers."""
    if dtype == torch.uint8:
        return torch.cat([eight_bit_pixels(part) for part in tensor.split(_ROWS)])
    largest, most = float(tensor.abs().max()), torch.finfo(dtype).max
    if largest > most:
        kind = str(dtype).removeprefix("torch.")
        raise OverflowError(f"{name} has numbers up to {largest:,.0f}, and {kind} holds numbers up to {most:,.0f}")
    return tensor.to(dtype)


def _exact(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor as files store it: float32, on the CPU."""
    return None if tensor is None else tensor.detach().float().cpu().contiguous()
