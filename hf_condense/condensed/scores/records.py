"""The accuracies in a recipe, by what networks were trained on: a set, its 8-bit rows, random rows and so on."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from typing import Any

from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores.evaluation import EIGHT_BIT, HARD_LABELS, RELABELLED, SOFT_LABELS

Record = dict[str, Any]  # a row of `Evaluation.to_records()`

EIGHT_BIT_ROWS, FLOATS, RANDOM, WHOLE = "8-bit images", "exact floats", "random rows", "whole source"
_HARD = ", hard labels"
HARD, HARD_EIGHT_BIT = FLOATS + _HARD, EIGHT_BIT_ROWS + _HARD
_BY_TEACHER = ", labelled by a teacher in every update"
AS_MANY, SAME_FORM = "random rows, as many as it decodes into", "random rows in the same form"
# What each row of the table begins with.
_FIRST = (
    EIGHT_BIT_ROWS,
    HARD_EIGHT_BIT,
    FLOATS,
    HARD,
    RANDOM,
    AS_MANY,
    SAME_FORM,
)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "set": str,
    "network": str,
    "recipe": str,
    "mean": (int, float),
    "n": int,
    "updates": int,
    "epochs": (int, float),
}


def groups_of(recipe: Recipe) -> list[dict[str, Record]]:
    """Return the measured accuracies of a set by what was trained on, one dict for each network and training.

    Records that are no scores, as strangers may write them, are left out, and so are those of a part of the set.
    """
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in filter(_is_score, recipe.evaluation):
        if record.get("ipc") not in (None, recipe.largest_ipc):
            continue
        key = (record["network"], record["recipe"], record.get("augment"))
        groups.setdefault(key, {}).setdefault(_role(record, recipe), record)
    return list(groups.values())


def check_whole(recipe: Recipe, ipc: Iterable[int | None]) -> None:
    """Raise `ValueError` if a set was evaluated in part only: nothing would show such accuracies.

    Args:
        recipe: The recipe of the set.
        ipc: Images per class that the set was cut down to, in turn; None: it was used whole.
    """
    numbers = [*ipc]
    if all(n is not None and n < recipe.largest_ipc for n in numbers):
        raise ValueError(
            "accuracies that are stored with a set should be those of the whole set; these are of its first "
            f"{' and '.join(map(str, dict.fromkeys(numbers)))} images per class. Leave ipc= out, or pass "
            f"ipc={recipe.largest_ipc} too"
        )


def ordered_roles(roles: Collection[str]) -> list[str]:
    """Return in the order of a table what networks were trained on: the set, random rows, other rows, the source."""
    others = [role for role in roles if role not in (*_FIRST, WHOLE)]
    return [role for role in (*_FIRST, *others, WHOLE) if role in roles]


def paired_difference(first: Record, second: Record) -> tuple[float, float | None] | None:
    """Return mean and standard deviation of the differences, network by network, or None if they are not paired."""
    values = [record.get("accuracies") for record in (first, second)]
    numbers = all(isinstance(v, list) and v and all(isinstance(a, (int, float)) for a in v) for v in values)
    if not numbers or first.get("seeds") != second.get("seeds") or len(values[0] or ()) != len(values[1] or ()):
        return None
    gaps = [float(a) - float(b) for a, b in zip(values[0] or (), values[1] or (), strict=True)]
    return statistics.fmean(gaps), statistics.stdev(gaps) if len(gaps) > 1 else None


def _is_score(record: Record) -> bool:
    """Return whether a record has what a row of the table needs."""
    if not isinstance(record.get("augment"), (str, type(None))):
        return False
    return all(isinstance(record.get(key), kind) for key, kind in _KINDS.items()) and 0 <= record["mean"] <= 1


def _role(record: Record, recipe: Recipe) -> str:
    """Return in words what the networks of a record were trained on."""
    name: str = record["set"]
    rows, known = record.get("rows"), recipe.source.get("num_examples")
    # A coreset of another size than its rows was measured on resized images, which load_dataset does not return.
    own = EIGHT_BIT_ROWS if recipe.kind == "coreset" and recipe.image_size is None else FLOATS
    if name == "full" and isinstance(rows, int) and isinstance(known, int) and rows < known:
        return f"{rows:,} rows of the source"  # of some classes, or without those that were held out
    roles = {
        recipe.config_name: own,
        recipe.config_name + EIGHT_BIT: EIGHT_BIT_ROWS,
        recipe.config_name + HARD_LABELS: own + _HARD,
        recipe.config_name + RELABELLED: own + _BY_TEACHER,
        recipe.config_name + EIGHT_BIT + RELABELLED: EIGHT_BIT_ROWS + _BY_TEACHER,
        "random": RANDOM,
        f"random x{recipe.expand}": AS_MANY,
        f"random as {recipe.storage}{recipe.expand}": SAME_FORM,
        "random" + SOFT_LABELS: "random rows with the labels of its teacher",
        "random" + RELABELLED: RANDOM + _BY_TEACHER,
        "full": WHOLE,
    }
    return roles.get(name, name)
