"""The accuracies on a card: what was measured of each set, the 8-bit images first, its baselines beside it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

from hf_condense.condensed.card.markdown import escape, table
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores import EIGHT_BIT

Record = dict[str, Any]  # a row of `Evaluation.to_records()`

VIEW, FLOATS, RANDOM, WHOLE = "8-bit images", "exact floats", "random rows", "whole set"
_KINDS: dict[str, type | tuple[type, ...]] = {
    "set": str,
    "network": str,
    "recipe": str,
    "mean": (int, float),
    "n": int,
    "updates": int,
    "epochs": (int, float),
}
_NOTE = (
    "Test accuracy in per cent, after the last epoch, mean ± standard deviation (n - 1) over n networks with fresh "
    "weights; no choice was made on the test images. The sets of a row share first weights and recipe; random "
    "rows are drawn anew for every network. ConvNets have instance norm unless their name says otherwise."
)
_UNMEASURED = "Not measured: {names}. `hf_condense.evaluate` measures a set, `with_evaluation` puts the result here."


def accuracy_section(recipes: Mapping[str, Recipe]) -> str:
    """Return the table of accuracies of some sets, by config name, and the names of those that have none."""
    groups = [(name, group) for name, recipe in recipes.items() for group in groups_of(recipe)]
    found = list(dict.fromkeys(role for _, group in groups for role in group))
    others = [role for role in found if role not in (VIEW, FLOATS, RANDOM, WHOLE)]
    shown = [role for role in (VIEW, FLOATS, RANDOM, *others, WHOLE) if role in found]
    parts = ["## Accuracy"]
    if groups:
        head = ("config", *map(escape, shown), "n", "network", "training")
        parts += [_NOTE, table(head, [_row(name, group, shown) for name, group in groups])]
    if unmeasured := [escape(name) for name in recipes if name not in dict(groups)]:
        parts.append(_UNMEASURED.format(names=", ".join(unmeasured)))
    return "\n\n".join(parts)


def groups_of(recipe: Recipe) -> list[dict[str, Record]]:
    """Return the measured accuracies of a set, those of one network and training together, by what was trained on.

    What strangers may have written beside them is left out.
    """
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in filter(_is_score, recipe.evaluation):
        key = (record["network"], record["recipe"], record.get("augment"))
        groups.setdefault(key, {}).setdefault(_role(record["set"], recipe), record)
    return list(groups.values())


def paired_difference(first: Record, second: Record) -> tuple[float, float | None] | None:
    """Return mean and standard deviation of the differences, network by network, or None if they are not paired."""
    values = [record.get("accuracies") for record in (first, second)]
    numbers = all(isinstance(v, list) and v and all(isinstance(a, (int, float)) for a in v) for v in values)
    if not numbers or first.get("seeds") != second.get("seeds") or len(values[0] or ()) != len(values[1] or ()):
        return None
    gaps = [float(a) - float(b) for a, b in zip(values[0] or (), values[1] or (), strict=True)]
    return statistics.fmean(gaps), statistics.stdev(gaps) if len(gaps) > 1 else None


def per_cent(mean: float, std: object = None) -> str:
    """Write a fraction in per cent, with its standard deviation if there is one."""
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if isinstance(std, (int, float)) else "")


def _is_score(record: Record) -> bool:
    """Tell whether a record has what a row of the table needs."""
    return all(isinstance(record.get(key), kind) for key, kind in _KINDS.items()) and 0 <= record["mean"] <= 1


def _role(name: str, recipe: Recipe) -> str:
    """Say in words what the networks of a record were trained on."""
    own = recipe.config_name
    more = re.fullmatch(r"random x(\d+)", name)
    known = {
        own: FLOATS if recipe.kind == "synthetic" else VIEW,
        own + EIGHT_BIT: VIEW,
        "random": RANDOM,
        "full": WHOLE,
    }
    return f"{RANDOM}, {more[1]} times as many" if more else known.get(name, name)


def _row(name: str, group: Mapping[str, Record], shown: list[str]) -> list[object]:
    """Return a row of the table."""
    first = group[next(role for role in shown if role in group)]
    cells = [_cell(group[role], first) if role in group else "-" for role in shown]
    augment = first.get("augment") or "none"
    training = f"{first['recipe']}: {first['epochs']:g} epochs, {first['updates']:,} updates, augmentation {augment}"
    return [name, *cells, first["n"], _network(first["network"]), training]


def _cell(record: Record, first: Record) -> str:
    """Write an accuracy, and in what it differs from the first one of its row."""
    differing = [f"n = {record['n']}"] if record["n"] != first["n"] else []
    if record["epochs"] != first["epochs"]:
        differing.append(f"{record['epochs']:g} epochs")
    if record["updates"] != first["updates"]:
        differing.append(f"{record['updates']:,} updates")
    return per_cent(record["mean"], record.get("std")) + (f" ({', '.join(differing)})" if differing else "")


def _network(name: str) -> str:
    """Write the name of a network, with the width of a ConvNet."""
    base, *suffixes = name.split("-")
    if base != "convnet":
        return name
    width = next((suffix[1:] for suffix in suffixes if re.fullmatch(r"w\d+", suffix)), "128")
    return f"{name} (width {width})"
