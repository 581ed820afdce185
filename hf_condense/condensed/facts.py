"""What `condense_config.json` holds, and the names of the files of a set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.untrusted import (
    FORMAT,
    MAX_JSON_BYTES,
    check_version,
    parse_json,
    read_bytes,
)

TENSORS, FACTS = "condensed.safetensors", "condense_config.json"


def write_facts(facts: dict[str, Any]) -> bytes:
    """Return the content of `condense_config.json`.

    Raises:
        ValueError: If it is longer than readers take.
    """
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    written = f"{{\n{lines}\n}}\n".encode()
    if len(written) > MAX_JSON_BYTES:
        raise ValueError(
            f"{FACTS} would have {len(written):,} bytes; readers take {MAX_JSON_BYTES:,}: shorten the recipe"
        )
    return written


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what the `condense_config.json` of a set holds, its recipe checked.

    Raises:
        CondensedFormatError: If it is missing, damaged or of a newer format.
    """
    where = str(folder / FACTS)
    facts = parse_json(read_bytes(folder / FACTS, MAX_JSON_BYTES), where)
    if facts.get("format") != FORMAT:
        raise CondensedFormatError(f"{where}: format should be {FORMAT!r}; got {facts.get('format')!r:.40}")
    check_version(facts.get("format_version"), where)
    for key in ("recipe", "features", "sha256"):
        if not isinstance(facts.get(key), dict):
            raise CondensedFormatError(f"{where}: {key} should be an object; got {facts.get(key)!r:.40}")
    try:
        Recipe.from_dict(facts["recipe"])
    except CondensedFormatError as error:
        raise CondensedFormatError(f"{where}: {error}") from None
    return facts


PARQUET = "train-00000-of-00001.parquet"


Facts = Mapping[str, Any]  # what condense_config.json holds


PREVIEW = "preview.png"


def read_recipe(facts: Facts) -> Recipe:
    """Return the recipe among the facts of a set."""
    return Recipe.from_dict(facts["recipe"])


README = "README.md"


MAX_README_BYTES = 1 << 20


EXTRA_SPLITS = "extra_splits"  # key in condense_config.json


_NAME = re.compile(r"\w{1,64}(\.\w{1,64})*")


def extra_splits(facts: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the number of rows and of bytes of each split beside the condensed one.

    Args:
        facts: What `condense_config.json` holds; nothing is trusted.

    Raises:
        CondensedFormatError: If a name is none of a split, or a number is not one.
    """
    described = facts.get(EXTRA_SPLITS, {})
    if not isinstance(described, dict):
        raise CondensedFormatError(f"{EXTRA_SPLITS} should be an object; got {described!r:.40}")
    for name, sizes in described.items():
        numbers = [sizes.get(key) for key in ("num_rows", "num_bytes")] if isinstance(sizes, dict) else [None]
        if not is_split(name) or any(type(n) is not int or n < 0 for n in numbers):
            raise CondensedFormatError(
                f"{EXTRA_SPLITS}: {name!r:.80} is no split with num_rows, num_bytes: {sizes!r:.80}"
            )
    return {name: (sizes["num_rows"], sizes["num_bytes"]) for name, sizes in described.items()}


def shard_split(file: str) -> str | None:
    """Return the split that a file `{split}-00000-of-00001.parquet` is part of, or None for any other file."""
    match = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.parquet", file)
    return match[1] if match else None


def is_split(name: object) -> bool:
    """Tell whether a name may be that of a split beside the condensed one."""
    return isinstance(name, str) and name != "train" and _NAME.fullmatch(name) is not None
