"""The rows of a condensed set as `load_dataset` returns them: 8-bit images, labels and soft labels."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.tensors import CondensedTensors, eight_bit_pixels, round_robin
from hf_condense.condensed.views import CROP_NUMBERS


class Parts(NamedTuple):
    """The parts of a condensed set.

    Attributes:
        rows: One row for each decoded image: `decoded_rows` of a synthetic set, real rows of a coreset.
        tensors: The exact tensors, sorted by class.
        recipe: How the set was made.
    """

    rows: datasets.Dataset
    tensors: CondensedTensors
    recipe: Recipe


SOFT_LABEL_COLUMN = "soft_label"
VIEW_COLUMNS = (SOFT_LABEL_COLUMN, "soft_label_class", "soft_label_crop")
"""Columns of the soft labels of views: for each view its largest logits, their classes, and the crop."""
# Modes to which rows of that many channels can be converted without loss; the first one is that of the rows themselves.
_MODES = {1: ("L", "LA", "RGB", "RGBA"), 3: ("RGB", "RGBA")}


def decoded_rows(
    tensors: CondensedTensors, recipe: Recipe, features: datasets.Features | None = None
) -> datasets.Dataset:
    """Return the rows of a set that is no coreset: 8-bit PNG images, labels, and soft labels if the set has them.

    Rows are interleaved by class. Equal tensors give equal bytes.

    Args:
        tensors: The exact tensors. Values outside [0, 1] are clipped.
        recipe: The recipe, which names the two columns and the values of the label column.
        features: Features of the source; see `row_features`.

    Returns:
        A dataset with the columns image, label and, if there are soft labels, `soft_label` (logits); one row for each
        decoded image. If the soft labels are those of views, `soft_label` holds the largest logits of each view,
        `soft_label_class` their classes, and `soft_label_crop` top, left, height and width of the view in pixels and 1
        if it is mirrored.

    Raises:
        ValueError: If the set has soft labels, and the image or label column is called `soft_label`.
    """
    row_columns = row_features(recipe, features, soft_labels=tensors.soft_labels is not None)
    kind = row_columns.arrow_schema.field(recipe.label_column).type
    labels = tensors.row_labels.tolist()
    order = round_robin(labels)
    pictures = [_png(pixels) for _, coded in eight_bit(tensors) for pixels in coded]
    columns: dict[str, list[Any] | pa.Array] = {
        recipe.image_column: [{"bytes": pictures[i], "path": None} for i in order],
        # Without their type, Arrow takes integers for signed ones, which uint64 may exceed.
        recipe.label_column: pa.array([recipe.label_values[labels[i]] for i in order], kind),
    }
    if tensors.soft_labels is not None:
        columns[SOFT_LABEL_COLUMN] = tensors.soft_labels[order].tolist()
    if tensors.view_labels is not None:
        for name, tensor in zip(VIEW_COLUMNS, tensors.view_labels.tensors().values(), strict=True):
            columns[name] = _nested(tensor[order])
    return datasets.Dataset.from_dict({name: columns[name] for name in row_columns}, features=row_columns)


def row_features(
    recipe: Recipe, source: datasets.Features | None = None, *, soft_labels: bool = False
) -> datasets.Features:
    """Return the features of the rows of a synthetic set.

    Args:
        recipe: Names of the two columns and what the label column holds.
        source: Features of the source: its image and label columns keep theirs, but for an image mode to which 8-bit
            rows cannot be converted without loss; their own mode takes its place. None: `Image()`, and `ClassLabel` if
            the label values are 0..K-1.
        soft_labels: Whether the set has soft labels of its rows themselves; the recipe says whether it has those of
            views.

    Raises:
        ValueError: If the set has soft labels and one of its columns has the name of theirs.
    """
    features = _features(recipe, source)
    image, modes = features[recipe.image_column], _MODES[recipe.image_shape[0]]
    if image.mode not in (None, *modes):
        features[recipe.image_column] = datasets.Image(mode=modes[0], decode=image.decode)
    added: dict[str, datasets.List] = {}
    if recipe.label_views is not None:
        kinds = (("float16", recipe.label_top), ("int16", recipe.label_top), ("int16", CROP_NUMBERS))
        for name, (kind, length) in zip(VIEW_COLUMNS, kinds, strict=True):
            of_view = datasets.List(datasets.Value(kind), length=length)
            added[name] = datasets.List(of_view, length=recipe.label_views)
    elif soft_labels:
        added[SOFT_LABEL_COLUMN] = datasets.List(datasets.Value("float32"), length=len(recipe.class_names))
    for name in added:
        if name in features:
            raise ValueError(f"soft labels need a column {name!r}; the source uses this name: rename it")
    return datasets.Features({**features, **added})


def _nested(tensor: Tensor) -> pa.Array:
    """Return a tensor (rows, views, n) as lists of lists of fixed lengths."""
    _, views, n = tensor.shape
    of_views = pa.FixedSizeListArray.from_arrays(pa.array(tensor.flatten().numpy()), n)
    return pa.FixedSizeListArray.from_arrays(of_views, views)


def eight_bit(tensors: CondensedTensors) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of decoded images, as floats and as 8-bit pixels: both (n, C, H, W).

    Raises:
        ValueError: If stored numbers are so large that images cannot be decoded.
    """
    for pixels in tensors.chunks():
        if not bool(torch.isfinite(pixels).all()):
            raise ValueError("some stored numbers are so large that the images decoded from them hold NaN or infinity")
        yield pixels, eight_bit_pixels(pixels)


def _png(pixels: Tensor) -> bytes:
    """Encode 8-bit pixels (C, H, W) with one or three channels as PNG."""
    buffer = io.BytesIO()
    to_pil_image(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _features(recipe: Recipe, source: datasets.Features | None) -> datasets.Features:
    """Return the features of the image and the label column, in the order of the source.

    They are those that can be rebuilt from the recipe: an `id`, and class names that are no text, are left out.
    """
    if source is not None:
        features = {n: f for n, f in source.items() if n in (recipe.image_column, recipe.label_column)}
        for name, feature in features.items():
            is_class = isinstance(feature, datasets.ClassLabel)
            features[name] = (
                datasets.ClassLabel(names=recipe.class_names) if is_class else dataclasses.replace(feature, id=None)
            )
        return datasets.Features(features)
    return datasets.Features({recipe.image_column: datasets.Image(), recipe.label_column: _label_feature(recipe)})


def _label_feature(recipe: Recipe) -> datasets.ClassLabel | datasets.Value:
    """Return the feature that suits the label values."""
    values = recipe.label_values
    if all(type(value) is int for value in values):
        counted = values == list(range(len(values)))
        return datasets.ClassLabel(names=recipe.class_names) if counted else datasets.Value("int64")
    return datasets.Value("bool" if all(isinstance(value, bool) for value in values) else "string")
