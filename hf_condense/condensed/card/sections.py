"""What a card says of condensed sets: the text for every gap of the template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from hf_condense.base.markdown import bullets, escape, paragraphs, table
from hf_condense.condensed.card.accuracy import accuracies, unmeasured
from hf_condense.condensed.card.template import BLOCK, fill
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import PREVIEW
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.scores.records import EIGHT_BIT_ROWS, FLOATS, groups_of, paired_difference
from hf_condense.condensed.wording import (
    DISTANCE_NOTE,
    amount_text,
    distance_cells,
    nearest_verdict,
    size_text,
    source_text,
    whitening_note,
)


def block(sets: Mapping[str, Facts], default: str, *, place: str, licence: object, pictures: str) -> str:
    """Return what stands between the markers of a card.

    Args:
        sets: Config name to facts.
        default: The set that the snippets load.
        place: Repository or folder that the snippets load from.
        licence: Licence in the metadata of the card, or None.
        pictures: What stands before the name of a config in the address of its picture.
    """
    recipes = {name: facts.recipe for name, facts in sets.items()}
    parts = _parts(recipes)
    gaps = {
        "images": _images(sets, pictures),
        "place": json.dumps(place),
        "default": json.dumps(default),
        "whitening": _whitening(sets),
        "sets": _sets(sets),
        "combined": _combined(recipes),
        "forms": _forms(recipes),
        "extra_splits": _extra_splits(sets),
        "accuracies": accuracies(recipes),
        "unmeasured": unmeasured(recipes),
        "recipes": _recipes(parts),
        "teachers": _teachers(parts),
        "sizes": _sizes(sets),
        "eight_bit_errors": _eight_bit_errors(sets),
        "distances": _distances(parts),
        "verdicts": _verdicts(parts),
        "licence": f"the licence {_licence(licence)}" if licence else "no licence",
        "source_licences": _source_licences(parts),
        "citations": _citations(parts),
    }
    return fill(BLOCK, gaps)


def _parts(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return the recipes, those of its numbered parts in the place of a combined set."""
    by_name: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        several = recipe.part_recipes if recipe.parts is not None else []
        by_name |= {f"{name}, part {i}": part for i, part in enumerate(several, 1)} or {name: recipe}
    return by_name


def _combined(recipes: Mapping[str, Recipe]) -> str:
    """Say what the parts of combined sets are."""
    lines = []
    for name, recipe in recipes.items():
        parts = zip(recipe.parts or (), recipe.part_recipes, strict=False)  # a set that is not combined is its own part
        for i, (part, own) in enumerate(parts, 1):
            origin = f" of {escape(own.source['name'])}" if own.source.get("name") else ""
            amounts = ", ".join(f"{label} {amount}" for label, amount in part["ipc"].items())
            lines.append(f"{name}, part {i}: {_name(own.config_name)}{origin}, images per class: {escape(amounts)}.")
    return bullets(lines)


def _name(text: str) -> str:
    """Return a name as code, unless it has signs that could end that: the method of a part may be any text."""
    return f"`{text}`" if re.fullmatch(r"[\w.-]+", text) else escape(text)


def _images(sets: Mapping[str, Facts], address: str) -> str:
    """Show the first images of every set that has a picture of them."""
    pictures = []
    for name, facts in sets.items():
        if facts.has_preview:
            alone = facts.recipe.ipc_text == "1" and facts.recipe.expand == 1
            layout = "one image per class" if alone else "one row per class"
            pictures.append(f"`{name}`: the first images, {layout}\n\n![{name}]({address}{name}/{PREVIEW})")
    return paragraphs(*pictures)


def _whitening(sets: Mapping[str, Facts]) -> str:
    """Say how images are whitened, if networks should see them so."""
    names = ", ".join(f"`{name}`" for name, facts in sets.items() if facts.is_whitened)
    return whitening_note(names)


def _sets(sets: Mapping[str, Facts]) -> str:
    """Say what each set is."""
    head = ("config", "method", "kind", "images per class", "classes", "rows", "size", "source")
    return table(head, (_set_row(name, facts) for name, facts in sets.items()))


def _set_row(name: str, facts: Facts) -> tuple[object, ...]:
    recipe = facts.recipe
    amount, size, source = amount_text(recipe), size_text(recipe), source_text(recipe)
    return name, recipe.method, recipe.kind, amount, facts.num_classes, facts.num_rows, size, source


def _forms(recipes: Mapping[str, Recipe]) -> str:
    """Say what the sets store that do not store whole images."""
    lines = []
    for name, recipe in recipes.items():
        if recipe.storage != "pixels":
            many = (
                f" In the space of one image it holds {recipe.expand} images, on all of which networks are trained."
                if recipe.expand > 1
                else ""
            )
            lines.append(f"`{name}` stores {recipe.decoder.content} (storage form `{recipe.storage}`).{many}")
    return bullets(lines)


def _extra_splits(sets: Mapping[str, Facts]) -> str:
    """Say which splits stand beside the condensed ones."""
    lines = []
    for name, facts in sets.items():
        if splits := facts.extra_splits:
            counts = ", ".join(f"`{split}` ({rows:,} rows)" for split, (rows, _) in splits.items())
            lines.append(f"`{name}` also has splits of real, unchanged rows: {counts}.")
    return bullets(lines)


def _recipes(recipes: Mapping[str, Recipe]) -> str:
    """Say how the sets were made."""
    head = ("config", "seed", "steps", "preset", "network", "pixel range", "options", "time")
    return table(head, (_recipe_row(name, recipe) for name, recipe in recipes.items()))


def _recipe_row(name: str, recipe: Recipe) -> tuple[object, ...]:
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in recipe.options.items()) or "none"
    steps = "none" if recipe.steps is None else f"{recipe.steps:,}"
    seconds, device = recipe.runtime.get("seconds"), recipe.runtime.get("device_name") or recipe.runtime.get("device")
    time = f"{seconds:,.0f} s" + (f" on {device}" if device else "") if isinstance(seconds, (int, float)) else "-"
    return name, recipe.seed, steps, recipe.preset or "none", recipe.network, recipe.pixel_range, options, time


def _teachers(recipes: Mapping[str, Recipe]) -> str:
    """Say which networks gave the soft labels of the sets that have some."""
    lines = []
    for name, recipe in recipes.items():
        if text := recipe.teacher_text:
            learned = recipe.options.get("soft_labels") == "learned"
            labels = "the first soft labels, which were then learned, are" if learned else "the soft labels are"
            order = "their order is that of the class names."
            if recipe.label_views is not None:
                views, top = recipe.label_views, recipe.label_top
                labels = f"for {views} views of each row, the soft labels are the {top} largest"
                order = (
                    "the logits are logarithms of probabilities. `soft_label_crop` holds top, left, height and width "
                    "of a view in pixels, and 1 if it is mirrored."
                )
            lines.append(f"`{name}`: {labels} logits of {escape(text)}; {order}")
    return bullets(lines)


def _sizes(sets: Mapping[str, Facts]) -> str:
    """Say how many bytes the sets take and what of it is what, and how many bytes the pixels of their sources take."""
    head = (
        "config",
        "float budget",
        "stored floats",
        "integers",
        "the rest",
        "tensor file",
        "8-bit Parquet",
        "source pixels",
    )
    return table(head, (_size_row(name, facts) for name, facts in sets.items()))


def _size_row(name: str, facts: Facts) -> tuple[object, ...]:
    sizes = Sizes.of(facts)
    rest = {
        "soft labels": sizes.soft_label_bytes,
        "whitening": sizes.whitening_bytes,
        "header": sizes.header_bytes,
    }
    return (
        name,
        f"{sizes.budget:,}",
        f"{sizes.stored:,} {facts.recipe.store_dtype}, {sizes.stored_bytes:,} B",
        f"{sizes.integer_bytes:,} B",
        ", ".join(f"{what} {size:,} B" for what, size in rest.items() if size),
        sizes.share_of_source(sizes.tensor_bytes),
        f"{sizes.rows:,} rows, {sizes.share_of_source(sizes.parquet_bytes)}",
        f"{sizes.source_bytes:,} B" if sizes.source_bytes else "unknown",
    )


def _eight_bit_errors(sets: Mapping[str, Facts]) -> str:
    """Say how far the 8-bit images are from the floats, and what that costs."""
    lines = []
    for name, facts in sets.items():
        if error := facts.eight_bit_error:
            sentences = (
                f"{escape(name)}: {error.clipped_fraction:.3%} of the values were clipped to [0, 1]; the largest "
                f"difference from the floats is {error.max_abs_error:.4f} ({255 * error.max_abs_error:.1f} grey "
                "levels).",
                *_accuracy_costs(facts.recipe),
            )
            lines.append(" ".join(sentences))
    return bullets(lines)


def _accuracy_costs(recipe: Recipe) -> Iterator[str]:
    """Say what networks reach on the 8-bit images and on the floats, where both were measured."""
    for group in groups_of(recipe):
        if EIGHT_BIT_ROWS not in group or FLOATS not in group:
            continue
        rows, floats = group[EIGHT_BIT_ROWS], group[FLOATS]
        sentence = (
            f"{rows['network']} reached {per_cent(rows['mean'])} per cent on the 8-bit images and "
            f"{per_cent(floats['mean'])} per cent on the floats"
        )
        if gap := paired_difference(rows, floats):
            sentence += f"; the difference, paired by network, is {per_cent(*gap)} points (n = {rows['n']})"
        yield escape(f"{sentence}.")


def _distances(recipes: Mapping[str, Recipe]) -> str:
    """Say how close the learned images are to single source images, and how close real images are."""
    head = ("config", "learned: nearest", "median", "farthest", "real: nearest", "median", "farthest", "real rows")
    rows = []
    for name, recipe in recipes.items():
        if recipe.kind != "coreset" and (nearest := recipe.nearest):
            cells = [cell for kind in ("synthetic", "real") for cell in distance_cells(nearest[kind])]
            rows.append((name, *cells, nearest["rows"]))
    return paragraphs(DISTANCE_NOTE, table(head, rows)) if rows else ""


def _verdicts(recipes: Mapping[str, Recipe]) -> str:
    """Say in words what the distances mean; coresets come last."""
    learned = {name: recipe for name, recipe in recipes.items() if recipe.kind != "coreset"}
    lines = [
        f"{escape(name)}: {nearest_verdict(recipe.nearest, recipe.kind)}"
        for name, recipe in learned.items()
        if recipe.nearest
    ]
    lines += [f"{escape(name)}: not checked." for name, recipe in learned.items() if not recipe.nearest]
    lines += [f"{escape(name)}: a coreset; its images are real rows." for name in recipes if name not in learned]
    return bullets(lines)


def _licence(stated: object) -> str:
    """Return a licence as text; a card may state several."""
    return escape(", ".join(map(str, stated)) if isinstance(stated, list) else stated)


def _source_licences(recipes: Mapping[str, Recipe]) -> str:
    """Say what is known of the licences of the sources, whose terms the sets inherit."""
    lines = []
    for name, recipe in recipes.items():
        if licence := recipe.source.get("license"):
            lines.append(f"{escape(name)}: its source states the licence {_licence(licence)}.")
        else:
            lines.append(
                f"{escape(name)}: the licence of its source is not known here; look it up before you share the set."
            )
    return bullets(lines)


def _citations(recipes: Mapping[str, Recipe]) -> str:
    """Cite the papers of the methods and of the storage forms, each once."""
    methods = [line for recipe in recipes.values() for line in (recipe.citation or "").splitlines()]
    forms = [paper for recipe in recipes.values() for paper in recipe.decoder.papers]
    return bullets(dict.fromkeys(map(escape, [*methods, *forms])))
