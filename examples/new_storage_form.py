"""A storage form of your own: rows at half the height and width, which every method can learn. One class, one line."""

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense import condense_dataset, load_condensed
from hf_condense.condensed.decoders import DECODERS, Decoder, Frame, Origin
from hf_condense.condensed.decoders.base import PIXELS, Layout
from hf_condense.demo_data import load_demo


class Small(Decoder):
    """Stores each row at half the height and width, so that the space of one image holds four rows."""

    name: ClassVar[str] = "small"
    content: ClassVar[str] = "images of half the height and width"

    def __init__(self, image_shape: Iterable[int], expand: int, frame: Frame = PIXELS) -> None:
        super().__init__(image_shape, expand, frame)
        channels, height, width = self.image_shape
        self.stored_shape = (channels, height // 2, width // 2)

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return 4, because four rows take the numbers of one image."""
        if expand not in (None, 4):
            raise ValueError(f"storage='small' gives 4 rows for each image; got expand={expand!r}")
        return 4

    def check(self) -> None:
        """Raise `ValueError` for settings that a file cannot have."""
        if self.expand != 4 or min(self.image_shape[1:]) < 2:
            raise ValueError(
                f"storage 'small' needs expand 4 and sides of 2 or more; got {self.expand} and {self.image_shape[1:]}"
            )

    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return the rows at half their size."""
        return {"halves": F.interpolate(real, size=self.stored_shape[1:], mode="bilinear", antialias=True)}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the rows at full size; only this function decides what networks see."""
        halves = stored["halves"] if rows is None else stored["halves"].index_select(0, rows)
        return self.frame.clip_images(F.interpolate(halves, size=self.image_shape[1:], mode="bilinear"))

    def layout(self, entries: int, classes: int) -> Layout:
        """Return what a file holds: (entries, C, H // 2, W // 2)."""
        return {"halves": ("F32", [entries, *self.stored_shape])}


DECODERS["small"] = Small  # whoever loads such a set needs this line as well


def main(fast: bool = False) -> None:
    """Learn a set in the new form, save it and load it back."""
    no_flips = "color_crop_cutout_scale_rotate"  # mirroring changes a digit's meaning
    options = {"network": "convnet-w32", "steps": 100, "augment": no_flips}
    options |= {"network": "convnet-w8", "steps": 2, "compile": False} if fast else {}
    small = condense_dataset(load_demo()["train"], "dm", ipc=1, storage="small", **options)
    print(small)
    print(f"{small.synthetic.stored['halves'].numel()} numbers give {len(small)} rows: {small.recipe.config_name}")
    with tempfile.TemporaryDirectory() as folder:
        small.save_condensed(folder)
        loaded = load_condensed(folder)
    print("loaded back, equal to the bit:", torch.equal(loaded.synthetic.decoded()[0], small.synthetic.decoded()[0]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps only, to see that it runs")
    main(parser.parse_args().fast)
