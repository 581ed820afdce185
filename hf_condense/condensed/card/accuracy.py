"""The accuracies on a card: for every set, those of its 8-bit images first and its baselines beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hf_condense.base.markdown import bullets, escape, paragraphs, table
from hf_condense.condensed.card.template import FORM_NOTE, NOT_MEASURED, fill
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.scores.records import (
    AS_MANY,
    FLOATS,
    HARD,
    SAME_FORM,
    Record,
    groups_of,
    ordered_roles,
    paired_difference,
)
from hf_condense.condensed.wording import accuracy_note, accuracy_text, network_text, training_text


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
    return paragraphs(accuracy_note("row"), table(head, rows), FORM_NOTE if SAME_FORM in roles else "", gains)


def unmeasured(recipes: Mapping[str, Recipe]) -> str:
    """Return a sentence that names the sets without measured accuracies, or nothing if there are none."""
    names = ", ".join(escape(name) for name, recipe in recipes.items() if not groups_of(recipe))
    return fill(NOT_MEASURED, {"names": names})


def _gains(name: str, group: Mapping[str, Record]) -> Iterator[str]:
    """Say how far a set is above as many random rows, plain and in its form, if all had the same networks.

    These rows have hard labels, so a set with soft labels is compared by its images alone.
    """
    floats = group.get(HARD) or group.get(FLOATS, {})
    parts = []
    if gap := paired_difference(floats, group.get(SAME_FORM, {})):
        parts.append(f"learning adds {per_cent(*gap)} points to {SAME_FORM}")
    if gap := paired_difference(floats, group.get(AS_MANY, {})):
        parts.append(f"the difference from {AS_MANY}, is {per_cent(*gap)} points")
    if parts:
        conditions = f"paired by network, n = {floats['n']}, {floats['network']}, {floats['recipe']}"
        conditions += ", all with hard labels" if HARD in group else ""
        yield escape(f"{name}: {'; '.join(parts)} ({conditions}).")


def _row(name: str, group: Mapping[str, Record], roles: list[str]) -> list[object]:
    first = group[next(role for role in roles if role in group)]
    cells = [accuracy_text(group[role], first) if role in group else "-" for role in roles]
    return [name, *cells, first["n"], network_text(first["network"]), training_text(first)]
