"""What every storage form declares: what it stores, how many rows that gives, and how it is decoded."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

Layout = dict[str, tuple[str, list[int]]]
"""Name of a tensor to its safetensors type (`"F32"`, `"I64"`) and its shape."""


@dataclass(frozen=True)
class Frame:
    """The units of decoded images: normalised while a set is learned, pixels (0 black, 1 white) when it is finished.

    Attributes:
        mean: What is subtracted from pixels, per channel. (C,) or ().
        std: What they are then divided by. (C,) or ().
        clip: Whether images stay in the valid range of pixels (`pixel_range="valid"`).
    """

    mean: Tensor
    std: Tensor
    clip: bool = True

    def value(self, pixel: float) -> Tensor:
        """Return a pixel value in these units, ready to be broadcast over images: (C, 1, 1)."""
        return ((pixel - self.mean) / self.std).reshape(-1, 1, 1)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Return images (n, C, H, W) of these units in pixel units, within [0, 1] if they are clipped."""
        pixels = images * self.std.reshape(-1, 1, 1) + self.mean.reshape(-1, 1, 1)
        return pixels.clamp(0, 1) if self.clip else pixels

    def clip_images(self, images: Tensor) -> Tensor:
        """Return images (n, C, H, W) with every value brought into the valid range, if this frame clips."""
        return torch.maximum(torch.minimum(images, self.value(1)), self.value(0)) if self.clip else images

    def to(self, device: torch.device | str) -> Frame:
        """Return the same units with their tensors on another device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))


PIXELS = Frame(torch.zeros(()), torch.ones(()), clip=False)
"""Pixel units. What is stored in them has been clipped already, if it had to be."""


class Decoder(ABC):
    """Turns stored tensors into images. Settings only: the tensors are the set's, and everything else sees rows alone.

    A class has a **budget** of `ipc` images: it may store `ipc * C * H * W` numbers. They are its **entries**,
    each with a label; they decode into **rows**, the images that networks are trained on. Rows and entries are sorted
    by class; the rows of one entry are neighbours.

    Args:
        image_shape: (channels, height, width) of a decoded image.
        expand: Rows for each image of the budget.
        frame: Units of the decoded images.

    Raises:
        ValueError: If images of this shape cannot be stored in this form.
    """

    name: ClassVar[str]
    """Name of the form, as in `storage=`."""
    format_version: ClassVar[str] = "2"
    """Version of the file format that sets of this form need; readers of version 1 know pixels and patches only."""
    stores_images: ClassVar[bool] = False
    """Whether the stored tensors are images themselves: files then hold them in pixel units."""
    can_be_whitened: ClassVar[bool] = False
    """Whether the form means anything in whitened (ZCA) space, where neighbouring pixels have nothing in common."""

    def __init__(self, image_shape: Iterable[int], expand: int, frame: Frame = PIXELS) -> None:
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.expand = expand
        self.frame = frame
        self.check()

    @classmethod
    @abstractmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int]) -> int:
        """Return `expand` as it is used: what was asked for, else what suits the form and the images.

        Raises:
            ValueError: If it is out of range; the message says what would be right.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise `ValueError` for settings that no file can have."""

    @property
    def suffix(self) -> str:
        """What the form adds to the name of a set."""
        return f"_{self.name}{self.expand}"

    @property
    def rows_per_entry(self) -> int:
        """Rows that one entry decodes into."""
        return 1

    def entries(self, budget: int) -> int:
        """Return how many entries a budget of images holds."""
        return self.rows(budget) // self.rows_per_entry

    def rows(self, budget: int) -> int:
        """Return how many rows a budget of images decodes into."""
        return budget * self.expand

    @property
    def rate_scale(self) -> float:
        """What a method's image rate is multiplied by, so that it means the same in this form."""
        return 1.0

    def optimiser(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """Return the optimiser that suits the stored tensors; default: SGD."""
        return torch.optim.SGD(groups, momentum=momentum)

    @abstractmethod
    def start(self, real: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return stored tensors from real rows, sorted by class.

        Args:
            real: As many rows as are decoded, in the units of the frame. (rows, C, H, W)
            labels: Class of each. int64 (rows,)
        """

    def start_from_noise(self, noise: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return stored tensors from one noise image and its label for each entry; default: as from real rows."""
        return self.start(noise, labels)

    @abstractmethod
    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return rows in the units of the frame, clipped if it says so; differentiable.

        Args:
            stored: The stored tensors.
            rows: Numbers of the rows that are wanted, int64 (n,); None: all.

        Returns:
            (n, C, H, W).
        """

    def project_(self, stored: Mapping[str, Tensor]) -> None:  # noqa: B027 - most forms have no range to keep
        """Bring stored tensors back into their valid range, where they have one, after an update; default: nothing."""

    @abstractmethod
    def layout(self, entries: int, classes: int) -> Layout:
        """Return the type and shape of every stored tensor in a file.

        Args:
            entries: Entries of the set.
            classes: Classes that have entries.
        """

    def export(
        self, stored: Mapping[str, Tensor], to_pixels: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Tensor], Decoder]:
        """Return the tensors as files hold them, on the CPU, and the decoder that reads them.

        Args:
            stored: The stored tensors.
            to_pixels: Turns images of the frame's units into pixel units.
        """
        tensors = {name: to_pixels(tensor).float() if self.stores_images else tensor for name, tensor in stored.items()}
        exported = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return exported, self.in_frame(PIXELS if self.stores_images else self.frame.to("cpu"))

    def in_frame(self, frame: Frame) -> Decoder:
        """Return the same form with decoded images in other units."""
        other = copy.copy(self)
        other.frame = frame
        return other
