"""Figures of sets: a grid with class names, and real rows beside condensed ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import datasets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from hf_condense.base.torch_state import plain_torch
from hf_condense.base.words import plural
from hf_condense.condensed.dataset import CondensedDataset, check_condensed
from hf_condense.condensed.preview import SHORT_FLOW
from hf_condense.condensed.scores import Evaluation, Score
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.tensors import are_alone, check_shown, first_rows, turns_of
from hf_condense.engine.nearest import nearest_images
from hf_condense.evaluation.reader import Reader
from hf_condense.pictures.sheet import GAP, HEADING, TEXT, Pixels, Sheet, save_figure, short, text_width, tiles
from hf_condense.source.class_source import ClassSource
from hf_condense.source.columns import check_dataset

_LINE = 20  # pixels
_SMALL = 8  # points
_BETWEEN = 32
_WIDEST = 640  # of several blocks in a row


@plain_torch()
def class_grid(
    small: CondensedDataset, *, per_class: int = 10, max_classes: int = 20, file: str | Path | None = None
) -> Figure:
    """Return the images of a set with the names of their classes: a row for each class, or rows of single images.

    Args:
        small: The set.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        ValueError: If `per_class` or `max_classes` is below 1.
    """
    images, labels = _first(small, per_class, max_classes)
    sheet = Sheet()
    classes = len(small.synthetic.row_labels.unique())
    title = f"{small.recipe.config_name}: {len(small):,} rows of {classes} {plural(classes, 'class')}"
    _panel(sheet, title, images, labels, small.recipe.class_names, left=12)
    return save_figure(sheet.figure(), file)


@plain_torch()
def real_beside_condensed(
    small: CondensedDataset,
    source: datasets.Dataset | None = None,
    *,
    table: Evaluation | None = None,
    per_class: int = 5,
    max_classes: int = 20,
    seed: int = 0,
    cache: bool = True,
    progress: bool = True,
    file: str | Path | None = None,
) -> Figure:
    """Return random real rows beside as many rows of a set, class by class, with the accuracies that both reached.

    Args:
        small: The set.
        source: The real training set. Default: the one that the set carries in memory.
        table: What `evaluate` returned for the set; the titles then state the accuracies of its first network on the
            set and on random rows, but not the network, the recipe and n: your caption should.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.
        seed: Seed of the random rows.
        cache: Keep the decoded real images under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while they are decoded.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If the source is no dataset.
        ValueError: If there is no source, it cannot be read or lacks a class of the set, or a number is below 1.
    """
    images, labels = _first(small, per_class, max_classes)
    real_rows = real_source(small, source, cache=cache, progress=progress)
    real = _random_rows(real_rows, labels, small.recipe.class_names, seed)
    expand = small.recipe.expand  # as many random rows are shown as the set decodes into
    random_name = f"random x{expand}" if expand > 1 else "random"
    own, random = (_score_of(table, name) for name in (small.recipe.config_name, random_name))
    sheet = Sheet()
    names = small.recipe.class_names
    right = _panel(sheet, _title("random rows", random), real, labels, names, left=12)
    title = _title(small.recipe.config_name, own)
    _panel(sheet, title, images, labels, names, left=right + _BETWEEN, with_names=are_alone(labels))
    return save_figure(sheet.figure(), file)


@plain_torch()
def nearest_real_images(
    small: CondensedDataset,
    source: datasets.Dataset | None = None,
    *,
    per_class: int = 5,
    max_classes: int = 20,
    cache: bool = True,
    progress: bool = True,
    file: str | Path | None = None,
) -> Figure:
    """Return the images of a set, each above the real row, of any class, that is nearest to it: copies show at once.

    The distance stands below each pair: the root mean square over the pixels, 0 between equal images and 1 between
    black and white.

    Args:
        small: The set.
        source: The real training set. Default: the one that the set carries in memory.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show, in label order, >= 1.
        cache: Keep the decoded real images under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while they are decoded.
        file: File to save the figure to, or None. Its suffix decides the format: `.png`, `.pdf`, `.svg`, ...

    Raises:
        TypeError: If the source is no dataset.
        ValueError: If there is no source, it cannot be read, or a number is below 1.
    """
    images, labels = _first(small, per_class, max_classes)
    nearest = nearest_images(images, real_source(small, source, cache=cache, progress=progress))
    sheet = Sheet()
    sheet.write(12, 12 + _LINE / 2, f"{small.recipe.config_name}, above the nearest real rows", size=HEADING)
    x, y = 12, 12 + round(1.5 * _LINE)
    for c in labels.unique().tolist():
        upper, lower = (tiles(rows[labels == c]) for rows in (images, nearest.images))
        height, width = upper.shape[1] + GAP, upper.shape[2] + GAP
        name = short(small.recipe.class_names[c])
        block = max(len(upper) * width, text_width(name, TEXT))
        if x > 12 and x + block > _WIDEST:
            x, y = 12, y + 2 * _LINE + 2 * height + GAP + _LINE // 2
        sheet.write(x, y + _LINE / 2, name)
        distances = nearest.distances[labels == c].tolist()
        for number, (*pair, distance) in enumerate(zip(upper, lower, distances, strict=True)):
            for line, picture in enumerate(pair):
                sheet.paste(x + number * width, y + _LINE + line * height, picture)
            below = y + 1.5 * _LINE + 2 * height
            sheet.write(x + (number + 0.5) * width, below, f"{distance:.3f}", size=_SMALL, align="center")
        x += block + _BETWEEN // 2
    return save_figure(sheet.figure(), file)


def real_source(
    small: CondensedDataset, source: datasets.Dataset | None, *, cache: bool = True, progress: bool = True
) -> ClassSource:
    """Return the real training set of a condensed set as images by class, of the size and channels of its own.

    Args:
        small: The set.
        source: The real training set, or None for the one that the set carries in memory. Its columns are those that
            the set was made from, if it has them, else the only Image column and the only ClassLabel.
        cache: Keep decoded images on disk; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while decoding.

    Raises:
        TypeError: If it is no dataset.
        ValueError: If it is not known, a column is missing or ambiguous, or a picture or label is damaged.
    """
    check_condensed("small", small)
    source = small.source if source is None else source
    if source is None:
        raise ValueError(
            "source should be the real training set, which a set that was loaded or combined does not carry; got None"
        )
    channels, height, width = small.recipe.image_shape
    reader = Reader.of_set(cache=cache, progress=progress)
    return reader.load(check_dataset(source, "source"), "source", small.recipe, (channels, height, width))


def class_in(source: ClassSource, name: str) -> int:
    """Return the index of a class in a source that has rows of it.

    Raises:
        ValueError: If it has none.
    """
    c = source.class_names.index(name) if name in source.class_names else -1
    if c not in source.counts:
        raise ValueError(f"source should be the real training set of the set; it has no rows of class {name!r}")
    return c


def _first(small: CondensedDataset, per_class: int, max_classes: int) -> tuple[Tensor, Tensor]:
    """Return the first images of the first classes of a set, and their labels: (n, C, H, W) and (n,)."""
    check_condensed("small", small)
    check_shown(per_class, max_classes)
    rows = first_rows(small.synthetic.row_labels.tolist(), per_class, max_classes)
    return small.synthetic.decoded(torch.tensor([*chain(*rows.values())]))


def _random_rows(source: ClassSource, labels: Tensor, names: Sequence[str], seed: int) -> Tensor:
    """Return random real rows of the same classes, in pixel units: (n, C, H, W)."""
    rows = []
    for c, count in zip(*(t.tolist() for t in labels.unique(return_counts=True)), strict=True):
        rows.append(source.images[source.draw(class_in(source, names[c]), count, seed, "picture")])
    return torch.cat(rows).float() / 255


def _score_of(table: Evaluation | None, name: str) -> Score | None:
    """Return the score of the first network on a set, with all of its rows; None if there is none."""
    scores = () if table is None else table.scores
    return max(
        (s for s in scores if (s.set, s.network) == (name, scores[0].network)), key=lambda s: s.rows, default=None
    )


def _title(name: str, score: Score | None) -> str:
    if score is None:
        return name
    return f"{name}: accuracy {per_cent(score.mean, score.std, digits=1)} %"


def _panel(
    sheet: Sheet,
    title: str,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    left: int,
    with_names: bool = True,
) -> int:
    """Draw images by class below a title, and return where the panel ends on the right.

    Args:
        sheet: What is drawn on.
        title: What stands above the images.
        images: In pixel units, sorted by class. (n, C, H, W).
        labels: Their classes, (n,).
        names: Names of all classes.
        left: Where the panel begins.
        with_names: Whether the names of the classes are written.
    """
    top = 12 + round(1.5 * _LINE)
    sheet.write(left, 12 + _LINE / 2, title, size=HEADING)
    alone = are_alone(labels)
    pictures = tiles(images, alone=alone)
    height, width = pictures.shape[1] + GAP, pictures.shape[2] + GAP
    if alone:
        right = _draw_singles(sheet, pictures, [short(names[c]) for c in labels.tolist()], left, top)
    else:
        margin = 0
        if with_names:
            margin = max(text_width(short(names[c]), TEXT) for c in labels.unique().tolist()) + 10
        turns = turns_of(labels.tolist())
        rows = {c: row for row, c in enumerate(labels.unique().tolist())}
        for picture, c, turn in zip(pictures, labels.tolist(), turns, strict=True):
            sheet.paste(left + margin + turn * width, top + rows[c] * height, picture)
            if turn == 0 and with_names:
                sheet.write(left + margin - 10, top + (rows[c] + 0.5) * height, short(names[c]), align="right")
        right = left + margin + (max(turns) + 1) * width
    return max(right, left + text_width(title, HEADING))


def _draw_singles(sheet: Sheet, pictures: Pixels, names: Sequence[str], left: int, top: int) -> int:
    """Draw one image per class in rows, each above its name, and return where they end on the right."""
    height, width = pictures[0].shape[0] + GAP + _LINE + 4, pictures[0].shape[1] + GAP
    width = max(width, max(text_width(name, TEXT) for name in names) + 8)
    for number, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        x, y = left + number % SHORT_FLOW * width, top + number // SHORT_FLOW * height
        sheet.paste(x, y, picture)
        sheet.write(x + picture.shape[1] / 2, y + picture.shape[0] + _LINE / 2, name, align="center")
    return int(left + min(SHORT_FLOW, len(names)) * width)
