"""The base class of storage forms: what a form stores, how many rows it gives, and how they are decoded."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_condense.base.memory import graph_bytes

_DECODED_AT_ONCE = 2**24  # bytes of the largest tensor while rows are decoded; several such tensors are alive

Layout = dict[str, tuple[str, list[int]]]
"""The safetensors type (`"F32"`, `"I32"` or `"I64"`) and the shape of every tensor, by name."""


@dataclass(frozen=True)
class Origin:
    """What a form may use to store real rows, apart from the rows themselves.

    Attributes:
        rows_of: Function that yields every real row of a class, by class index: batches (n, C, H, W) in the units of
            the frame.
        generator: Generator for every random draw.
        cache: Whether the result of long work may be kept under `$HF_HOME/condense`.
        progress: Whether long work shows a progress bar.
        memo: What a form found out from all rows of a class, by class index; several starts may share it.
    """

    rows_of: Callable[[int], Iterable[Tensor]]
    generator: torch.Generator
    cache: bool = False
    progress: bool = False
    memo: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """The units of decoded images: normalised while a set is learned, pixel units (0 black, 1 white) afterwards.

    Attributes:
        mean: Mean that is subtracted from pixels, per channel. (C,) or (), or (rows, C) if rows have their own.
        std: Standard deviation by which they are then divided. Its shape is that of the mean.
        clip: Whether images stay within the valid range of pixels (`pixel_range="valid"`).
    """

    mean: Tensor
    std: Tensor
    clip: bool = True

    def value(self, pixel: float) -> Tensor:
        """Convert a pixel value to these units, in a shape that broadcasts over images: (..., C, 1, 1)."""
        return ((pixel - self.mean) / self.std)[..., None, None]

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Convert images (n, C, H, W) from pixel units to these units."""
        return (pixels - self.mean[..., None, None]) / self.std[..., None, None]

    def to_pixels(self, images: Tensor) -> Tensor:
        """Convert images (n, C, H, W) from these units to pixel units, and clip them to [0, 1] if `clip` is set."""
        pixels = images * self.std[..., None, None]
        pixels += self.mean[..., None, None]
        if not self.clip:
            return pixels
        return pixels.clamp(0, 1) if pixels.requires_grad else pixels.clamp_(0, 1)  # large sets fill the memory

    def clip_images(self, images: Tensor) -> Tensor:
        """Clip images (n, C, H, W) to the valid range if `clip` is set."""
        return torch.clamp(images, *self._limits(images)) if self.clip else images

    @torch.no_grad()
    def clip_images_(self, images: Tensor) -> None:
        """Clip images (n, C, H, W) in place to the valid range if `clip` is set."""
        if self.clip:
            torch.clamp(images, *self._limits(images), out=images)

    def of_rows(self, rows: Tensor | None) -> Frame:
        """Return the units of some rows, int64 (n,), or of all."""
        shared = rows is None or self.mean.ndim < 2
        return self if shared else replace(self, mean=self.mean[rows], std=self.std[rows])

    def to(self, device: torch.device | str) -> Frame:
        """Return the same units with tensors on another device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    @cached_property
    @torch.inference_mode(False)  # a graph cannot keep tensors that are made in it
    def _black_and_white(self) -> tuple[Tensor, Tensor]:
        """The limits of clipping, which are asked for in every step."""
        return self.value(0), self.value(1)

    def _limits(self, images: Tensor) -> list[Tensor]:
        """Return the limits with the height and width of images: PyTorch clips by repeated numbers far more slowly."""
        return [limit.expand(*limit.shape[:-2], *images.shape[-2:]).contiguous() for limit in self._black_and_white]


# It is made when the module is imported, whatever default device and dtype the caller has by then.
PIXELS = Frame(
    torch.zeros((), dtype=torch.float32, device="cpu"), torch.ones((), dtype=torch.float32, device="cpu"), clip=False
)
"""Pixel units. Images that are stored in them were clipped before, if necessary."""


class Decoder(ABC):
    """A storage form, which turns stored tensors into images. It holds settings; the tensors belong to the set.

    A class has a **budget** of `ipc` images, so it may store `ipc * C * H * W` numbers. They form its **entries**,
    each of which has a label. Entries decode into **rows**, the images on which networks are trained. Entries and rows
    are sorted by class, and the rows of an entry are neighbours.

    Args:
        image_shape: (channels, height, width) of a decoded image.
        expand: Rows decoded from the space of one stored image.
        frame: Units of the decoded images.

    Raises:
        ValueError: If images of this shape cannot be stored in this form.
    """

    name: ClassVar[str]
    """Name of the form, as in `storage=`."""
    content: ClassVar[str] = "numbers that are decoded into images"
    """What is stored, in plain words for the card: "the set stores ..."."""
    papers: ClassVar[tuple[str, ...]] = ()
    """Lines that cite the papers of the form; the card has them beside that of the method."""
    format_version: ClassVar[str] = "2"
    """Version of the file format for sets of this form. Readers of version 1 know pixels and patches only."""
    stores_images: ClassVar[bool] = False
    """Whether the stored tensors are images. Files then hold them in pixel units."""
    own_rate: ClassVar[float | None] = None
    """Learning rate of the stored tensors for optimisers like Adam, whose steps do not depend on the size of gradients.
    None: the method's rate for images suits them."""
    reads_classes: ClassVar[bool] = False
    """Whether a start reads all real rows of each class, and not only those that are stored."""
    starts_apart: ClassVar[bool] = False
    """Whether equal rows start as different stored tensors, so that their gradients differ."""
    can_be_whitened: ClassVar[bool] = False
    """Whether the form works in whitened (ZCA) space, where neighbouring pixels are unrelated."""

    def __init__(self, image_shape: Iterable[int], expand: int, frame: Frame = PIXELS) -> None:
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.expand = expand
        self.frame = frame
        self.check()

    @classmethod
    @abstractmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return the value of `expand`: the caller's, else a default for the form, the images and the budget.

        Args:
            expand: The caller's value, or None.
            image_shape: (channels, height, width) of a decoded image.
            ipc: Largest budget of a class, in images.

        Raises:
            ValueError: If the value is out of range. The message says which values are right.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise `ValueError` for settings that a file cannot have."""

    @property
    def suffix(self) -> str:
        """Suffix of the name of a set in this form."""
        return f"_{self.name}{self.expand}"

    @property
    def rows_per_entry(self) -> int:
        """Number of rows that one entry decodes into."""
        return 1

    def entries(self, budget: int) -> int:
        """Return the number of entries that a budget of images holds."""
        return self.rows(budget) // self.rows_per_entry

    def rows(self, budget: int) -> int:
        """Return the number of rows that a budget of images decodes into."""
        return budget * self.expand

    def rate(self, image_rate: float) -> float:
        """Return the learning rate of the stored tensors for an image rate: `own_rate` if there is one, else that rate.

        Args:
            image_rate: The rate for images that are stored as pixels, in normalised units.
        """
        return self.own_rate or image_rate

    def optimiser(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """Return the optimiser that suits the stored tensors; default: SGD.

        Methods add groups of their own, such as soft labels, with rates that are meant for SGD.

        Args:
            groups: Parameter groups of the stored tensors.
            momentum: Momentum of SGD.
        """
        return torch.optim.SGD(groups, momentum=momentum)

    @abstractmethod
    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return stored tensors for real rows, which are sorted by class.

        Args:
            real: As many rows as the set decodes into, in the units of the frame. (rows, C, H, W).
            labels: Class of each row. int64 (rows,).
            origin: Where the rows come from.
        """

    def start_from_noise(self, noise: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return stored tensors for one noise image and one label per entry; default: as for real rows."""
        return self.start(noise, labels, origin)

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return decoded rows in the units of the frame, clipped if the frame clips. The result is differentiable.

        Args:
            stored: The stored tensors.
            rows: Numbers of the rows to return, int64 (n,). None returns all.

        Returns:
            (n, C, H, W).
        """

    @torch.no_grad()
    def images(self, stored: Mapping[str, Tensor], rows: Tensor | None, total: int) -> Tensor:
        """Return what `decode` returns, without a graph, some rows at a time: forms need memory while they decode.

        Args:
            stored: The stored tensors.
            rows: Numbers of the rows to return, int64 (n,). None returns all.
            total: Number of rows of the set.

        Returns:
            (n, C, H, W).
        """
        size = max(1, _DECODED_AT_ONCE // self.decoding_bytes())
        if (total if rows is None else len(rows)) <= size:
            return self.in_frame(self.frame.of_rows(rows)).decode(stored, rows)
        if rows is None:
            rows = torch.arange(total, device=next(iter(stored.values())).device)
        return torch.cat([self.images(stored, part, total) for part in rows.split(size)])

    def decoding_bytes(self) -> int:
        """Return the bytes of the largest tensor while a row is decoded without a graph; default: of the image."""
        return 4 * math.prod(self.image_shape)

    def row_bytes(self) -> int:
        """Return how many bytes decoding a row keeps for its backward pass; limits of clipping count as a row's own."""
        stored = self.one_entry()
        learned = [tensor.requires_grad_() for tensor in stored.values() if tensor.is_floating_point()]
        return graph_bytes(lambda: self.decode(stored), learned) // self.rows_per_entry

    def one_entry(self) -> dict[str, Tensor]:
        """Return stored tensors of one entry of one class, whose values can be decoded; default: ones."""
        kinds = {"F32": torch.float32, "I32": torch.int32, "I64": torch.int64}
        return {
            name: torch.ones(shape, dtype=kinds[kind], device=self.frame.mean.device)
            for name, (kind, shape) in self.layout(1, 1).items()
        }

    def project_(self, stored: Mapping[str, Tensor]) -> None:  # noqa: B027 - most forms have no range to keep
        """Bring stored tensors back into their valid range after an update, if they have one; default: nothing."""

    @abstractmethod
    def layout(self, entries: int, classes: int) -> Layout:
        """Return the type and shape of every stored tensor in a file.

        Args:
            entries: Number of entries of the set.
            classes: Number of classes that have entries.
        """

    def check_stored(  # noqa: B027 - most forms accept every finite value
        self, stored: Mapping[str, Tensor], labels: Tensor
    ) -> None:
        """Raise `ValueError` for values of stored tensors that cannot be decoded; default: nothing.

        Args:
            stored: Tensors of the types and shapes of `layout`, from a file of unknown origin.
            labels: Class of each entry, from that file. int64 (entries,).
        """

    def combine(self, parts: Sequence[Mapping[str, Tensor]], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the stored tensors of several sets of this form as those of one set.

        The entries are sorted by class, those of a class by part. By default every stored tensor has a row for each
        entry.

        Args:
            parts: The stored tensors of each set.
            labels: Class of each entry of each set, in a numbering that the sets share. int64 (entries,) each.

        Raises:
            ValueError: If the form cannot hold these sets together.
        """
        order = torch.cat(list(labels)).argsort(stable=True)
        return {name: torch.cat([stored[name] for stored in parts])[order] for name in parts[0]}

    def export(
        self, stored: Mapping[str, Tensor], to_pixels: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Decoder]:
        """Return the tensors in the form of a file, on the CPU, and the decoder that reads them.

        Args:
            stored: The stored tensors.
            to_pixels: Function that converts images from the units of the frame to pixel units.
        """
        # Copies: the run may go on, and change what it learns in place.
        tensors = {
            name: to_pixels(tensor).float() if self.stores_images else tensor.clone() for name, tensor in stored.items()
        }
        exported = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return exported, self.in_frame(PIXELS if self.stores_images else self.frame.to("cpu"))

    def in_frame(self, frame: Frame) -> Decoder:
        """Return the same form with decoded images in other units."""
        other = copy.copy(self)
        other.frame = frame
        return other
