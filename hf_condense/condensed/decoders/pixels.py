"""Pixels: the images themselves are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.condensed.decoders.base import Decoder, Layout, Origin


class Pixels(Decoder):
    """Stores the images themselves; each decodes into one row."""

    name: ClassVar[str] = "pixels"
    content: ClassVar[str] = "the images themselves"
    format_version: ClassVar[str] = "1"
    stores_images: ClassVar[bool] = True
    can_be_whitened: ClassVar[bool] = True

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return 1, because an image is one row."""
        if expand not in (None, 1):
            raise ValueError(
                f"storage='pixels' decodes an image into itself, so expand should be 1; got {expand!r}. "
                "For more rows pass another storage form, such as 'patches'"
            )
        return 1

    @property
    def suffix(self) -> str:
        """Empty, because pixels are the default form."""
        return ""

    def check(self) -> None:
        """Raise `ValueError` for an `expand` other than 1."""
        if self.expand != 1:
            raise ValueError(f"expand of storage 'pixels' should be 1; got {self.expand}")

    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return the rows themselves."""
        return {"images": real.clone()}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the images, which `project_` keeps in the valid range."""
        return stored["images"] if rows is None else stored["images"].index_select(0, rows)

    @torch.no_grad()
    def project_(self, stored: Mapping[str, Tensor]) -> None:
        """Clip the images to the valid range of pixels."""
        self.frame.clip_images_(stored["images"])

    def layout(self, entries: int, classes: int) -> Layout:
        """Return the layout of `images`: (entries, C, H, W)."""
        return {"images": ("F32", [entries, *self.image_shape])}
