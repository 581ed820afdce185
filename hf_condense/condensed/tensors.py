"""The exact tensors of a finished set, and the order of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_condense.base.checks import integer
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.decoders import Decoder, decoder_class
from hf_condense.condensed.views import ViewLabels

_CHUNK_ENTRIES, _CHUNK_NUMBERS = 64, 2**24  # entries that are decoded at a time, and numbers of their images
_OPTIONAL = ("soft_labels", "student_lr", "zca_matrix", "zca_mean")


@dataclass(frozen=True)
class CondensedTensors:
    """The exact tensors of a finished set, sorted by class. Images are in pixel units: 0 is black, 1 is white.

    Attributes:
        stored: The stored tensors by name, as in `decoder.layout`; floating-point ones may be float16. Pixels and
            patches have `images`, (N, C, H, W), which may also be uint8 (0 to 255).
        labels: Class of each entry, as an index into all class names. int64 (N,).
        decoder: The storage form, which turns stored tensors into images.
        soft_labels: Logits for every decoded row, in the order of `decoded()`. float32 (rows, K), or None.
        view_labels: Soft labels for several augmented views of every decoded row, in the same order, or None.
        student_lr: Learned learning rate of the student, for trajectory methods. float32 (), or None.
        zca_matrix: Whitening matrix, if the set was condensed in ZCA space. Networks are then trained on
            `(pixels - zca_mean) @ zca_matrix` instead of normalised images. float32 (C*H*W, C*H*W), or None.
        zca_mean: Mean of the whitening, in pixel units. float32 (C*H*W,), or None.
    """

    stored: Mapping[str, Tensor]
    labels: Tensor
    decoder: Decoder
    soft_labels: Tensor | None = None
    student_lr: Tensor | None = None
    zca_matrix: Tensor | None = None
    zca_mean: Tensor | None = None
    view_labels: ViewLabels | None = None

    @classmethod
    def of_images(cls, images: Tensor, labels: Tensor) -> CondensedTensors:
        """Return the tensors of a set that stores whole images.

        Args:
            images: In pixel units, sorted by class. float32 (N, C, H, W).
            labels: Class of each image. int64 (N,).
        """
        channels, height, width = images.shape[1:]
        return cls({"images": images}, labels, decoder_class("pixels")((channels, height, width), 1))

    @property
    def images(self) -> Tensor:
        """The stored images, in pixel units, before decoding: (N, C, H, W).

        Raises:
            AttributeError: If the set does not store images.
        """
        if not self.decoder.stores_images:
            raise AttributeError(
                f"this set stores {', '.join(self.stored)} (storage {self.decoder.name!r}), not images; "
                "its images are decoded()[0]"
            )
        images = self.stored["images"]
        return _as_numbers(images) if images.dtype == torch.uint8 else images

    @property
    def num_rows(self) -> int:
        """Number of decoded rows."""
        return len(self.labels) * self.decoder.rows_per_entry

    @property
    def row_labels(self) -> Tensor:
        """Class of every decoded row: int64 (rows,)."""
        return self.labels.repeat_interleave(self.decoder.rows_per_entry)

    @property
    def has_soft_labels(self) -> bool:
        """Whether rows, or views of them, have soft labels."""
        return self.soft_labels is not None or self.view_labels is not None

    @plain_torch()
    def decoded(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return decoded images in pixel units and their labels: (n, C, H, W) and (n,).

        They are sorted by class, while the rows of a `CondensedDataset` take classes in turn. So take the labels from
        here, not from its label column.

        Args:
            rows: Numbers of the decoded rows to return, int64 (n,). None returns all.
        """
        if rows is not None:  # which the caller may have made on a default device
            rows = rows.to(self.labels.device)
        labels = self.row_labels if rows is None else self.row_labels[rows]
        frame = self.decoder.frame.of_rows(rows)
        stored: Mapping[str, Tensor] = self.stored
        if rows is not None and self.decoder.stores_images:  # only what is asked for is converted to float32
            per_entry = self.decoder.rows_per_entry
            entries, position = torch.unique(rows // per_entry, return_inverse=True)
            stored = {name: tensor[entries] for name, tensor in stored.items()}
            rows = position * per_entry + rows % per_entry
        numbers = {name: _as_numbers(tensor) for name, tensor in stored.items()}
        images = self.decoder.images(numbers, rows, self.num_rows)
        if any(images.data_ptr() == tensor.data_ptr() for tensor in self.stored.values()):
            images = images.clone()  # callers may change what they get
        if not self.decoder.stores_images:
            images = frame.to_pixels(images)
        return images, labels

    def chunks(self) -> Iterator[Tensor]:
        """Yield all decoded images in pixel units, from a few entries at a time: (n, C, H, W)."""
        most = max(1, _CHUNK_NUMBERS // math.prod(self.decoder.image_shape))
        rows_at_once = min(_CHUNK_ENTRIES * self.decoder.rows_per_entry, most)
        for rows in torch.arange(self.num_rows, device=self.labels.device).split(rows_at_once):
            yield self.decoded(rows)[0]

    def optional(self) -> dict[str, Tensor]:
        """Return the optional tensors that this set has, by name."""
        tensors = {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}
        return {**tensors, **(self.view_labels.tensors() if self.view_labels is not None else {})}

    def all(self) -> dict[str, Tensor]:
        """Return every tensor of a file by name."""
        return {**self.stored, "labels": self.labels, **self.optional()}

    def equals(self, other: CondensedTensors) -> bool:
        """Return whether the other set has the same tensors, to the last bit."""
        tensors, others = self.all(), other.all()
        return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def _as_numbers(tensor: Tensor) -> Tensor:
    """Return stored numbers as float32, 8-bit images in [0, 1]; positions stay integers."""
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    return tensor.float() if tensor.is_floating_point() else tensor


def eight_bit_pixels(pixels: Tensor) -> Tensor:
    """Return pixels, 0 for black and 1 for white, as the nearest 8-bit numbers: uint8 of the same shape."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def are_alone(labels: Tensor) -> bool:
    """Return whether every image is the only one of its class."""
    return len(labels.unique()) == len(labels)


def round_robin(labels: Sequence[int]) -> list[int]:
    """Return the order of rows that interleaves the classes, so that any prefix is balanced.

    Example:
        >>> round_robin([0, 0, 1, 1, 1])
        [0, 2, 1, 3, 4]
    """
    turns = turns_of(labels)
    return sorted(range(len(labels)), key=lambda i: (turns[i], labels[i], i))


def check_shown(per_class: int, max_classes: int) -> None:
    """Raise `TypeError` or `ValueError` unless there is something to show of a set: an image of a class."""
    integer("per_class", per_class, least=1)
    integer("max_classes", max_classes, least=1)


def first_rows(labels: Sequence[int], per_class: int, max_classes: int | None = None) -> dict[int, list[int]]:
    """Return the first rows of the first classes, by class in label order.

    Args:
        labels: Class of every row.
        per_class: Rows of a class, at most.
        max_classes: Classes, at most; None: all.

    Example:
        >>> first_rows([0, 0, 1, 1, 1, 2], per_class=2, max_classes=2)
        {0: [0, 1], 1: [2, 3]}
    """
    rows: dict[int, list[int]] = {c: [] for c in sorted({*labels})[:max_classes]}
    for row, (c, turn) in enumerate(zip(labels, turns_of(labels), strict=True)):
        if c in rows and turn < per_class:
            rows[c].append(row)
    return rows


def turns_of(labels: Sequence[int]) -> list[int]:
    """Return for each label the number of equal labels before it.

    Example:
        >>> turns_of([0, 0, 1, 1, 1])
        [0, 1, 0, 1, 2]
    """
    counts: dict[int, int] = {}
    turns = []
    for label in labels:
        turns.append(counts.get(label, 0))
        counts[label] = turns[-1] + 1
    return turns
