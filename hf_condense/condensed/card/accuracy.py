"""The accuracies on a card: for every set, those of its 8-bit images first and its baselines beside them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hf_condense.base.markdown import bullets, escape, paragraphs, table
from hf_condense.condensed.card.template import ACCURACY_NOTE, FORM_NOTE, NOT_MEASURED, fill
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores import EIGHT_BIT, HARD_LABELS, SOFT_LABELS
from hf_condense.condensed.scores.class_scores import per_cent

Record = dict[str, Any]  # a row of `Evaluation.to_records()`

VIEW, FLOATS, RANDOM, WHOLE = "8-bit images", "exact floats", "random rows", "whole source"
HARD = "exact floats, hard labels"
AS_MANY, SAME_FORM = "random rows, as many as it decodes into", "random rows in the same form"
_FIRST = (VIEW, FLOATS, HARD, RANDOM, AS_MANY, SAME_FORM)  # what each row of the table begins with
_KINDS: dict[str, type | tuple[type, ...]] = {
    "set": str,
    "network": str,
    "recipe": str,
    "mean": (int, float),
    "n": int,
    "updates": int,
    "epochs": (int, float),
}


def accuracies(recipes: Mapping[str, Recipe]) -> str:
    """Return the table of measured accuracies, or nothing if nothing was measured.

    Args:
        recipes: Recipes of the sets, by config name.
    """
    groups = [(name, group) for name, recipe in recipes.items() for group in groups_of(recipe)]
    roles = ordered_roles(dict.fromkeys(role for _, group in groups for role in group))
    head = ("config", *map(escape, roles), "n", "network", "training")
    rows = [_row(name, group, roles) for name, group in groups]
    if not rows:
        return ""
    gains = bullets(gain for name, group in groups for gain in _gains(name, group))
    return paragraphs(
        fill(ACCURACY_NOTE, {"group": "row"}), table(head, rows), FORM_NOTE if SAME_FORM in roles else "", gains
    )


def unmeasured(recipes: Mapping[str, Recipe]) -> str:
    """Return a sentence that names the sets without measured accuracies, or nothing if there are none."""
    names = ", ".join(escape(name) for name, recipe in recipes.items() if not groups_of(recipe))
    return fill(NOT_MEASURED, {"names": names})


def accuracy_lines(recipe: Recipe) -> list[str]:
    """Return the measured accuracies of a set as texts, one for each network and training."""
    lines = []
    for group in groups_of(recipe):
        roles = ordered_roles(group)
        first = group[roles[0]]
        cells = ", ".join(f"{role} {accuracy_text(group[role], first)}" for role in roles)
        lines.append(f"{cells} ({network_text(first['network'])}, {training_text(first)}, n = {first['n']})")
    return lines


def groups_of(recipe: Recipe) -> list[dict[str, Record]]:
    """Return the measured accuracies of a set by what was trained on, one dict for each network and training.

    Records that are no scores, as strangers may write them, are left out, and so are those of a part of the set.
    """
    groups: dict[tuple[Any, ...], dict[str, Record]] = {}
    for record in filter(_is_score, recipe.evaluation):
        if record.get("ipc") not in (None, recipe.largest_ipc):
            continue
        key = (record["network"], record["recipe"], record.get("augment"))
        groups.setdefault(key, {}).setdefault(_role(record["set"], recipe), record)
    return list(groups.values())


def ordered_roles(roles: Collection[str]) -> list[str]:
    """Return in the order of a table what networks were trained on: the set, random rows, other rows, the source."""
    others = [role for role in roles if role not in (*_FIRST, WHOLE)]
    return [role for role in (*_FIRST, *others, WHOLE) if role in roles]


def training_text(record: Record) -> str:
    """Return in words how the networks of a record were trained."""
    augment = f"augmentation {record['augment']}" if record.get("augment") else "no augmentation"
    rate = f", learning rate {record['lr']:g}" if isinstance(record.get("lr"), (int, float)) else ""
    return f"{record['recipe']}: {record['epochs']:g} epochs, {record['updates']:,} updates, {augment}{rate}"


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
    return all(isinstance(record.get(key), kind) for key, kind in _KINDS.items()) and 0 <= record["mean"] <= 1


def _role(name: str, recipe: Recipe) -> str:
    """Return in words what the networks of a record were trained on."""
    roles = {
        recipe.config_name: VIEW if recipe.kind == "coreset" else FLOATS,
        recipe.config_name + EIGHT_BIT: VIEW,
        recipe.config_name + HARD_LABELS: HARD,
        "random": RANDOM,
        f"random x{recipe.expand}": AS_MANY,
        f"random as {recipe.storage}{recipe.expand}": SAME_FORM,
        "random" + SOFT_LABELS: "random rows with the labels of its teacher",
        "full": WHOLE,
    }
    return roles.get(name, name)


def _gains(name: str, group: Mapping[str, Record]) -> Iterator[str]:
    """Say how far a set is above as many random rows, plain and in its form, if all had the same networks."""
    floats = group.get(FLOATS, {})
    parts = []
    if gap := paired_difference(floats, group.get(SAME_FORM, {})):
        parts.append(f"learning adds {per_cent(*gap)} points to {SAME_FORM}")
    if gap := paired_difference(floats, group.get(AS_MANY, {})):
        parts.append(f"the difference from {AS_MANY}, is {per_cent(*gap)} points")
    if parts:
        conditions = f"paired by network, n = {floats['n']}, {floats['network']}, {floats['recipe']}"
        yield escape(f"{name}: {'; '.join(parts)} ({conditions}).")


def _row(name: str, group: Mapping[str, Record], roles: list[str]) -> list[object]:
    first = group[next(role for role in roles if role in group)]
    cells = [accuracy_text(group[role], first) if role in group else "-" for role in roles]
    return [name, *cells, first["n"], network_text(first["network"]), training_text(first)]


def accuracy_text(record: Record, first: Record) -> str:
    """Return an accuracy, and what differs from the first measurement of its row."""
    differences = [f"n = {record['n']}"] if record["n"] != first["n"] else []
    if record["epochs"] != first["epochs"]:
        differences.append(f"{record['epochs']:g} epochs")
    if record["updates"] != first["updates"]:
        differences.append(f"{record['updates']:,} updates")
    rates = record.get("lr"), first.get("lr")
    if rates[0] != rates[1] and all(isinstance(rate, (int, float)) for rate in rates):
        differences.append(f"learning rate {rates[0]:g}")
    return per_cent(record["mean"], record.get("std")) + (f" ({', '.join(differences)})" if differences else "")


def network_text(name: str) -> str:
    """Return the name of a network, with the width if it is a ConvNet."""
    base, *suffixes = name.split("-")
    if base != "convnet":
        return name
    width = next((suffix[1:] for suffix in suffixes if re.fullmatch(r"w\d+", suffix)), "128")
    return f"{name} (width {width})"
