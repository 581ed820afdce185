"""Find the columns of a dataset that hold the images and the labels, and read the labels."""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from hf_condense.source.column_hints import image_hint

logger = logging.getLogger("hf_condense")

LabelValue = int | str | bool


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset as class indices.

    Attributes:
        index: Class of every row, in row order. int64 (N,).
        names: Names of all classes, including those without rows.
        values: What the label column holds for each class; the labels of a condensed set are written as these.
    """

    index: Tensor
    names: tuple[str, ...]
    values: tuple[LabelValue, ...]


def check_dataset(ds: object, what: str = "ds") -> datasets.Dataset:
    """Check that `ds` is a map-style dataset with rows.

    Args:
        ds: What the caller passed.
        what: The name by which the caller knows it, for error messages.

    Returns:
        The same dataset without any formatting or transform. Its features are spelt as a set that is read back spells
        them: the names of a ClassLabel as a list.

    Raises:
        TypeError: If it is a stream, a dict of splits or something else.
        ValueError: If it has no rows.
    """
    if isinstance(ds, (datasets.DatasetDict, datasets.IterableDatasetDict, dict)):
        splits = ", ".join(map(repr, ds))
        streamed = " and load it without streaming=True" if isinstance(ds, datasets.IterableDatasetDict) else ""
        raise TypeError(f"{what} should be one split; got {type(ds).__name__} with {splits}; pick one{streamed}")
    if isinstance(ds, datasets.IterableDataset):
        rows = "Dataset.from_list(list(ds.shuffle(seed=0).decode(False).take(10_000)), features=ds.features)"
        if ds.features is None:  # of a generator; such a stream cannot be told to leave images encoded
            rows = f"ds = ds.cast(features), with datasets.Features that name the Image column, then {rows}"
        raise TypeError(
            f"{what} is an IterableDataset, whose rows cannot be drawn by class; load it without streaming=True, "
            f"or take some of its rows, without decoding them: {rows}"
        )
    if not isinstance(ds, datasets.Dataset):
        hint = f"; load it first: datasets.load_dataset({ds!r})" if isinstance(ds, str) else ""
        raise TypeError(f"{what} should be a datasets.Dataset; got {type(ds).__name__}{hint}")
    if len(ds) == 0:
        raise ValueError(f"{what} has no rows")
    if ds.format["type"] == "custom":
        logger.warning("%s has a transform, which is ignored: the images are used as they are stored", what)
    plain = ds.with_format(None)
    features = datasets.Features.from_arrow_schema(plain.features.arrow_schema)
    if features != plain.features:  # ClassLabel(names=("cat", "dog")) is not equal to ClassLabel(names=["cat", "dog"])
        plain.info.features = features
    return plain


def find_image_column(ds: datasets.Dataset, given: str | None) -> str:
    """Return the name of the image column: the one given, else the only Image column.

    Raises:
        TypeError: If the name given is not text.
        ValueError: If the column is missing or holds something else, or if no name is given and there is no Image
            column or there are several; the message lists what there is.
    """

    def hint_if_none() -> str:
        for name in ds.features:
            is_picture = not _is_text(ds.features[name]) or _names_picture(ds, name)
            if is_picture and (hint := image_hint(ds, name)):
                return f"; if {name!r} is the image column: {hint.removeprefix('; ')}"
        return ""

    return _find(ds, given, "image", lambda feature: isinstance(feature, datasets.Image), "an Image", hint_if_none)


def _is_text(feature: Any) -> bool:
    """Return whether a column with this feature holds text, or lists of texts, most of which are no paths."""
    return getattr(getattr(feature, "feature", feature), "dtype", "") in ("string", "large_string")


def _names_picture(ds: datasets.Dataset, column: str) -> bool:
    """Return whether the first value of a column of text is the name of a picture file."""
    first = ds.select_columns([column])[0][column]
    first = first[0] if isinstance(first, list) and first else first
    return isinstance(first, str) and (mimetypes.guess_type(first, strict=False)[0] or "").startswith("image/")


def find_label_column(ds: datasets.Dataset, given: str | None) -> str:
    """Return the name of the label column: the one given, else the only ClassLabel column.

    A column that is given may also hold text, integers or booleans.

    Raises:
        TypeError: If the name given is not text.
        ValueError: If the column is missing or holds something else, or if no name is given and there is no ClassLabel
            column or there are several; the message lists what there is.
    """

    def hint_if_none() -> str:
        others = [name for name, feature in ds.features.items() if _is_label(feature)]
        if others:
            return f"; pass label_column=, which may be {' or '.join(map(repr, others))}"
        return "; pictures should lie in one folder per class, or have a column of labels; pass label_column= for it"

    def is_class(feature: Any) -> bool:
        return isinstance(feature, datasets.ClassLabel)

    if given is not None:
        return _find(ds, given, "label", _is_label, "a ClassLabel, text, integers or booleans", hint_if_none)
    return _find(ds, None, "label", is_class, "a ClassLabel", hint_if_none)


def _is_label(feature: Any) -> bool:
    """Return whether a column with this feature can hold labels."""
    if isinstance(feature, datasets.ClassLabel):
        return True
    dtype = feature.dtype if isinstance(feature, datasets.Value) else ""
    return dtype.startswith(("int", "uint")) or dtype in ("string", "large_string", "bool")


def _find(
    ds: datasets.Dataset,
    given: str | None,
    role: str,
    suits: Callable[[Any], bool],
    kind: str,
    hint_if_none: Callable[[], str],
) -> str:
    """Return the column given, else the only one whose feature suits; errors list the columns that there are.

    Args:
        ds: The dataset.
        given: Name of a column, or None.
        role: What the column is for: `"image"` or `"label"`.
        suits: Whether a column with some feature may be it.
        kind: What the column should be, for error messages.
        hint_if_none: What to do if no name is given and no column suits: the end of the error message.
    """
    columns = f"columns: {', '.join(f'{name!r} ({_kind(feature)})' for name, feature in ds.features.items())}"
    if given is not None:
        if not isinstance(given, str):
            raise TypeError(f"{role}_column should be the name of a column; got {given!r} ({type(given).__name__})")
        if given not in ds.features:
            raise ValueError(f"{role}_column={given!r} is not a column of the dataset; {columns}")
        if not suits(ds.features[given]):
            hint = image_hint(ds, given) if role == "image" else ""
            raise ValueError(
                f"{role}_column={given!r} is {_kind(ds.features[given])}; it should be {kind}{hint}; {columns}"
            )
        return given
    candidates: list[str] = [name for name, feature in ds.features.items() if suits(feature)]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(f"no column holds {kind}; {columns}{hint_if_none()}")
    raise ValueError(f"several columns hold {kind}: {', '.join(map(repr, candidates))}; pass {role}_column=")


def _kind(feature: Any) -> str:
    """Describe a feature in one word, for error messages."""
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    return type(feature).__name__


def read_labels(ds: datasets.Dataset, column: str) -> Labels:
    """Read a label column as class indices.

    Text, booleans and integers that are not a ClassLabel are mapped to 0..K-1 in sorted order.

    Raises:
        ValueError: If a label is null (or -1 in a ClassLabel), or is out of the range of its ClassLabel; the message
            names the first such row.
    """
    values = ds.select_columns([column]).with_format("arrow")[:].column(column).to_pylist()
    feature = ds.features[column]
    is_class = isinstance(feature, datasets.ClassLabel)
    if unlabelled := [row for row, value in enumerate(values) if value is None or (is_class and value == -1)]:
        condition = "not in (None, -1)" if is_class else "is not None"
        raise ValueError(
            f"{len(unlabelled)} of {len(values)} rows have no label in {column!r}, the first is row {unlabelled[0]} "
            f"({values[unlabelled[0]]}); filter them out: ds.filter(lambda row: row[{column!r}] {condition})"
        )
    if is_class:
        names = tuple(map(str, feature.names))  # as the datasets library does
        if out_of_range := [row for row, value in enumerate(values) if not 0 <= value < len(names)]:
            raise ValueError(
                f"row {out_of_range[0]} has the label {values[out_of_range[0]]} in {column!r}, "
                f"whose ClassLabel has names for 0..{len(names) - 1}; cast the column to one that names every label"
            )
        return Labels(torch.tensor(values, device="cpu"), names, tuple(range(len(names))))
    distinct = sorted(set(values))
    if isinstance(distinct[0], int) and distinct[0] == -1 and len(distinct) > 1:
        logger.warning(
            "%d of %d rows have the label -1 in %r, which is taken for a class of its own; if it stands for no label, "
            "filter them out: ds.filter(lambda row: row[%r] != -1)",
            values.count(-1),
            len(values),
            column,
            column,
        )
    position = {value: i for i, value in enumerate(distinct)}
    index = torch.tensor([position[v] for v in values], device="cpu")
    return Labels(index, tuple(map(str, distinct)), tuple(distinct))
