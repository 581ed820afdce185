"""The dataset card: facts in, text out. Nothing here touches a disk or a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.licences import licence_of
from hf_condense.condensed.card.markdown import escape
from hf_condense.condensed.card.sections import block, title
from hf_condense.condensed.facts import Facts, extra_splits, read_recipe

START, END = "<!-- hf_condense:start -->", "<!-- hf_condense:end -->"
_BLOCK = re.compile(f"{START}(?:(?!{START}).)*?{END}", re.DOTALL)
_ROW = re.compile(r"^\| ([\w.-]+) \|", re.MULTILINE)  # of a table of sets
_TAGS = ("dataset-condensation", "dataset-distillation", "hf_condense", "image")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MAX_ENTRIES = 30_000  # lines and commas of the metadata: the YAML parser takes up to 0.3 ms for each
_BREAKS = "\n,\x85\u2028\u2029"
_ANCHOR = re.compile(r"(?:^|[\s\[{,:-])&\S")


def render(
    sets: Mapping[str, Facts],
    existing: str | None = None,
    *,
    default: str | None = None,
    license: str | None = None,
    place: str = "path/to/this",
    pictures: str = "",
) -> str:
    """Return the text of README.md for a folder or repository of condensed sets.

    An existing card keeps its text and metadata: only the block between the two markers, the `configs` and
    `dataset_info` of our sets, and what the metadata lacks are written.

    Args:
        sets: Config name to the facts of its `condense_config.json`, at least one. `extra_splits` among them, by split
            `num_rows` and `num_bytes`, are splits `{config}/{split}-*` beside the condensed one.
        existing: Text of the README.md that is there, or None.
        default: Config that `load_dataset` takes without a name. None: the existing card's, else the first set.
        license: Licence of the whole. None: the existing card's, else that of the sources if they agree.
        place: Repository or folder that the snippets load from.
        pictures: What stands before the folder of a set in the addresses of pictures, if the card is not beside it.

    Raises:
        CondensedFormatError: If the existing metadata or the facts of a set cannot be read.
    """
    sets = dict(sorted(sets.items()))
    metadata, body = _split(existing) if existing else ({}, f"\n# {escape(title(sets))}\n\n{START}{END}\n")
    if not _BLOCK.search(body):
        body = f"{body.rstrip()}\n\n{START}{END}\n"
    listed = {name for told in _BLOCK.findall(body) for name in _ROW.findall(told)}
    merged = _merge(metadata, sets, listed, default)
    if license is not None:
        merged["license"] = license
    shown = _default(merged["configs"])
    told = _told(
        sets,
        shown if shown in sets else next(iter(sets)),
        place=place,
        licence=merged.get("license"),
        pictures=pictures,
    )
    body = _BLOCK.sub(lambda _: f"{START}\n\n{told}\n\n{END}", body, count=1)
    return f"---\n{DatasetCardData(**merged).to_yaml()}\n---\n{body}"


def default_config(card: str) -> str | None:
    """Return the config that a card marks as default, or None.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return _default(_entries(_split(card)[0].get("configs")))


def stated_licence(card: str) -> Any:
    """Return what the metadata of a card says under `license`, or None.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return _split(card)[0].get("license")


def config_names(card: str) -> list[str]:
    """Return the configs that a card lists, whoever wrote them.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return [_name(entry) for entry in _entries(_split(card)[0].get("configs"))]


def _told(sets: Mapping[str, Facts], shown: str, **known: Any) -> str:
    """Return what stands between the markers."""
    try:
        return block(sets, shown, **known)
    except (KeyError, TypeError, ValueError) as error:
        raise CondensedFormatError(f"the facts of {', '.join(sets)} cannot be told on a card: {error!r:.200}") from None


def _split(card: str) -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text."""
    if not card.lstrip().startswith("---"):
        return {}, card
    if ("<<" in card or "merge" in card) and _ANCHOR.search(card):
        raise CondensedFormatError(
            "README.md: merges (<<) of YAML anchors are not read: few lines may unfold without end"
        )
    written = card.replace("\r", "\n").rpartition("\n---")[0]  # all that can be metadata
    if sum(map(written.count, _BREAKS)) > _MAX_ENTRIES:
        raise CondensedFormatError(f"README.md: metadata of more than {_MAX_ENTRIES:,} lines and commas")
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
    """Return the config that `load_dataset` takes without a name: the one that is marked, or `default`, or the only."""
    marked = [_name(entry) for entry in configs if entry.get("default") is True]
    names = [_name(entry) for entry in configs]
    return next(iter([*marked, *(name for name in names if name == "default" or len(names) == 1)]), None)


def _name(entry: dict[str, Any]) -> str:
    """Return the config that an entry of the metadata is about."""
    return str(entry.get("config_name", "default"))


def _config(name: str, facts: Facts) -> dict[str, Any]:
    """Return the `configs` entry of a set; explicit, or stray files would change what `load_dataset` reads."""
    splits = ("train", *extra_splits(facts))
    return {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in splits]}


def _merge(kept: dict[str, Any], sets: Mapping[str, Facts], listed: set[str], default: str | None) -> dict[str, Any]:
    """Return the owner's metadata with our configs replaced, what is missing added, and sets that are gone removed.

    Those that are gone are among the sets `listed` by the existing card; a config of the owner's never is.
    """
    before = _entries(kept.get("configs"))
    bare = [{key: value for key, value in entry.items() if key != "default"} for entry in before]
    names = [_name(entry) for entry in bare]
    ours = {*sets, *listed}
    order = [name for name in dict.fromkeys(names) if name in sets] + [name for name in sets if name not in names]
    configs = [entry for entry in bare if _name(entry) not in ours] + [_config(name, sets[name]) for name in order]
    infos = [info for info in _entries(kept.get("dataset_info")) if _name(info) not in ours]
    present = {_name(entry) for entry in configs}
    chosen = next(name for name in (default, _default(before), *order) if name in present)
    licences = [licence_of(read_recipe(facts)) for facts in sets.values()]
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
    sources = [read_recipe(facts).source for facts in sets.values()]
    names = sorted({source["name"] for source in sources if _REPO.fullmatch(str(source.get("name")))})
    beside = {name: sum(rows for rows, _ in extra_splits(facts).values()) for name, facts in sets.items()}
    largest = max(int(facts["num_rows"]) + beside[name] for name, facts in sets.items())
    size = next((label for limit, label in _SIZES if largest < limit), "n>1M")
    return {
        "license": _agreed([licence_of(read_recipe(facts)) for facts in sets.values()]),
        "pretty_name": title(sets),
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
        sizes = {"train": (rows, size), **extra_splits(facts)}
        splits = datasets.splits.SplitDict(
            {split: datasets.SplitInfo(split, num_bytes=b, num_examples=n) for split, (n, b) in sizes.items()}
        )
        total = sum(b for _, b in sizes.values())
        info = datasets.DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total)
        holder = DatasetCardData()
        DatasetInfosDict({name: info}).to_dataset_card_data(holder)
    except Exception as error:  # features of another writer: their parser documents no errors
        raise CondensedFormatError(f"{name}: features or sizes cannot be read: {error!s:.200}") from None
    entry: dict[str, Any] = holder["dataset_info"]
    return entry
