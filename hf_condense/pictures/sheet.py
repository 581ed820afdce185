"""A sheet of pixels and texts that becomes a figure: one pixel of an image is a whole number of pixels on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray
from torch import Tensor

from hf_condense.base.files import output_file
from hf_condense.base.paths import local_path
from hf_condense.condensed.preview import SIDE
from hf_condense.condensed.tensors import eight_bit_pixels

DPI = 100
TEXT, HEADING = 10, 12  # points
_LONGEST = 28  # characters of a name; longer ones are cut
_ALONE = 2 * SIDE  # pixels to which a small image is enlarged that stands alone for its class
GAP = 2
_MARGIN = 12

Pixels = NDArray[np.uint8]  # (height, width, 3), or (n, height, width, 3)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in pixels, that draws without a window."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, file: str | Path | None) -> Figure:
    """Return a figure, after it was saved if there is a file; the suffix decides the format, PNG without one."""
    if file is not None:
        path = local_path(file)
        if not path.suffix:  # as matplotlib does
            path = path.with_name(f"{path.name.rstrip('.')}.{figure.canvas.get_default_filetype()}")
        with output_file(path) as work:
            figure.savefig(work, format=path.suffix[1:], dpi=DPI)
    return figure


def look(number: int, colours: Sequence[str], markers: Sequence[str]) -> tuple[str, str]:
    """Return the colour and the marker of a series; markers are shifted after all colours, so that no pair repeats.

    Example:
        >>> [look(number, ["red", "blue"], "ox") for number in range(4)]
        [('red', 'o'), ('blue', 'x'), ('red', 'x'), ('blue', 'o')]
    """
    return colours[number % len(colours)], markers[(number + number // len(colours)) % len(markers)]


def short(name: object) -> str:
    """Return a name on one line, cut if it is long."""
    line = " ".join(str(name).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def text_width(text: str, size: float) -> int:
    """Return how many pixels a text is wide."""
    renderer = FigureCanvasAgg(Figure(dpi=DPI)).get_renderer()  # type: ignore[no-untyped-call]
    width, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return int(np.ceil(width))


def tiles(images: Tensor, *, alone: bool = False) -> Pixels:
    """Return images as enlarged tiles.

    Args:
        images: In pixel units, (n, C, H, W); values outside [0, 1] are clipped.
        alone: Whether each stands alone for its class, and is enlarged more.

    Returns:
        uint8 (n, height, width, 3).
    """
    side = _ALONE if alone else SIDE
    factor = max(1, round(side / max(images.shape[2:])))
    pixels = eight_bit_pixels(images.detach().float().cpu())
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2).numpy()


class Sheet:
    """White paper on which images and texts are placed by pixels; x goes right and y goes down."""

    def __init__(self) -> None:
        self._images: list[tuple[int, int, Pixels]] = []
        self._texts: list[tuple[float, float, str, float, str]] = []
        self._right = self._bottom = 0

    def paste(self, x: int, y: int, image: Pixels) -> None:
        """Place an image, uint8 (height, width, 3), with its upper left corner at (x, y)."""
        self._images.append((x, y, image))
        self.extend(x + image.shape[1], y + image.shape[0])

    def write(self, x: float, y: float, text: str, *, size: float = TEXT, align: str = "left") -> None:
        """Place a text with its middle at the height y; `align` is what x is of it: left, center or right."""
        self._texts.append((x, y, text, size, align))
        shares = {"left": 1.0, "center": 0.5, "right": 0.0}  # of the text, to the right of x
        self.extend(round(x + shares[align] * text_width(text, size)), round(y + size))

    def extend(self, right: int, bottom: int) -> None:
        """Make the sheet at least this large, without its margin."""
        self._right, self._bottom = max(self._right, right), max(self._bottom, bottom)

    def figure(self) -> Figure:
        """Return the sheet as a figure."""
        width, height = self._right + _MARGIN, self._bottom + _MARGIN
        canvas = np.full((height, width, 3), 255, np.uint8)
        for left, top, image in self._images:
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        figure = new_figure(width, height)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.imshow(canvas, aspect="auto", interpolation="nearest", extent=(0, width, height, 0))
        axes.set_axis_off()
        for x, y, text, size, align in self._texts:
            # Names of classes are texts of unknown origin, and no formulas.
            axes.text(x, y, text, fontsize=size, ha=align, va="center", color="black", parse_math=False)
        return figure
