"""A storage form of the tests: every row is stored at half its height and width, so that a budget holds four."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from hf_condense.condensed.decoders import DECODERS
from hf_condense.condensed.decoders.base import Decoder, Layout, Origin


class HalfSize(Decoder):
    """Rows of half the resolution, in normalised units, up-sampled and then clipped."""

    name: ClassVar[str] = "half"

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        if expand not in (None, 4):
            raise ValueError(f"storage='half' has four rows for each image, so expand should be 4; got {expand!r}")
        return 4

    def check(self) -> None:
        if self.expand != 4 or any(side % 2 for side in self.image_shape[1:]):
            raise ValueError(f"storage 'half' has expand 4 and images of even sides; got {self.image_shape}")

    def rate(self, image_rate: float) -> float:
        return 4 * image_rate

    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        return {"small": F.avg_pool2d(real, 2), "turns": labels.clone()}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        small = stored["small"] if rows is None else stored["small"].index_select(0, rows)
        return self.frame.clip_images(F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))

    def layout(self, entries: int, classes: int) -> Layout:
        channels, height, width = self.image_shape
        return {"small": ("F32", [entries, channels, height // 2, width // 2]), "turns": ("I64", [entries])}


@contextmanager
def registered() -> Iterator[None]:
    """Add the line to the registry for a while, unless it is there already."""
    if HalfSize.name in DECODERS:
        yield
        return
    DECODERS[HalfSize.name] = HalfSize
    try:
        yield
    finally:
        del DECODERS[HalfSize.name]
