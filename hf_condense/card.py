"""The dataset card: facts in, text out. Nothing here touches a disk or a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from hf_condense.errors import CondensedFormatError
from hf_condense.recipe import Recipe

PARQUET = "train-00000-of-00001.parquet"
START, END = "<!-- hf_condense:start -->", "<!-- hf_condense:end -->"
_BLOCK = re.compile(f"{START}(?:(?!{START}).)*?{END}", re.DOTALL)
_TAGS = ("dataset-condensation", "dataset-distillation", "hf_condense", "image")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ANCHOR = re.compile(r"(?:^|[\s\[{,:-])&\S")
_SPECIAL = str.maketrans({char: f"&#{ord(char)};" for char in "&<>|[]`"})

Facts = Mapping[str, Any]  # what condense_config.json holds


def render(
    sets: Mapping[str, Facts], existing: str | None = None, *, default: str | None = None,
    citations: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Return the text of README.md for a folder or repository of condensed sets.

    An existing card keeps its text and metadata: only the block between the two markers, the `configs` and
    `dataset_info` of our sets, and what the metadata lacks are written.

    Args:
        sets: Config name to the facts of its `condense_config.json`, at least one.
        existing: Text of the README.md that is there, or None.
        default: Config that `load_dataset` takes without a name. None: the existing card's, else the first set.
        citations: Method name to the line that cites its paper.

    Raises:
        CondensedFormatError: If the existing metadata or the facts of a set cannot be read.
    """
    sets = dict(sorted(sets.items()))
    metadata, body = _split(existing) if existing else ({}, f"\n# {escape(_title(sets))}\n\n{START}{END}\n")
    if not _BLOCK.search(body):
        body = f"{body.rstrip()}\n\n{START}{END}\n"
    merged = _merge(metadata, sets, default)
    shown = _default(merged["configs"])
    block = _block(sets, shown if shown in sets else next(iter(sets)), citations or {})
    body = _BLOCK.sub(lambda _: f"{START}\n\n{block}\n\n{END}", body, count=1)
    return f"---\n{DatasetCardData(**merged).to_yaml()}\n---\n{body}"


def default_config(card: str) -> str | None:
    """Return the config that a card marks as default, or None.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return _default(_entries(_split(card)[0].get("configs")))


def escape(value: object) -> str:
    """Write a value of unknown origin so that markdown and HTML take it as text, also inside a table."""
    return " ".join(str(value).split()).translate(_SPECIAL)


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text."""
    if not card.lstrip().startswith("---"):
        return {}, card
    if ("<<" in card or "merge" in card) and _ANCHOR.search(card):
        raise CondensedFormatError(
            "README.md: merges (<<) of YAML anchors are not read: few lines may unfold without end"
        )
    try:
        parsed = DatasetCard(card)
        metadata: dict[str, Any] = parsed.data.to_dict()
    except Exception as error:  # the YAML parser's errors share no class with those of the card, and it recurses
        reason = f"the metadata between the --- lines cannot be read: {error!s:.200}"
        raise CondensedFormatError(f"README.md: {reason}") from None
    return metadata, parsed.text


def _entries(value: Any) -> list[dict[str, Any]]:
    """Return a metadata field that holds one mapping or a list of them as a list."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _default(configs: list[dict[str, Any]]) -> str | None:
    """Return the name of the config that is marked as default."""
    return next((_name(entry) for entry in configs if entry.get("default") is True), None)


def _name(entry: dict[str, Any]) -> str:
    """Return the config that an entry of the metadata is about."""
    return str(entry.get("config_name", "default"))


def _config(name: str) -> dict[str, Any]:
    """Return the `configs` entry of a set; explicit, or stray files would change what `load_dataset` reads."""
    return {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train-*"}]}


def _merge(kept: dict[str, Any], sets: Mapping[str, Facts], default: str | None) -> dict[str, Any]:
    """Return the owner's metadata with our configs replaced, sets that are gone removed, what is missing added."""
    before = _entries(kept.get("configs"))
    bare = [{key: value for key, value in entry.items() if key != "default"} for entry in before]
    names = [_name(entry) for entry in bare]
    ours = {*sets, *(name for name, entry in zip(names, bare, strict=True) if entry == _config(name))}
    order = [name for name in names if name in sets] + [name for name in sets if name not in names]
    configs = [entry for entry in bare if _name(entry) not in ours] + [_config(name) for name in order]
    infos = [info for info in _entries(kept.get("dataset_info")) if _name(info) not in ours]
    present = {_name(entry) for entry in configs}
    chosen = next(name for name in (default, _default(before), *order) if name in present)
    licences = [_recipe(facts).source.get("license") for facts in sets.values()]
    if kept.get("license") in licences and not _agreed(licences):
        kept = {key: value for key, value in kept.items() if key != "license"}  # inherited from some of the sets only
    tags: list[Any] = kept["tags"] if isinstance(kept.get("tags"), list) else []
    return {
        **{key: value for key, value in _facts_for_search(sets).items() if value is not None},
        **kept,
        "tags": [*tags, *(tag for tag in _TAGS if tag not in tags)],
        "configs": [{**entry, "default": True} if _name(entry) == chosen else entry for entry in configs],
        "dataset_info": [*infos, *(_dataset_info(name, sets[name]) for name in order)],
    }


def _facts_for_search(sets: Mapping[str, Facts]) -> dict[str, Any]:
    """Return the metadata that an owner may set otherwise. A licence is inherited if all sets agree, never guessed."""
    sources = [_recipe(facts).source for facts in sets.values()]
    names = sorted({source["name"] for source in sources if _REPO.fullmatch(str(source.get("name")))})
    largest = max(int(facts["num_rows"]) for facts in sets.values())
    size = next((label for limit, label in _SIZES if largest < limit), "n>1M")
    return {
        "license": _agreed([source.get("license") for source in sources]),
        "pretty_name": _title(sets),
        "annotations_creators": ["machine-generated"],
        "source_datasets": names or None,
        "task_categories": ["image-classification"],
        "size_categories": [size],
    }


def _agreed(values: list[Any]) -> Any:
    """Return the value if all are equal, else None."""
    return values[0] if all(value == values[0] for value in values) else None


def _dataset_info(name: str, facts: Facts) -> dict[str, Any]:
    """Return the `dataset_info` entry of a set, from the features that its Parquet file has."""
    try:
        features = datasets.Features.from_dict(facts["features"])
        rows, size = int(facts["num_rows"]), int(facts["parquet_bytes"])  # plain Parquet: as large in memory
        split = datasets.SplitInfo(name="train", num_bytes=size, num_examples=rows)
        splits = datasets.splits.SplitDict({"train": split})
        info = datasets.DatasetInfo(features=features, splits=splits, download_size=size, dataset_size=size)
        holder = DatasetCardData()
        DatasetInfosDict({name: info}).to_dataset_card_data(holder)
    except Exception as error:  # features of another writer: their parser documents no errors
        raise CondensedFormatError(f"{name}: features or sizes cannot be read: {error!s:.200}") from None
    entry: dict[str, Any] = holder["dataset_info"]
    return entry


def _block(sets: Mapping[str, Facts], shown: str, citations: Mapping[str, str]) -> str:
    """Return what stands between the markers; the snippets load the set `shown`."""
    recipes = {name: _recipe(facts) for name, facts in sets.items()}
    sections = [
        "Small sets of images that stand in for a large training set: learned images or chosen real ones, made by "
        "hf_condense. Train on them as on any labelled image dataset.",
        f"""## Load

```python
from datasets import load_dataset

ds = load_dataset("path/to/this", "{shown}", split="train")  # 8-bit images; needs nothing else
```

```python
from hf_condense import load_condensed

ds = load_condensed("path/to/this", "{shown}")  # a Dataset as well
ds.synthetic.images, ds.recipe  # exact float pixels, how they were made
```""",
        "## Sets\n\n" + _table(
            ("config", "method", "kind", "ipc", "classes", "images", "size", "from", "Parquet", "float tensors"),
            [_set_row(name, recipes[name], facts) for name, facts in sets.items()],
        ),
        "## How they were made\n\n" + _table(
            ("config", "seed", "updates", "preset", "network", "pixel range", "options"),
            [_recipe_row(name, recipe) for name, recipe in recipes.items()],
        ),
        _eight_bit(sets),
        _licence(recipes),
        _LIMITS,
    ]  # fmt: skip
    cited = [citations[method] for method in dict.fromkeys(r.method for r in recipes.values()) if method in citations]
    if cited:
        sections.append("## Citation\n\n" + "\n".join(f"- {line}" for line in cited))
    return "\n\n".join(section for section in sections if section)


def _set_row(name: str, recipe: Recipe, facts: Facts) -> tuple[object, ...]:
    """Return a row of the table of sets."""
    ipc = recipe.ipc
    counts = sorted({*ipc.values()}) if isinstance(ipc, dict) else [ipc]
    amount = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else counts[0]
    channels, height, width = recipe.image_shape
    decoded = f", each decoded into {recipe.factor**2}" if recipe.factor > 1 else ""
    return (
        name, recipe.method, recipe.kind, f"{amount}{decoded}", len(recipe.class_names), facts["num_rows"],
        f"{width}x{height} {'RGB' if channels == 3 else 'grey'}", recipe.source.get("name") or "not stated",
        f"{facts['parquet_bytes']:,} B", f"{facts['tensor_bytes']:,} B",
    )  # fmt: skip


def _recipe_row(name: str, recipe: Recipe) -> tuple[object, ...]:
    """Return a row of the table of recipes."""
    options = ", ".join(f"{key}={json.dumps(value)}" for key, value in recipe.options.items())
    steps = "none" if recipe.steps is None else recipe.steps
    return name, recipe.seed, steps, recipe.preset or "none", recipe.network, recipe.pixel_range, options or "none"


def _eight_bit(sets: Mapping[str, Facts]) -> str:
    """Say how far the 8-bit images are from the floats."""
    lines = [
        f"- {escape(name)}: {png['clipped_fraction']:.3%} of the values were clipped to [0, 1]; "
        f"the largest difference is {png['max_abs_error']:.4f}."
        for name, facts in sets.items() if (png := facts.get("png"))
    ]  # fmt: skip
    if not lines:
        return ""
    note = (
        "`load_dataset` gives 8-bit images. For the exact floats, and to repeat measured numbers, use `load_condensed`."
    )
    return "\n".join(["## 8-bit images", "", note, "", *lines])


def _licence(recipes: Mapping[str, Recipe]) -> str:
    """Say what is known of the licence; a set inherits the terms of its source."""
    known = {
        name: f"- {escape(name)}: {escape(recipe.source['license'])}" if recipe.source.get("license") else
        f"- {escape(name)}: the source states none; ask its owner before you share the set."
        for name, recipe in recipes.items()
    }  # fmt: skip
    return "\n".join(["## Licence", "", "A condensed set inherits the terms of its source.", "", *known.values()])


_LIMITS = """## Limits

- A set was made for the network and the image size in its recipe; others train less well on it.
- It stands in for training data only. Test on real images.
- It gives no guarantee of privacy: images may resemble those they were made from, and a coreset holds real ones.
- Biases and label errors of the source are carried over."""


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Write a markdown table; every cell is text."""
    lines = [head, ("---",) * len(head), *(tuple(map(escape, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(sets: Mapping[str, Facts]) -> str:
    """Return the title of a new card."""
    names = {str(name) for facts in sets.values() if (name := _recipe(facts).source.get("name"))}
    return f"{names.pop()}, condensed" if len(names) == 1 else "Condensed image sets"


def _recipe(facts: Facts) -> Recipe:
    """Return the recipe among the facts of a set."""
    return Recipe.from_dict(facts["recipe"])
