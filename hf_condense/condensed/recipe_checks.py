"""What the values of a recipe must be for its set to be read: one function for each subject.

Every function raises `CondensedFormatError` for values that are out of range or contradict each other. The types of the
values are those of the fields of `Recipe`, which are checked before.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from hf_condense.base.checks import MAX_SIDE
from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.json_types import is_a
from hf_condense.condensed.decoders import decoder_class
from hf_condense.condensed.views import MOST_CLASSES, MOST_VIEWS

PIXEL_RANGES = ("valid", "free")
STORE_DTYPES = ("float32", "float16", "uint8")


def check_form(kind: str, pixel_range: str, store_dtype: str, storage: str) -> None:
    """Check what a set is and how its numbers are stored."""
    if kind not in ("synthetic", "composed", "coreset"):
        raise CondensedFormatError(f"recipe: kind should be synthetic, composed or coreset; got {kind!r:.80}")
    if pixel_range not in PIXEL_RANGES:
        raise CondensedFormatError(f"recipe: pixel_range should be valid or free; got {pixel_range!r:.80}")
    if store_dtype not in STORE_DTYPES:
        raise CondensedFormatError(f"recipe: store_dtype should be float32, float16 or uint8; got {store_dtype!r:.80}")
    if store_dtype == "uint8" and not (_stores_images(storage) and pixel_range == "valid"):
        raise CondensedFormatError("recipe: store_dtype uint8 should be that of images in [0, 1]")


def _stores_images(storage: str) -> bool:
    try:
        return decoder_class(storage).stores_images
    except ValueError as error:
        raise CondensedFormatError(f"recipe: {error}") from None


def check_soft_labels(
    temperature: float | None, label_views: int | None, label_top: int | None, num_classes: int
) -> None:
    """Check the temperature of soft labels, how many views of a row have some, and how many logits are stored."""
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise CondensedFormatError(f"recipe: temperature should be > 0; got {temperature}")
    if label_views is not None and temperature is None:
        raise CondensedFormatError("recipe: soft labels of views should have a temperature")
    if label_views is None and label_top is None:
        return
    views, top = label_views or 0, label_top or 0
    if not (1 <= views <= MOST_VIEWS and 1 <= top <= num_classes <= MOST_CLASSES):
        raise CondensedFormatError(
            f"recipe: label_views should be in 1..{MOST_VIEWS}, and label_top in 1..{MOST_CLASSES} and at most the "
            "classes"
        )


def check_amounts(
    ipc: int | dict[str, int], class_names: list[str], kind: str, rows: list[int] | None, storage: str
) -> None:
    """Check how many images the classes store, and which rows of the source a coreset has."""
    amounts = list(ipc.values()) if isinstance(ipc, dict) else [ipc]
    if not amounts or min(amounts) < 1:
        raise CondensedFormatError(f"recipe: ipc should be >= 1; got {ipc!s:.80}")
    if isinstance(ipc, dict) and not ipc.keys() <= {*class_names}:
        raise CondensedFormatError("recipe: ipc should name classes of class_names")
    if (rows is not None) != (kind == "coreset") or any(row < 0 for row in rows or ()):
        raise CondensedFormatError("recipe: rows should be given for a coreset, and be >= 0")
    if kind == "coreset" and storage != "pixels":
        raise CondensedFormatError("recipe: a coreset should be stored as pixels")


def check_classes(class_names: list[str], label_values: list[int | str | bool]) -> None:
    """Check that every class has a name and a label value of its own."""
    if not class_names or len(label_values) != len(class_names):
        raise CondensedFormatError("recipe: there should be one label value for each class name")
    # Python takes True and 1 for equal.
    distinct_values = {(type(value), value) for value in label_values}
    if len(set(class_names)) < len(class_names) or len(distinct_values) < len(label_values):
        raise CondensedFormatError("recipe: class names and label values should differ")


def check_images(image_shape: list[int], mean: list[float], std: list[float]) -> None:
    """Check the shape of the images and the constants of their normalisation."""
    channels, sides = image_shape[:1], image_shape[1:]
    if len(sides) != 2 or channels not in ([1], [3]) or not all(1 <= side <= MAX_SIDE for side in sides):
        raise CondensedFormatError(
            f"recipe: image_shape should be [C, H, W] with C of 1 or 3 and sides in 1..{MAX_SIDE}; got "
            f"{image_shape!s:.80}"
        )
    counts = [[len(mean)], [len(std)]]
    if counts != [channels, channels] or min(std) <= 0 or not all(map(math.isfinite, [*mean, *std])):
        raise CondensedFormatError("recipe: there should be one mean and one positive std per channel")


def check_provenance(nearest: dict[str, Any] | None, teacher: dict[str, Any] | None, class_names: list[str]) -> None:
    """Check what is said of the distances to real images, and of the networks that gave the soft labels."""
    if nearest is not None and not _are_distances(nearest):
        raise CondensedFormatError(
            "recipe: nearest should have rows >= 1, and synthetic and real with 0 <= min <= median <= max"
        )
    if teacher is not None and not _is_teacher(teacher, class_names):
        raise CondensedFormatError(
            "recipe: teacher should have network, networks >= 1, updates, seed, content_hash, held_out, and classes in "
            "the order of class_names"
        )


def _are_distances(nearest: dict[str, Any]) -> bool:
    """Return whether a value has the form of what `nearest_real` returns."""
    groups = [nearest.get(name) for name in ("synthetic", "real")]
    if not is_a(groups, list[dict[str, float]]) or not is_a(nearest.get("rows"), int) or nearest["rows"] < 1:
        return False
    ordered = [[0.0, *(group.get(name, math.nan) for name in ("min", "median", "max"))] for group in groups if group]
    return len(ordered) == 2 and all(a <= b < math.inf for values in ordered for a, b in pairwise(values))


def _is_teacher(teacher: dict[str, Any], class_names: list[str]) -> bool:
    """Return whether a value has the form of the facts about a teacher."""
    hints = {"network": str, "networks": int, "updates": int, "seed": int, "content_hash": str, "held_out": int}
    has_form = all(is_a(teacher.get(name), hint) for name, hint in hints.items())
    optional = {"accuracy": float, "accuracy_rows": int}
    has_form &= all(is_a(teacher[name], hint) for name, hint in optional.items() if name in teacher)
    has_form &= "accuracy" in teacher or "accuracy_rows" not in teacher
    return has_form and teacher["networks"] >= 1 and teacher.get("classes") == class_names
