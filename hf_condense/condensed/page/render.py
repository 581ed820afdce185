"""The page of some condensed sets: facts and tensors in, HTML out. Equal sets give equal pages."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.torch_state import plain_torch
from hf_condense.base.words import plural
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.condensed.page.html import Html, element, markup
from hf_condense.condensed.scores.class_scores import per_cent
from hf_condense.condensed.scores.records import (
    EIGHT_BIT_ROWS,
    FLOATS,
    HARD,
    HARD_EIGHT_BIT,
    RANDOM,
    Record,
    groups_of,
    ordered_roles,
)
from hf_condense.condensed.summary import summary
from hf_condense.condensed.tensors import CondensedTensors, check_shown, eight_bit_pixels, first_rows
from hf_condense.condensed.wording import (
    DISTANCE_NOTE,
    accuracy_note,
    amount_text,
    distance_cells,
    nearest_verdict,
    network_text,
    size_text,
    source_text,
    title,
    training_text,
    whitening_note,
)

MARK = '<meta name="generator" content="hf_condense">'  # how a page that is ours is told from any other file
_SMALL, _LARGE = 60, 192  # pixels; smaller images are enlarged by a whole factor, larger ones scaled down
_BAR = 200  # units of a drawn accuracy of 100 %


class Shown(NamedTuple):
    """A set that a page shows.

    Attributes:
        facts: What its `condense_config.json` says.
        tensors: Its exact tensors.
        nearest: From images (n, C, H, W) to the real images nearest to each, of the same shape, and how far these are,
            (n,); None if the real images are not at hand.
    """

    facts: Facts
    tensors: CondensedTensors
    nearest: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


class _Place(NamedTuple):
    """Where the sets can be loaded from: a repository, or a folder without a name, and the revision of the former."""

    name: str | None
    revision: str | None


@plain_torch()
def render_page(
    sets: Mapping[str, Shown],
    *,
    default: str | None = None,
    place: str | None = None,
    revision: str | None = None,
    per_class: int = 10,
    max_classes: int = 100,
) -> str:
    """Return a page of condensed sets: a table that can be sorted, and for each set its images, scores and recipe.

    The page is one file. It loads nothing, and its Content-Security-Policy lets nothing run but its own script. Class
    names and all other texts in the facts are shown as text.

    Args:
        sets: Config name to what is shown of it, at least one.
        default: Config that is loaded without a name, or None.
        place: Repository that the snippets load from; None for a folder.
        revision: Branch, tag or commit of the repository that they load; None: its main branch.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show of a set, in label order, >= 1.

    Raises:
        ValueError: If there are no sets, or `per_class` or `max_classes` is below 1.
        CondensedFormatError: If the facts of a set cannot be shown.
    """
    if not sets:
        raise ValueError("sets should hold at least one set; got none")
    check_shown(per_class, max_classes)
    sets = dict(sorted(sets.items()))
    heading = title(shown.facts for shown in sets.values())
    try:
        body = _body(heading, sets, default, _Place(place, revision), per_class=per_class, max_classes=max_classes)
    except (KeyError, TypeError, ValueError) as error:
        raise CondensedFormatError(f"the facts of {', '.join(sets)} cannot be shown: {error!s:.200}") from None
    style, script = (
        files("hf_condense.condensed.page").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = markup(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(MARK),
        element("title", heading),
        element("style", Html(style)),
    )
    page = element("html", element("head", head), element("body", body, element("script", Html(script))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _body(heading: str, sets: Mapping[str, Shown], default: str | None, place: _Place, **limits: int) -> Html:
    """Return what a reader sees of the page."""
    subject = "A condensed set" if len(sets) == 1 else f"{len(sets)} condensed sets"
    sentence = (
        f"{subject}: few images that stand for a large training set. Train on them as on any labelled image dataset, "
        "and test on real images."
    )
    return markup(
        element("h1", heading),
        element("p", sentence),
        _overview(sets),
        element("label", "Size of the images", _size_control(), class_="needs-script"),
        *(_article(name, shown, place, name == default, **limits) for name, shown in sets.items()),
    )


def _hash(content: str) -> str:
    """Return how a Content-Security-Policy names a style or script inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _size_control() -> Html:
    return element("input", id="size", type="range", min=1, max=4, step=1, value=1, autocomplete="off")


def _overview(sets: Mapping[str, Shown]) -> Html:
    """Return the table of all sets; a click on a heading sorts it."""
    columns = [  # heading, whether it holds numbers
        ("config", False),
        ("accuracy %", True),
        ("random rows %", True),
        ("images per class", True),
        ("rows", True),
        ("method", False),
        ("storage", False),
        ("measured with", False),
        ("tensor file", True),
        ("8-bit Parquet", True),
        ("source", False),
    ]
    head = (
        element("th", element("button", heading, type="button"), scope="col", class_="number" if numeric else None)
        for heading, numeric in columns
    )
    rows = (_overview_row(name, shown.facts, [numeric for _, numeric in columns]) for name, shown in sets.items())
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    note = (
        "Accuracies are those of the first network in the section of each set. A heading sorts the table. On a narrow "
        "screen, the table scrolls sideways."
    )
    return markup(_scrolling(table, "All sets"), element("p", note, class_="note"))


def _overview_row(name: str, facts: Facts, numeric: Sequence[bool]) -> Html:
    recipe, sizes = facts.recipe, Sizes.of(facts)
    group = next(iter(groups_of(recipe)), {})
    own = next((group[role] for role in (EIGHT_BIT_ROWS, FLOATS) if role in group), None)
    with_hard = group.get(HARD) or group.get(HARD_EIGHT_BIT)
    hard = f" (hard labels {_accuracy(with_hard)})" if with_hard else ""
    random = group.get(RANDOM)
    source = recipe.source.get("name") or "not stated"
    cells: list[tuple[object, object]] = [  # what is shown, what the table is sorted by
        (element("a", name, href=f"#{name}"), name),
        (_accuracy(own) + hard, own and own["mean"]),
        (_accuracy(random), random and random["mean"]),
        (recipe.ipc_text, recipe.largest_ipc),
        (f"{facts.num_rows:,}", facts.num_rows),
        (recipe.method, recipe.method),
        (f"{recipe.storage}{recipe.expand}" if recipe.expand > 1 else recipe.storage, recipe.storage),
        (own["network"] if own else "-", own["network"] if own else ""),
        (f"{sizes.tensor_bytes:,} B", sizes.tensor_bytes),
        (f"{sizes.parquet_bytes:,} B", sizes.parquet_bytes),
        (source, source),
    ]
    described = [
        {"data_value": "" if value is None else value, "class_": "number" if is_number else None}
        for (_, value), is_number in zip(cells, numeric, strict=True)
    ]
    described[-1]["class_"] = "wrap"
    (first, _), *others = cells
    return element(
        "tr",
        element("th", first, scope="row", **described[0]),
        *(element("td", content, **more) for (content, _), more in zip(others, described[1:], strict=True)),
    )


def _accuracy(record: Record | None) -> str:
    return "not measured" if record is None else per_cent(record["mean"], record.get("std"))


def _scrolling(table: Html, label: str) -> Html:
    """Return a table that scrolls sideways on its own where the screen is narrow, also by keyboard."""
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _article(name: str, shown: Shown, place: _Place, is_default: bool, *, per_class: int, max_classes: int) -> Html:
    """Return the section of one set."""
    facts, recipe = shown.facts, shown.facts.recipe
    sentence = (
        f"{recipe.method} ({recipe.kind}), images per class: {amount_text(recipe)}; {facts.num_classes} "
        f"{plural(facts.num_classes, 'class')}, "
        f"{facts.num_rows:,} rows of {size_text(recipe)}, from {source_text(recipe)}."
    )
    details = {
        **summary(name, facts, shown.tensors),
        "licence": recipe.source.get("license"),
        "citation": (recipe.citation or "").replace("\n", "; ") or None,
    }
    return element(
        "article",
        element("h2", name),
        element("p", sentence, " This set is loaded when no name is given." if is_default else None),
        _images(shown, per_class, max_classes),
        element("h3", "Accuracy"),
        *(_scores(group) for group in groups_of(recipe)),
        element("p", accuracy_note("table") if groups_of(recipe) else "Not measured.", class_="note"),
        element("h3", "Load"),
        _snippet(_loading(place, name)),
        element("p", whitening_note(name).replace("`", ""), class_="note") if facts.is_whitened else None,
        _nearest(shown, per_class, max_classes),
        element("details", element("summary", "Recipe and sizes"), _facts(details)),
        id=name,
    )


def _images(shown: Shown, per_class: int, max_classes: int) -> Html:
    """Return the first images of every class, below the name of the class."""
    rows = first_rows(shown.tensors.row_labels.tolist(), per_class)
    names = shown.facts.recipe.class_names
    figures = (
        _figure(names[c], _pictures(shown.tensors.decoded(torch.tensor(rows[c]))[0], f"{names[c]}, image"))
        for c in list(rows)[:max_classes]
    )
    cuts = []
    if len(rows) > max_classes:
        cuts.append(f"the first {max_classes} of {len(rows)} classes")
    if sum(map(len, rows.values())) < shown.tensors.num_rows:
        cuts.append(f"the first {per_class} images of each class")
    note = element("p", f"Shown: {' and '.join(cuts)}.", class_="note") if cuts else None
    return markup(element("div", *figures, class_="classes"), note)


def _figure(name: str, pictures: Iterator[Html]) -> Html:
    """Return images below the name of their class."""
    return element("figure", element("figcaption", element("bdi", name)), element("div", *pictures))


def _pictures(images: Tensor, words: str, distances: Tensor | None = None) -> Iterator[Html]:
    """Yield images (n, C, H, W), inside the page itself; each is described by some words, its number and a distance."""
    for row, pixels in enumerate(images):
        data, width, height = _png(pixels)
        distance = "" if distances is None else f", distance {distances[row]:.4f}"
        yield element(
            "img",
            src=f"data:image/png;base64,{data}",
            alt=f"{words} {row + 1}{distance}",
            title=distance.removeprefix(", ") or None,
            width=width,
            height=height,
            data_width=width,
            class_="pixels" if max(images.shape[2:]) < _LARGE else None,
        )


def _png(pixels: Tensor) -> tuple[str, int, int]:
    """Return an image (C, H, W) as PNG in base64, and the width and the height at which it is shown."""
    picture = to_pil_image(eight_bit_pixels(pixels))
    picture.thumbnail((_LARGE, _LARGE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    factor = max(1, round(_SMALL / max(picture.size)))
    return base64.b64encode(buffer.getvalue()).decode(), factor * picture.width, factor * picture.height


def _scores(group: Mapping[str, Record]) -> Html:
    """Return what networks of one kind reached on a set and on its baselines, as a table with bars."""
    roles = ordered_roles(group)
    first = group[roles[0]]
    rows = [
        element(
            "tr",
            element("th", role, scope="row"),
            element("td", per_cent(group[role]["mean"], group[role].get("std")), class_="number"),
            element("td", _bar(group[role])),
            element("td", group[role]["n"], class_="number"),
            class_="own" if role in (EIGHT_BIT_ROWS, FLOATS) else None,
        )
        for role in roles
    ]
    kinds = {"trained on": None, "accuracy %": "number", "0 to 100 %": None, "n": "number"}
    head = (element("th", heading, scope="col", class_=kind) for heading, kind in kinds.items())
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    label = f"{network_text(first['network'])}, {training_text(first)}"
    return markup(element("p", label), _scrolling(table, f"Accuracy of {label}"))


def _bar(record: Record) -> Html:
    """Return an accuracy as a bar from 0 to 100 %, with its standard deviation as a line."""
    mean, std = record["mean"], record.get("std")
    shapes = [
        element("rect", class_="frame", x=0, y=3, width=_BAR, height=10),
        element("rect", class_="bar", x=0, y=3, width=f"{_BAR * mean:.1f}", height=10),
    ]
    if isinstance(std, (int, float)):
        low, high = (f"{_BAR * min(1.0, max(0.0, end)):.1f}" for end in (mean - std, mean + std))
        ends = [(low, low, 5, 11), (high, high, 5, 11), (low, high, 8, 8)]
        shapes += [element("line", class_="whisker", x1=x1, x2=x2, y1=y1, y2=y2) for x1, x2, y1, y2 in ends]
    return element("svg", *shapes, viewBox=f"0 0 {_BAR} 16", preserveAspectRatio="none", aria_hidden="true")


def _loading(place: _Place, name: str) -> str:
    """Return the lines that load a set."""
    where = f"{json.dumps(place.name or 'path/to/the/folder')}, {json.dumps(name)}"
    version = "" if place.revision is None else f", revision={json.dumps(place.revision)}"
    return (
        f'from datasets import load_dataset  # nothing else is needed\n\nds = load_dataset({where}, split="train"'
        f"{version})  # 8-bit images\n\nfrom hf_condense import load_condensed\n\n"
        f"ds = load_condensed({where}{version})  # also a datasets.Dataset, with exact floats and the recipe"
    )


def _snippet(lines: str) -> Html:
    return element("pre", element("code", lines), tabindex=0)


def _nearest(shown: Shown, per_class: int, max_classes: int) -> Html | None:
    """Say how close the images are to single source images, as far as that was measured, and show these."""
    recipe = shown.facts.recipe
    if recipe.kind == "coreset" or not (recipe.nearest or shown.nearest):
        return None
    return markup(
        element("h3", "Distances to real images"),
        _distances(recipe.nearest, recipe.kind) if recipe.nearest else None,
        _neighbours(shown, per_class, max_classes) if shown.nearest else None,
    )


def _distances(nearest: Mapping[str, Any], kind: str) -> Html:
    """Return the smallest, the median and the largest distance of learned images and of real rows."""
    head = (element("th", heading, scope="col") for heading in ("distance", "nearest", "median", "farthest"))
    rows = [
        element(
            "tr",
            element("th", words, scope="row"),
            *(element("td", cell, class_="number") for cell in distance_cells(nearest[kind])),
        )
        for kind, words in (("synthetic", "learned images"), ("real", f"{nearest['rows']:,} real rows"))
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    return markup(
        element("p", _capitalised(nearest_verdict(nearest, kind))),
        _scrolling(table, "Distances to the nearest real images"),
        element("p", DISTANCE_NOTE, class_="note"),
    )


def _neighbours(shown: Shown, per_class: int, max_classes: int) -> Html:
    """Return the first images of every class, each above the real image that is nearest to it."""
    assert shown.nearest is not None
    rows = first_rows(shown.tensors.row_labels.tolist(), per_class, max_classes)
    names = shown.facts.recipe.class_names
    classes = list(rows)
    images = shown.tensors.decoded(torch.tensor([row for c in classes for row in rows[c]]))[0]  # (n, C, H, W)
    counts = [len(rows[c]) for c in classes]
    figures = []
    for c, *parts in zip(classes, *(part.split(counts) for part in (images, *shown.nearest(images))), strict=True):
        own, real, distances = parts
        pairs = zip(
            _pictures(own, f"{names[c]}, image"),
            _pictures(real, f"{names[c]}, real image nearest to image", distances),
            (element("small", f"{distance:.3f}") for distance in distances.tolist()),
            strict=True,
        )
        figures.append(_figure(names[c], (element("span", *pair, class_="pair") for pair in pairs)))
    return markup(
        element(
            "p",
            "Below each image stand the real image nearest to it, of any class, and their distance: the root mean "
            "square over the pixels, 0 between equal images, 1 between black and white.",
        ),
        element("div", *figures, class_="classes"),
    )


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _facts(values: Mapping[str, object]) -> Html:
    """Return facts by name, without those that are empty."""
    pairs = ((element("dt", name), element("dd", element("bdi", value))) for name, value in values.items() if value)
    return element("dl", *(part for pair in pairs for part in pair))
