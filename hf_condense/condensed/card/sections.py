"""What a card tells of condensed sets, section by section: the text between its markers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hf_condense.condensed.card.accuracy import FLOATS, VIEW, accuracy_section, groups_of, paired_difference, per_cent
from hf_condense.condensed.card.markdown import escape, listed, table
from hf_condense.condensed.facts import PREVIEW, Facts, extra_splits, read_recipe
from hf_condense.condensed.recipe import Recipe

_COPY = 0.01  # two or three grey levels: an image this near to a source row shows it

_INTRO = (
    "Small sets of images that stand in for a large training set: learned images or chosen real ones, made by "
    "hf_condense. Train on them as on any labelled image dataset; test on real images."
)
_LIMITS = (
    "A set was made for the network and the image size in its recipe; others train less well on it.",
    "It stands in for training data only. Test on real images.",
    "It gives no guarantee of privacy: images may resemble those they were made from, and a coreset holds real ones.",
    "Biases and label errors of the source are carried over.",
)


def block(sets: Mapping[str, Facts], shown: str, *, place: str, licence: object, pictures: str) -> str:
    """Return what stands between the markers of a card.

    Args:
        sets: Config name to facts.
        shown: The set that the snippets load.
        place: Repository or folder that the snippets load from.
        licence: Licence in the metadata of the card, or None.
        pictures: What stands before the name of a config in the address of its picture.
    """
    recipes = {name: read_recipe(facts) for name, facts in sets.items()}
    cited = dict.fromkeys(escape(recipe.citation) for recipe in recipes.values() if recipe.citation)
    sections = (
        _INTRO,
        _pictures(sets, recipes, pictures),
        _loading(json.dumps(place), json.dumps(shown)),
        _overview(sets, recipes),
        accuracy_section(recipes),
        _making(recipes),
        _storage(sets, recipes),
        _eight_bit(sets, recipes),
        _nearest(recipes),
        _section("Limits", listed(_LIMITS)),
        _licence(recipes, licence),
        _section("Citation", listed(cited)),
    )
    return "\n\n".join(section for section in sections if section)


def title(sets: Mapping[str, Facts]) -> str:
    """Return the title of a new card, as text of unknown origin."""
    names = {str(name) for facts in sets.values() if (name := read_recipe(facts).source.get("name"))}
    return f"{names.pop()}, condensed" if len(names) == 1 else "Condensed image sets"


def _section(head: str, *parts: str) -> str:
    """Join a heading and what stands below it; nothing if that is nothing."""
    kept = [part for part in parts if part]
    return "\n\n".join([f"## {head}", *kept]) if kept else ""


def _pictures(sets: Mapping[str, Facts], recipes: Mapping[str, Recipe], before: str) -> str:
    """Show the first images of every set that has a picture of them."""
    found = [name for name, facts in sets.items() if facts.get("preview") == PREVIEW]
    pictures = []
    for name in found:
        alone = recipes[name].ipc == 1 and recipes[name].expand == 1
        layout = "one image of each class" if alone else "a row for each class"
        pictures.append(f"`{name}`: the first images, {layout}\n\n![{name}]({before}{name}/{PREVIEW})")
    return _section("Images", *pictures)


def _loading(place: str, shown: str) -> str:
    """Show how a set is loaded, without and with hf_condense."""
    return f"""## Load

```python
from datasets import load_dataset  # all that is needed

ds = load_dataset({place}, {shown}, split="train")  # 8-bit images
```

```python
from hf_condense import load_condensed

ds = load_condensed({place}, {shown})  # a Dataset as well
ds.synthetic.images, ds.recipe  # exact float pixels, how they were made
```"""


def _overview(sets: Mapping[str, Facts], recipes: Mapping[str, Recipe]) -> str:
    """Say what each set is, and which splits stand beside it."""
    head = ("config", "method", "kind", "ipc", "classes", "images", "size", "from")
    beside = [
        f"`{name}` also has real, untouched splits: "
        + ", ".join(f"`{split}` ({rows:,} rows)" for split, (rows, _) in splits.items())
        for name, facts in sets.items()
        if (splits := extra_splits(facts))
    ]
    rows = (_set_row(name, recipe, sets[name]) for name, recipe in recipes.items())
    return _section("Sets", table(head, rows), listed(f"{line}." for line in beside))


def _set_row(name: str, recipe: Recipe, facts: Facts) -> tuple[object, ...]:
    """Return a row of the table of sets."""
    ipc = recipe.ipc
    counts = sorted({*ipc.values()}) if isinstance(ipc, dict) else [ipc]
    amount = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else counts[0]
    channels, height, width = recipe.image_shape
    decoded = f", each decoded into {recipe.expand}" if recipe.expand > 1 else ""
    total = _source_size(recipe)
    return (
        name,
        recipe.method,
        recipe.kind,
        f"{amount}{decoded}",
        len(recipe.class_names),
        facts["num_rows"],
        f"{width}x{height} {'RGB' if channels == 3 else 'grey'}",
        (recipe.source.get("name") or "not stated") + (f", {total:,} images" if total else ""),
    )


def _making(recipes: Mapping[str, Recipe]) -> str:
    """Return the table of recipes."""
    head = ("config", "seed", "updates", "preset", "network", "pixel range", "options", "made in")
    return _section("How they were made", table(head, (_recipe_row(name, recipe) for name, recipe in recipes.items())))


def _recipe_row(name: str, recipe: Recipe) -> tuple[object, ...]:
    """Return a row of the table of recipes."""
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in recipe.options.items()) or "none"
    steps = "none" if recipe.steps is None else f"{recipe.steps:,}"
    seconds, device = recipe.runtime.get("seconds"), recipe.runtime.get("device_name") or recipe.runtime.get("device")
    made = f"{seconds:,.0f} s" + (f" on {device}" if device else "") if isinstance(seconds, (int, float)) else "-"
    return name, recipe.seed, steps, recipe.preset or "none", recipe.network, recipe.pixel_range, options, made


def _storage(sets: Mapping[str, Facts], recipes: Mapping[str, Recipe]) -> str:
    """Say how many bytes the sets take, and how many the pixels of their sources."""
    rows = []
    for name, recipe in recipes.items():
        sizes = [int(sets[name][key]) for key in ("parquet_bytes", "tensor_bytes")]
        pixels = _source_size(recipe) * math.prod(recipe.image_shape)
        ratios = [f" (1/{pixels / size:,.0f})" if pixels > size > 0 else "" for size in sizes]
        cells = [f"{size:,} B{ratio}" for size, ratio in zip(sizes, ratios, strict=True)]
        rows.append((name, *cells, f"{pixels:,} B" if pixels else "not known"))
    note = (
        "In brackets the share of the source's pixels: of all its images at the size of the set, 8 bits a channel, "
        "uncompressed; its files may be smaller than that."
    )
    return _section("Storage", table(("config", "8-bit Parquet", "exact tensors", "source's pixels"), rows), note)


def _source_size(recipe: Recipe) -> int:
    """Return the number of source images, 0 if it is not known."""
    total = recipe.source.get("num_examples")
    return total if isinstance(total, int) else 0


def _eight_bit(sets: Mapping[str, Facts], recipes: Mapping[str, Recipe]) -> str:
    """Say how far the 8-bit images are from the floats, and what that costs."""
    lines = [
        f"{escape(name)}: {png['clipped_fraction']:.3%} of the values were clipped to [0, 1]; the largest difference "
        f"is {png['max_abs_error']:.4f} ({255 * png['max_abs_error']:.1f} grey levels)."
        + "".join(f" {sentence}" for sentence in _costs(recipes[name]))
        for name, facts in sets.items()
        if (png := facts.get("png"))
    ]
    note = (
        "`load_dataset` gives 8-bit images. For the exact floats, and to repeat what was measured on them, use "
        "`load_condensed`."
    )
    return _section("8-bit images", note, listed(lines)) if lines else ""


def _costs(recipe: Recipe) -> Iterator[str]:
    """Say what networks reach on the 8-bit images and on the floats, where both were measured."""
    for group in groups_of(recipe):
        if VIEW not in group or FLOATS not in group:
            continue
        view, floats = group[VIEW], group[FLOATS]
        reached = f"{per_cent(view['mean'])} per cent on them, {per_cent(floats['mean'])} on the floats"
        sentence = f"{view['network']} reached {reached}"
        if gap := paired_difference(view, floats):
            sentence += f"; paired by network the difference is {per_cent(*gap)} points (n = {view['n']})"
        yield escape(f"{sentence}.")


def _nearest(recipes: Mapping[str, Recipe]) -> str:
    """Say how close the images come to single source images, beside real ones."""
    learned = {name: recipe for name, recipe in recipes.items() if recipe.kind == "synthetic"}
    checked = {name: recipe.nearest for name, recipe in learned.items() if recipe.nearest}
    head = ("config", "learned: nearest", "median", "farthest", "real: nearest", "median", "farthest", "real rows")
    measures = ("min", "median", "max")
    rows = [
        (name, *(f"{found[kind][key]:.4f}" for kind in ("synthetic", "real") for key in measures), found["rows"])
        for name, found in checked.items()
    ]
    note = (
        "Distance of every learned image to the nearest source image of any class, beside that of real rows to the "
        "nearest other one: root mean square over the pixels, 0 the same, 1 white against black. Copies that are "
        "shifted or recoloured are not seen in this way."
    )
    lines = [f"{escape(name)}: {_verdict(found)}" for name, found in checked.items()]
    lines += [f"{escape(name)}: not checked." for name in learned if name not in checked]
    lines += [f"{escape(name)}: a coreset, its images are real rows." for name in recipes if name not in learned]
    return _section("Nearest real images", *([note, table(head, rows)] if rows else []), listed(lines))


def _verdict(found: Mapping[str, Any]) -> str:
    """Say in words what the distances mean."""
    learned, real = found["synthetic"], found["real"]
    than = f"to single source images than real rows are to each other (medians {learned['median']:.3f} and "
    than += f"{real['median']:.3f})"
    if learned["min"] < _COPY:
        return f"at least one image is all but a copy of a source image, at a distance of {learned['min']:.4f}."
    if learned["median"] < real["median"] / 2:
        return f"no copies, but much nearer {than}: they still show them."
    if learned["median"] < real["median"]:
        return f"no copies; a little nearer {than}."
    return f"no copies; no nearer {than}."


def _licence(recipes: Mapping[str, Recipe], licence: object) -> str:
    """Say what is known of the licence; a set inherits the terms of its source."""
    lines = [
        f"{escape(name)}: its source is under {escape(recipe.source['license'])}."
        if recipe.source.get("license")
        else f"{escape(name)}: the source states none; ask its owner before you share the set."
        for name, recipe in recipes.items()
    ]
    whole = f"This card states: {escape(licence)}." if licence else "This card states none."
    return _section("Licence", f"A condensed set inherits the terms of its source. {whole}", listed(lines))
