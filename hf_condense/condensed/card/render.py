"""The dataset card: facts in, text out. Nothing here touches a disk or a network."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.markdown import escape
from hf_condense.condensed.card.metadata import Entry, config_of, default_of, entries, merge
from hf_condense.condensed.card.sections import block
from hf_condense.condensed.card.template import END, NEW_CARD, START, fill
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.names import MAX_README_BYTES
from hf_condense.condensed.wording import title

_BLOCK = re.compile(f"{START}(?:(?!{START}).)*?{END}", re.DOTALL)
# A row of a table of sets, but not its head. `escape` may have written an underscore by its number.
_ROW = re.compile(r"^\| ((?:[\w.-]|&#95;)+) \|.*$(?!\n\| ?-)", re.MULTILINE)
_MAX_ENTRIES = 30_000  # lines and commas of the metadata; the YAML parser takes up to 0.3 ms for each
_BREAKS = "\n,\x85\u2028\u2029"
# Where a value may begin. Inside a name, as in "rock &roll", the signs mean nothing.
_ANCHOR, _ALIAS = (re.compile(rf"(?:^|[\[{{,:?-]|!\S*)\s*{mark}[^\s,\[\]{{}}]", re.MULTILINE) for mark in (r"&", r"\*"))
_LONG_NUMBER = re.compile(r"[0-9_:]{1000}")  # to be read in base 60, it takes time that grows with its square


def render(
    sets: Mapping[str, Facts],
    existing: str | None = None,
    *,
    before: Mapping[str, Facts] | None = None,
    default: str | None = None,
    license: str | None = None,
    place: str = "path/to/this",
    pictures: str = "",
) -> str:
    """Return the text of README.md for a folder or repository of condensed sets.

    An existing card keeps its text and metadata: only the block between the two markers, the `configs` and
    `dataset_info` of our sets, and what the metadata lacks are written. Comments in the metadata and empty values are
    not kept.

    Args:
        sets: Config name to the facts of a set, at least one.
        existing: Text of the existing README.md, or None.
        before: The sets that it was written for, as far as they are known. Default: none.
        default: Config that `load_dataset` takes without a name. None: the existing card's, else the first set.
        license: Licence of the whole. None: the existing card's, else that of the sources if they agree.
        place: Repository or folder that the snippets load from.
        pictures: What stands before the folder of a set in the addresses of pictures, if the card is not beside it.

    Raises:
        CondensedFormatError: If the existing metadata or the facts of a set cannot be read, or the card would be too
            large to be read.
    """
    sets = dict(sorted(sets.items()))
    metadata, body = _split(existing) if existing else ({}, fill(NEW_CARD, {"title": escape(title(sets.values()))}))
    if not _BLOCK.search(body):
        body = f"{body.rstrip()}\n\n{START}{END}\n"
    earlier = {html.unescape(name) for text in _BLOCK.findall(body) for name in _ROW.findall(text)}
    try:
        metadata = merge(metadata, sets, before or {}, earlier, default)
        if license is not None:
            metadata["license"] = license
        main_set = default_of(metadata["configs"])
        text = block(
            sets,
            main_set if main_set in sets else next(iter(sets)),
            place=place,
            licence=metadata.get("license"),
            pictures=pictures,
        )
    except (KeyError, TypeError, ValueError) as error:
        names = ", ".join(sets)
        raise CondensedFormatError(f"the facts of {names} cannot be shown on a card: {error!s:.200}") from None
    body = _BLOCK.sub(lambda _: f"{START}\n\n{text}\n\n{END}", body, count=1)
    card = _joined(metadata, body)
    if _refusal(card):
        # The names of very many classes, or names that look like something else. Without features in the card,
        # `datasets` reads them from the Parquet files.
        metadata["dataset_info"] = [_without_features(entry, sets) for entry in metadata["dataset_info"]]
        card = _joined(metadata, body)
    if refusal := _refusal(card):
        raise CondensedFormatError(f"README.md would have {refusal}; shorten its text or its metadata")
    return card


def _joined(metadata: Mapping[str, Any], body: str) -> str:
    return f"---\n{DatasetCardData(**metadata).to_yaml()}\n---\n{body}"


def _without_features(entry: Entry, sets: Mapping[str, Facts]) -> Entry:
    """Return an entry of `dataset_info` without features, if it is about one of our sets."""
    return {key: value for key, value in entry.items() if key != "features" or config_of(entry) not in sets}


def _refusal(card: str) -> str | None:
    """Return why a card would not be read again, or None if it is."""
    size = len(card.encode())
    if size > MAX_README_BYTES:
        return f"{size:,} bytes; at most {MAX_README_BYTES:,} are read"
    return _refusal_of_metadata(card)


def _refusal_of_metadata(card: str) -> str | None:
    """Return why the metadata of a card is not given to the YAML parser, or None if it is."""
    match = REGEX_YAML_BLOCK.search(card)
    front = match[2] if match else ""  # all that the parser sees
    if _LONG_NUMBER.search(front):
        return "metadata with 1,000 digits or more in a row, which is no number"
    if sum(map(card.replace("\r", "\n").rpartition("\n---")[0].count, _BREAKS)) > _MAX_ENTRIES:
        return f"metadata of more than {_MAX_ENTRIES:,} lines and commas"
    if _ANCHOR.search(front) and _ALIAS.search(front):
        return "metadata with YAML aliases (&name, *name), of which a few lines may unfold without end"
    return None


def default_config(card: str | None) -> str | None:
    """Return the config that `load_dataset` takes without a name, or None if the card, if any, determines none.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return default_of(entries(_metadata(card).get("configs")))


def stated_licence(card: str | None) -> Any:
    """Return what the metadata of a card, if there is one, says under `license`, or None.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return _metadata(card).get("license")


def config_names(card: str | None) -> list[str]:
    """Return the configs that a card lists, whoever wrote them; none if there is no card.

    Raises:
        CondensedFormatError: If the card's metadata cannot be read.
    """
    return [config_of(entry) for entry in entries(_metadata(card).get("configs"))]


def check_card(card: str, where: str) -> None:
    """Raise `CondensedFormatError` if the metadata of a card cannot be read; messages name the place."""
    _split(card, where)


def _metadata(card: str | None) -> dict[str, Any]:
    return {} if card is None else _split(card)[0]


def _split(card: str, where: str = "README.md") -> tuple[dict[str, Any], str]:
    """Split a card into its metadata and its text."""
    if not card.lstrip().startswith("---"):
        return {}, card
    if refusal := _refusal_of_metadata(card):
        raise CondensedFormatError(f"{where}: {refusal}, is not read")
    try:
        parsed = DatasetCard(card)
        metadata: dict[str, Any] = parsed.data.to_dict()
    except Exception as error:  # the YAML parser's errors share no class with those of the card, and it recurses
        reason = f"the metadata between the --- lines cannot be read: {error!s:.200}"
        raise CondensedFormatError(f"{where}: {reason}") from None
    return metadata, parsed.text
