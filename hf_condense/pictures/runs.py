"""Figures of runs: how the images of a set change from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_condense.base.checks import integer
from hf_condense.base.files import output_file
from hf_condense.base.paths import local_path
from hf_condense.base.spread import spread
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.preview import grid_of
from hf_condense.condensed.tensors import eight_bit_pixels, first_rows
from hf_condense.engine.run import Run
from hf_condense.pictures.sheet import GAP, TEXT, Sheet, save_figure, short, text_width, tiles

_HEAD = 28  # pixels above the images of a frame
_LINE = 20


@dataclass
class Snapshots:
    """Copies of the first images of every class, made while a run goes on.

    Pass one in `callbacks=`. It copies the images after step 1, 2, 4, 8 and so on, when most changes happen early, or
    after the steps that it is told, and always has the images of the latest step. A new run replaces the copies.

    Attributes:
        at: Steps after which the images are copied. None: the powers of two.
        per_class: Images to copy per class, >= 1.
        steps: The steps of which there are copies.
        images: The copies, one for each step, in pixel units. uint8 (n, C, H, W).
        class_names: Names of all classes; empty before the first copy.
        labels: Class of every image that is copied, (n,).

    Raises:
        TypeError: If `at` is a single number.
        ValueError: If `per_class` is below 1.

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> snapshots = Snapshots()
        >>> options = {"network": "convnet-w4", "batch_real": 4, "progress": False}
        >>> _ = condense_dataset(load_demo()["test"], "dm", ipc=1, steps=3, callbacks=[snapshots], **options)
        >>> snapshots.steps
        [1, 2, 3]
    """

    at: Sequence[int] | None = None
    per_class: int = 1
    steps: list[int] = field(default_factory=list, init=False)
    images: list[Tensor] = field(default_factory=list, init=False)
    class_names: list[str] = field(default_factory=list, init=False)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), init=False)
    _rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), init=False)
    _last_stays: bool = field(default=True, init=False)
    _key: tuple[Any, ...] = field(default=(), init=False)  # what tells a run from another one

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class should be >= 1; got {self.per_class}")
        if isinstance(self.at, int):
            raise TypeError(f"at should be a list of steps, such as [1, 10, 100]; got {self.at}")

    def __call__(self, run: Run, done: int, loss: float) -> None:
        """Copy the images after an update; the copy before is dropped if it was only that of the latest step."""
        key = (run.source.content_hash, run.seed, run.factory.name, run.decoder.name, tuple(run.counts.items()))
        if not self.steps or done <= self.steps[-1] or key != self._key:  # a run begins
            self._key = key
            self.steps, self.images, self._last_stays = [], [], True
            rows = first_rows(run.synthetic.row_labels.tolist(), self.per_class)
            self._rows = torch.tensor([*chain(*rows.values())])
            self.class_names = list(run.source.class_names)
            self.labels = run.synthetic.row_labels.cpu()[self._rows]
        if not self._last_stays:
            self.steps.pop()
            self.images.pop()
        self.steps.append(done)
        pixels = run.synthetic.pixels_at(self._rows)
        self.images.append(eight_bit_pixels(pixels))
        self._last_stays = done.bit_count() == 1 if self.at is None else done in self.at


@plain_torch()
def evolution_strip(
    snapshots: Snapshots, *, max_steps: int = 10, max_classes: int = 10, file: str | Path | None = None
) -> Figure:
    """Return how the images changed: a row for each class, a column for each step.

    Args:
        snapshots: What was passed in `callbacks=` of the run.
        max_steps: Largest number of steps to show, spread evenly over the copies, the last one included; >= 2.
        max_classes: Largest number of classes to show, in label order, >= 1.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If there are no copies, or a number is too small.
    """
    _check(snapshots)
    integer("max_steps", max_steps, least=2)
    integer("max_classes", max_classes, least=1)
    classes = snapshots.labels.unique()[:max_classes].tolist()
    first = [int((snapshots.labels == c).nonzero()[0]) for c in classes]
    names = [short(snapshots.class_names[c]) for c in classes]
    left = 22 + max(text_width(name, TEXT) for name in [*names, "step"])
    sheet = Sheet()
    sheet.write(left - 10, 12 + _LINE / 2, "step", align="right")
    for column, number in enumerate(spread(len(snapshots.steps), max_steps).tolist()):
        pictures = tiles(snapshots.images[number][first] / 255)
        height, width = pictures.shape[1] + GAP, pictures.shape[2] + GAP
        x = left + column * width
        sheet.write(x + width / 2, 12 + _LINE / 2, f"{snapshots.steps[number]:,}", align="center")
        for row, picture in enumerate(pictures):
            sheet.paste(x, 16 + _LINE + row * height, picture)
            if column == 0:
                sheet.write(left - 10, 16 + _LINE + (row + 0.5) * height, names[row], align="right")
    return save_figure(sheet.figure(), file)


@plain_torch()
def evolution_gif(snapshots: Snapshots, file: str | Path, *, milliseconds: int = 400) -> Path:
    """Write how the images changed as an animated GIF, and return its path. The last step is shown longer.

    Args:
        snapshots: What was passed in `callbacks=` of the run.
        file: File to write; an earlier one is replaced.
        milliseconds: How long each step is shown, >= 20, which is the least that browsers keep to.

    Raises:
        ValueError: If there are no copies, or `milliseconds` is below 20.
    """
    _check(snapshots)
    if milliseconds < 20:
        raise ValueError(f"milliseconds should be >= 20; got {milliseconds}")
    captions = [f"step {step:,}" for step in snapshots.steps]
    # All frames are as wide as the widest caption: a GIF has the size of its first frame.
    width = max(round(_font().getlength(caption)) for caption in captions) + 8
    frames = [
        _frame(images / 255, caption, snapshots.labels, width)
        for caption, images in zip(captions, snapshots.images, strict=True)
    ]
    durations = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    with output_file(file) as work:
        frames[0].save(work, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1)
    return local_path(file)


def _font() -> Any:
    return ImageFont.load_default(18)


def _frame(images: Tensor, caption: str, labels: Tensor, width: int) -> Image.Image:
    """Return images below a caption: a row for each class, or rows of five if no class has several.

    Args:
        images: (n, C, H, W), in [0, 1].
        caption: Text above them.
        labels: Class of each image. (n,).
        width: Least width of the frame.
    """
    picture = grid_of(images, labels)
    frame = Image.new("RGB", (max(picture.width, width), picture.height + _HEAD), "white")
    ImageDraw.Draw(frame).text((4, 3), caption, fill="black", font=_font())
    frame.paste(picture, (0, _HEAD))
    return frame


def _check(snapshots: Snapshots) -> None:
    if not snapshots.steps:
        raise ValueError("snapshots should hold copies of a run's images; pass it in callbacks= of a run with steps")
