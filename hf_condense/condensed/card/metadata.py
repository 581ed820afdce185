"""The metadata of a card: what an owner wrote, with the entries of our sets and what search on the Hub needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.licences import licence_of
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import is_repository_name
from hf_condense.condensed.recipe import common
from hf_condense.condensed.wording import title

Entry = dict[str, Any]  # about one config, in `configs` or `dataset_info`

_YAML_BREAKS = re.compile("[\x85\u2028\u2029]")
_TAGS = ("dataset-condensation", "dataset-distillation", "hf_condense", "image")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def merge(
    existing: Mapping[str, Any],
    sets: Mapping[str, Facts],
    before: Mapping[str, Facts],
    earlier: set[str],
    default: str | None,
) -> dict[str, Any]:
    """Return an owner's metadata with the entries of our sets renewed and with what it lacks.

    Args:
        existing: Metadata of the existing card.
        sets: Config name to the facts of every set that is stored.
        before: The sets that the existing metadata was written for, as far as they are known.
        earlier: The sets that our part of the existing card lists. Those of them that are not in `sets` have been
            removed, so their entries go; a config that the owner added is never among them.
        default: Config that `load_dataset` takes without a name. None: the existing default, else the first set.
    """
    ours = {*sets, *earlier}
    configs, infos = entries(existing.get("configs")), entries(existing.get("dataset_info"))
    names = [config_of(entry) for entry in configs]
    order = [name for name in dict.fromkeys(names) if name in sets] + [name for name in sets if name not in names]
    merged = [
        *({key: value for key, value in entry.items() if key != "default"} for entry in _others(configs, ours)),
        *(_config(name, sets[name]) for name in order),
    ]
    return {
        **_search_facts(sets),
        **_without_inherited_licence(_without_facts_of(existing, before), sets),
        "tags": _tags(existing.get("tags")),
        "configs": _with_default(merged, (default, default_of(configs), *order)),
        "dataset_info": [*_others(infos, ours), *(_dataset_info(name, sets[name]) for name in order)],
    }


def entries(value: Any) -> list[Entry]:
    """Return a metadata field that holds one mapping or a list of them as a list."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def config_of(entry: Entry) -> str:
    """Return the config that an entry of the metadata is about."""
    return str(entry.get("config_name", "default"))


def default_of(configs: Sequence[Entry]) -> str | None:
    """Return the config that `load_dataset` takes without a name, or None.

    That is the config that is marked, else the one called `default`, else the only one.
    """
    marked = [config_of(entry) for entry in configs if entry.get("default") is True]
    names = [config_of(entry) for entry in configs]
    return next(iter([*marked, *(name for name in names if name == "default" or len(names) == 1)]), None)


def _others(all_entries: Iterable[Entry], ours: set[str]) -> Iterable[Entry]:
    """Return the entries that are about the owner's configs."""
    return (entry for entry in all_entries if config_of(entry) not in ours)


def _config(name: str, facts: Facts) -> Entry:
    """Return the `configs` entry of a set; explicit, or stray files would change what `load_dataset` reads."""
    splits = ("train", *facts.extra_splits)
    return {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in splits]}


def _with_default(configs: list[Entry], candidates: Iterable[str | None]) -> list[Entry]:
    """Return the configs with the first candidate that is among them marked as default."""
    names = {config_of(entry) for entry in configs}
    default = next(name for name in candidates if name in names)
    return [{**entry, "default": True} if config_of(entry) == default else entry for entry in configs]


def _without_facts_of(existing: Mapping[str, Any], sets: Mapping[str, Facts]) -> dict[str, Any]:
    """Return metadata without what was written for some sets: others may have joined them, or taken their place."""
    written = _search_facts(sets) if sets else {}
    return {key: value for key, value in existing.items() if value != written.get(key)}


def _without_inherited_licence(existing: Mapping[str, Any], sets: Mapping[str, Facts]) -> dict[str, Any]:
    """Return the owner's metadata without a licence that only some of the sets have inherited."""
    licences = [licence_of(facts.recipe) for facts in sets.values()]
    inherited = existing.get("license") in licences and common(licences) is None
    return {key: value for key, value in existing.items() if key != "license" or not inherited}


def _tags(existing: Any) -> list[Any]:
    tags = existing if isinstance(existing, list) else [existing] if existing else []
    return [*tags, *(tag for tag in _TAGS if tag not in tags)]


def _search_facts(sets: Mapping[str, Facts]) -> dict[str, Any]:
    """Return the metadata that an owner may replace. A licence is inherited if all sets agree, never guessed."""
    sources = [source for facts in sets.values() for source in facts.recipe.sources]
    names = {str(name) for source in sources if is_repository_name(name := source.get("name"))}
    largest = max(facts.num_rows + sum(rows for rows, _ in facts.extra_splits.values()) for facts in sets.values())
    values = {
        "license": common([licence_of(facts.recipe) for facts in sets.values()]),
        "pretty_name": title(sets.values()),
        "annotations_creators": ["machine-generated"],
        "source_datasets": sorted(names) or None,
        "task_categories": ["image-classification"],
        "size_categories": [next((label for limit, label in _SIZES if largest < limit), "n>1M")],
    }
    return {key: value for key, value in values.items() if value is not None}


def _dataset_info(name: str, facts: Facts) -> Entry:
    """Return the `dataset_info` entry of a set, from the features that its Parquet file has."""
    try:
        features = datasets.Features.from_dict(facts.features)
        # Plain Parquet takes as many bytes in memory as on disk.
        sizes = {"train": (facts.num_rows, facts.parquet_bytes), **facts.extra_splits}
        splits = datasets.splits.SplitDict(
            {
                split: datasets.SplitInfo(split, num_bytes=num_bytes, num_examples=rows)
                for split, (rows, num_bytes) in sizes.items()
            }
        )
        total = sum(num_bytes for _, num_bytes in sizes.values())
        info = datasets.DatasetInfo(features=features, splits=splits, download_size=total, dataset_size=total)
        card = DatasetCardData()
        DatasetInfosDict({name: info}).to_dataset_card_data(card)
    except Exception as error:  # features of another writer; their parser documents no errors
        raise CondensedFormatError(f"{name}: features or sizes cannot be read: {error!s:.200}") from None
    entry: Entry = card["dataset_info"]
    if _YAML_BREAKS.search(json.dumps(facts.features, ensure_ascii=False)):
        # YAML would turn these characters in a name into blanks. `datasets` reads the features from the Parquet files.
        del entry["features"]
    return entry
