"""What the `condense_config.json` of a set says."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_condense.base.checks import listed
from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.files.names import FACTS, PREVIEW, TENSORS, is_split
from hf_condense.condensed.files.untrusted import (
    FORMAT,
    MAX_JSON_BYTES,
    check_amount,
    check_version,
    parse_json,
    read_bytes,
)
from hf_condense.condensed.recipe import Recipe, common

logger = logging.getLogger("hf_condense")

EXTRA_SPLITS, WHITENED = "extra_splits", "whitened"  # keys in condense_config.json that not every set has

# These fields of a recipe may differ although the set is the same: it was made again, measured since, or written by an
# earlier version, which did not yet say what follows from the method and its options.
_PROVENANCE = frozenset({"created_at", "runtime", "evaluation", "nearest", "augment", "citation"})
_PLACE = frozenset({"name", "revision", "config", "split"})  # where a source was found, whatever it holds


class EightBitError(NamedTuple):
    """How far the 8-bit images of a set are from its floats.

    Attributes:
        clipped_fraction: Fraction of the values outside [0, 1].
        max_abs_error: Largest difference, in pixel units.
    """

    clipped_fraction: float
    max_abs_error: float


@dataclass(frozen=True)
class Facts:
    """What the `condense_config.json` of a set says, its recipe parsed.

    `from_values` checks what every reader needs. The other values are checked when they are asked for, so that a set
    still loads if only something that its card shows is damaged; each then raises `CondensedFormatError`.

    Attributes:
        recipe: How the set was made.
        values: Everything that the file holds, as JSON values; keys that this version does not know are kept.
    """

    recipe: Recipe
    values: Mapping[str, Any]

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = FACTS) -> Facts:
        """Check the values of a file and parse its recipe; nothing is trusted.

        Args:
            values: JSON values.
            where: Name of the file, for messages.

        Raises:
            CondensedFormatError: If the values are damaged, foreign or of a newer format.
        """
        if values.get("format") != FORMAT:
            raise CondensedFormatError(f"{where}: format should be {FORMAT!r}; got {values.get('format')!r:.40}")
        check_version(values.get("format_version"), where)
        for key in ("recipe", "features", "sha256"):
            if not isinstance(values.get(key), dict):
                raise CondensedFormatError(f"{where}: {key} should be an object; got {values.get(key)!r:.40}")
        try:
            recipe = Recipe.from_dict(values["recipe"])
        except CondensedFormatError as error:
            raise CondensedFormatError(f"{where}: {error}") from None
        if values["format_version"] != (version := recipe.format_version):
            raise CondensedFormatError(
                f"{where}: storage {recipe.storage!r} in {recipe.store_dtype} has format_version {version!r}; "
                f"got {values['format_version']!r}"
            )
        return cls(recipe, values)

    def to_bytes(self) -> bytes:
        """Return the content of `condense_config.json`.

        Raises:
            ValueError: If it is longer than readers accept.
        """
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in self.values.items())
        content = f"{{\n{lines}\n}}\n".encode()
        check_size(content, FACTS)
        return content

    @property
    def features(self) -> dict[str, Any]:
        """The features of the rows, as `datasets.Features.to_dict` describes them."""
        features: dict[str, Any] = self.values["features"]
        return features

    @property
    def sha256(self) -> dict[str, Any]:
        """The hash of the Parquet and of the safetensors file, by file name."""
        hashes: dict[str, Any] = self.values["sha256"]
        return hashes

    @property
    def num_rows(self) -> int:
        """The number of rows of the condensed split."""
        return self._count("num_rows")

    @property
    def num_classes(self) -> int:
        """The number of classes that have rows."""
        return self.recipe.number_of_classes(self.num_rows // self.recipe.decoder.rows_per_entry)

    @property
    def parquet_bytes(self) -> int:
        """The size of the Parquet file."""
        return self._count("parquet_bytes")

    @property
    def tensor_bytes(self) -> int:
        """The size of the safetensors file."""
        return self._count("tensor_bytes")

    @property
    def has_preview(self) -> bool:
        """Whether a picture of the set stands beside it; sets of earlier versions have none."""
        return self.values.get("preview") == PREVIEW

    @property
    def is_whitened(self) -> bool:
        """Whether networks see whitened images in place of normalised ones: the set has a `zca_matrix`."""
        # The files of earlier versions do not say so; their sets were whitened by an option of this name only.
        return self.values.get(WHITENED, self.recipe.options.get("zca")) is True

    @property
    def eight_bit_error(self) -> EightBitError | None:
        """How far the 8-bit images are from the floats; None for a coreset, whose images are 8-bit."""
        error = self.values.get("png")
        if not error:
            return None
        numbers = [error.get(name) for name in EightBitError._fields] if isinstance(error, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise CondensedFormatError(f"png should hold {' and '.join(EightBitError._fields)}; got {error!r:.80}")
        return EightBitError(*numbers)

    @property
    def extra_splits(self) -> dict[str, tuple[int, int]]:
        """The number of rows and of bytes of each split that is published beside the condensed one."""
        splits = self.values.get(EXTRA_SPLITS, {})
        if not isinstance(splits, dict):
            raise CondensedFormatError(f"{EXTRA_SPLITS} should be an object; got {splits!r:.40}")
        for name, sizes in splits.items():
            numbers = [sizes.get(key) for key in ("num_rows", "num_bytes")] if isinstance(sizes, dict) else [None]
            if not is_split(name) or not all(map(_is_count, numbers)):
                raise CondensedFormatError(
                    f"{EXTRA_SPLITS} should hold num_rows and num_bytes by name of a split; got {name!r:.80}: "
                    f"{sizes!r:.80}"
                )
        return {name: (sizes["num_rows"], sizes["num_bytes"]) for name, sizes in splits.items()}

    def with_extra_splits(self, sizes: Mapping[str, Mapping[str, int]]) -> Facts:
        """Return the facts of the same set with other splits beside it.

        Args:
            sizes: `num_rows` and `num_bytes` of every split, by its name; none removes the key.
        """
        values = {key: value for key, value in self.values.items() if key != EXTRA_SPLITS}
        return dataclasses.replace(self, values={**values, EXTRA_SPLITS: sizes} if sizes else values)

    def difference(self, other: Facts) -> str | None:
        """Return in words what this set is in comparison with another one, or None if they are the same set."""
        recipes = self.recipe, other.recipe
        # The same images may come from another commit of their repository, in which only its card was changed.
        by_content = all(source.get("content_hash") for recipe in recipes for source in recipe.sources)
        first, second = (_identity(recipe, by_content) for recipe in recipes)
        names = sorted(first.keys() | second.keys())
        if fields := [name for name in names if first.get(name) != second.get(name)]:
            if fields == ["plan"]:
                return (
                    "a set of the same recipe, but computed in other parts (plan differs), as for another max_memory,"
                )
            return f"another recipe ({', '.join(fields)} {'differ' if len(fields) > 1 else 'differs'})"
        same = self.sha256.get(TENSORS) == other.sha256.get(TENSORS)
        return None if same else "other tensors of the same recipe"

    def with_extra_splits_of(self, other: Facts | None, name: str) -> Facts:
        """Return these facts with the splits beside the set that they replace, or warn if its columns are others.

        Args:
            other: Facts of that set, or None if there is none.
            name: Name of the set, for the warning.
        """
        if other is None or not other.extra_splits:
            return self
        if other.features != self.features:
            logger.warning(
                "the splits %s beside %r lack the columns of the new set and are removed; pass extra_splits= to "
                "push_to_hub to publish them again",
                listed(other.extra_splits, quoted=False),
                name,
            )
            return self
        return self.with_extra_splits({split: other.values[EXTRA_SPLITS][split] for split in other.extra_splits})

    def with_accuracies_of(self, other: Facts | None) -> Facts:
        """Return these facts with the accuracies of the same set, if it was measured and this one was not."""
        if other is None or self.recipe.evaluation or not other.recipe.evaluation or self.difference(other) is not None:
            return self
        recipe = dataclasses.replace(self.recipe, evaluation=other.recipe.evaluation)
        return Facts(recipe, {**self.values, "recipe": recipe.to_dict()})

    def with_licences_of(self, other: Facts | None) -> Facts:
        """Return these facts with the licences of the sources of the same set, where these ones lack them."""
        if other is None or all(s.get("license") for s in self.recipe.sources) or self.difference(other) is not None:
            return self
        recipe = with_licences(self.recipe, _licences(other.recipe))
        recipe = dataclasses.replace(recipe, source=_licensed(recipe.source, other.recipe.source.get("license")))
        return self if recipe == self.recipe else Facts(recipe, {**self.values, "recipe": recipe.to_dict()})

    def repeats(self, other: Facts) -> bool:
        """Return whether the other facts say the same, but for the times of making and measuring the set."""
        first, second = ({**facts.values, "recipe": facts.recipe.without_times().to_dict()} for facts in (self, other))
        return first == second

    def _count(self, key: str) -> int:
        value: Any = self.values.get(key)
        if not _is_count(value):
            raise CondensedFormatError(f"{key} should be an integer of at least 0; got {value!r:.40}")
        count: int = value
        return count


def check_size(content: bytes, what: str) -> None:
    """Raise `ValueError` if JSON text is larger than readers accept.

    Args:
        content: The text.
        what: What it is, for the message.
    """
    try:
        check_amount(content)
    except ValueError as error:
        advice = "shorten the class names, the label values or the options, or choose fewer rows"
        raise ValueError(f"{what} would have {error}: {advice}") from None


def read_facts(folder: Path) -> Facts:
    """Return what the `condense_config.json` in the folder of a set says.

    Raises:
        CondensedFormatError: If it is missing, damaged, foreign or of a newer format.
    """
    where = str(folder / FACTS)
    return Facts.from_values(parse_json(read_bytes(folder / FACTS, MAX_JSON_BYTES), where), where)


class Sets(NamedTuple):
    """The sets of a folder or repository.

    Attributes:
        facts: The facts of those that can be read, by name.
        damaged: Why the other ones cannot be read, by name.
    """

    facts: dict[str, Facts]
    damaged: dict[str, str]


def read_sets(names: Iterable[str], folder_of: Callable[[str], Path]) -> Sets:
    """Read the facts of sets.

    Args:
        names: The sets.
        folder_of: Returns the folder of a set, whose `condense_config.json` is there if the set has one.
    """
    sets = Sets({}, {})
    for name in names:
        try:
            sets.facts[name] = read_facts(folder_of(name))
        except CondensedFormatError as error:
            sets.damaged[name] = str(error)
    return sets


def refuse_damaged(where: str, damaged: Mapping[str, str], new: str) -> None:
    """Raise if a folder or repository has sets that a new card could not describe.

    Args:
        where: The folder or repository, for the message.
        damaged: Why sets in it cannot be read, by name.
        new: Name of the set that is stored there.

    Raises:
        CondensedFormatError: If there are such sets; the message says what to do.
    """
    if damaged:
        advice = "remove them by remove_condensed (in a terminal hf-condense remove)"
        if new in damaged:
            advice += f", or replace {new!r} with overwrite=True"
        raise CondensedFormatError(
            f"{where} has sets that cannot be read, and its card describes all sets; nothing was changed: restore "
            f"their files, {advice}: {_reasons(damaged)}"
        )


def kept_sets(where: str, sets: Sets, instead: str) -> dict[str, Facts]:
    """Return the sets that the card of a folder or repository describes once another set is removed.

    Args:
        where: The folder or repository, for messages.
        sets: The sets that stay. Those that are damaged leave the card, with a warning.
        instead: What to do if all are damaged, for the message.

    Raises:
        CondensedFormatError: If all are damaged.
    """
    if sets.damaged and not sets.facts:
        raise CondensedFormatError(
            f"none of the other sets in {where} can be read, and a card needs one; nothing was changed: restore their "
            f"files, or {instead}. {_reasons(sets.damaged)}"
        )
    if sets.damaged:
        logger.warning(
            "the new card of %s leaves out sets that cannot be read; restore their files, or remove these sets as "
            "well: %s",
            where,
            _reasons(sets.damaged),
        )
    return sets.facts


def _reasons(damaged: Mapping[str, str]) -> str:
    return "; ".join(damaged.values())


def refuse_replacing(place: str, name: str, old: Facts | None, new: Facts, *, occupied: bool, advice: str) -> None:
    """Raise unless the same set, or nothing, is stored under a name.

    Args:
        place: Folder or repository of sets.
        name: Name of the set there.
        old: Facts of the set that is stored under the name, or None if there is no set.
        new: Facts of the set that is about to be written.
        occupied: Whether something that is no set is stored under the name.
        advice: What the caller can do, for the message.

    Raises:
        FileExistsError: If another set, or something else, is stored there.
    """
    reason = "something else" if occupied else None
    if old is not None:
        reason = old.difference(new)
    if reason:
        raise FileExistsError(f"{place} already holds {reason} under the name {name!r}; {advice}")


def with_licences(recipe: Recipe, licences: Sequence[Any]) -> Recipe:
    """Return a recipe whose sources have the licences that they lack.

    Args:
        recipe: The recipe.
        licences: The licence, or None, of the source of every part of a combined set, else of the only source.
    """
    if recipe.parts is None:
        return dataclasses.replace(recipe, source=_licensed(recipe.source, licences[0]))
    parts = []
    for part, licence in zip(recipe.parts, licences, strict=True):
        source = _licensed(part["recipe"]["source"], licence)
        parts.append({**part, "recipe": {**part["recipe"], "source": source}})
    shared = common([part["recipe"]["source"].get("license") for part in parts])
    return dataclasses.replace(recipe, parts=parts, source=_licensed(recipe.source, shared))


def _licensed(source: dict[str, Any], licence: Any) -> dict[str, Any]:
    """Return the facts about a source with a licence, if they have none and there is one."""
    return {**source, "license": licence} if licence and not source.get("license") else source


def _licences(recipe: Recipe) -> list[Any]:
    """Return the licence of the source, or of the source of every part."""
    return [own.source.get("license") for own in recipe.part_recipes]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _identity(recipe: Recipe, by_content: bool) -> dict[str, Any]:
    """Return what a recipe says of a set that the same set always has.

    The licence of the source is not part of it, because it may become known after the set was made.

    Args:
        recipe: The recipe.
        by_content: Whether sources are told apart by what they hold, wherever they were found.
    """
    values = {name: value for name, value in recipe.to_dict().items() if name not in _PROVENANCE}
    left_out = {"license", *(_PLACE if by_content else ())}
    values["source"] = {key: value for key, value in recipe.source.items() if key not in left_out}
    if recipe.parts is not None:
        values["parts"] = [
            {**part, "recipe": _identity(own, by_content)}
            for part, own in zip(recipe.parts, recipe.part_recipes, strict=True)
        ]
    return values
