"""How to turn a column that is no Image column into one, for error messages."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)


def image_hint(ds: datasets.Dataset, column: str) -> str:
    """Return code that makes an Image column of a column, as `"; <why>: <code>"`, or `""` if it holds no pictures.

    Args:
        ds: A dataset with rows, without any formatting.
        column: Name of a column that is no Image column.
    """
    feature = ds.features[column]
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return _array_hint(ds, column)
    if _holds_a_picture(feature):
        short = str(getattr(feature, "dtype", "")).removeprefix("large_")
        # Older versions of pyarrow cast no large type to the struct of an Image.
        is_large = isinstance(feature, datasets.Value) and feature.dtype != short
        first = f"ds.cast_column({column!r}, datasets.Value({short!r}))" if is_large else "ds"
        return f"; cast it first: {_cast(first, column)}"
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        if isinstance(feature.feature, datasets.Image) or _holds_a_picture(feature.feature):
            undecoded = "ds"  # pictures that are decoded would be encoded again: a JPEG loses by that
            if isinstance(feature.feature, datasets.Image):
                undecoded = f"ds.cast_column({column!r}, datasets.List(datasets.Image(decode=False)))"
            first = f"{undecoded}.map(lambda row: {{{column!r}: row[{column!r}][0]}})"
            return f"; it has a list of pictures in each row, so keep one of them: {_cast(first, column)}"
        return _array_hint(ds, column)
    return ""


def _holds_a_picture(feature: Any) -> bool:
    """Return whether values of a feature may be cast to an Image: paths, encoded pictures, or dicts of both."""
    if isinstance(feature, dict):
        return bool(feature) and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype.removeprefix("large_") in ("string", "binary")


def _cast(dataset: str, column: str, mode: str = "") -> str:
    return f"{dataset}.cast_column({column!r}, datasets.Image({mode}))"


def _array_hint(ds: datasets.Dataset, column: str) -> str:
    """Return the hint for a column of arrays of pixels, judged by the first of them."""
    try:
        pixels = np.asarray(ds.select_columns([column])[0][column])  # decodes nothing else
    except ValueError:  # lists of unequal lengths
        return ""
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "uif" or 0 in pixels.shape:
        return ""
    code, why = _conversion(pixels, f"np.asarray(row[{column!r}])")
    if why == "":
        mode = "mode='L'" if pixels.ndim == 2 else ""
        return f"; cast it first: {_cast('ds', column, mode)}"
    pictures = f"ds.map(lambda row: {{{column!r}: PIL.Image.fromarray({code})}})"
    return f"; it has {why}, so make pictures of them first: {_cast(pictures, column)}"


def _conversion(pixels: NDArray[Any], code: str) -> tuple[str, str]:
    """Return the code that turns an array into one that Pillow reads, and what the array is that it must be turned.

    Args:
        pixels: (H, W), (H, W, C) or (C, H, W).
        code: What the array is called in the code.
    """
    reasons = []
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        reasons.append("with the channels first")
        code = f"{code}.transpose(1, 2, 0)"
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        reasons.append("with a single channel")
        code = f"{code}[..., 0]"
    low, high = pixels.min(), pixels.max()
    kind = "integers"
    if pixels.dtype.kind == "f":
        kind = "floats"
        fractions = low >= 0 and high <= 1
        reasons.append("in 0..1" if fractions else "")
        code = f"(255 * {code}).round()" if fractions else f"{code}.round()"
    if not (low >= 0 and high <= 255):  # not so either if they are NaN
        reasons.append(f"in {low:.5g}..{high:.5g} (bring them to 0..255 before)")
    if not reasons:
        return code, ""
    return f"{code}.astype('uint8')", f"arrays of {kind} {' and '.join(filter(None, reasons))}".rstrip()
