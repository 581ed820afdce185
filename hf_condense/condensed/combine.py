"""Several condensed sets in one: what was learned of one class or domain after another."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import pyarrow as pa
import torch
from datasets.table import InMemoryTable
from torch import Tensor

from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe, common
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.condensed.views import ViewLabels

logger = logging.getLogger("hf_condense")

_ALIKE = ("kind", "storage", "expand", "image_shape", "image_column", "label_column", "pixel_range", "store_dtype")


def combine_condensed(sets: Sequence[CondensedDataset]) -> CondensedDataset:
    """Return several condensed sets as one, for classes or domains that come one after the other.

    Learned images and labels stay as they are, and so do the rows of coresets. A learned learning rate stays if all
    parts have the same one; else networks are trained at the rate of their own recipe. The recipe of every part is in
    `recipe.parts` and on the card. Classes are matched by name; a class that several sets have gets the rows of all of
    them. New networks are trained with one normalisation, which is that of all sources together. A set that is given
    twice has its rows twice, and a warning says so.

    Args:
        sets: Two or more sets of one kind and one storage form, with equal image shapes and columns.

    Returns:
        The set `combined_ipc{n}`. It carries the sources of its parts, one after the other, if all are known and have
        the same features, apart from the names of a `ClassLabel`.

    Raises:
        TypeError: If something else than condensed sets is given.
        ValueError: If there are fewer than two sets, or if they do not go together. The message says what differs.
            Whitened sets, and sets with soft labels, go together only if they share the whitening, or all classes.

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.testing import toy_dataset
        >>> pets = condense_dataset(toy_dataset(("cat", "dog")), "random", 1, label_column="label", progress=False)
        >>> fish = condense_dataset(toy_dataset(("eel", "cod")), "random", 2, label_column="label", progress=False)
        >>> both = combine_condensed([pets, fish])
        >>> both.recipe.config_name, both["label"][:4]
        ('combined_ipc1-2', ['cat', 'dog', 'cod', 'eel'])
    """
    if isinstance(sets, (CondensedDataset, str)) or not isinstance(sets, Iterable):
        raise TypeError(f"sets should be a list of condensed sets; got {type(sets).__name__}")
    return _combined(list(sets))


@plain_torch()
def _combined(sets: list[CondensedDataset]) -> CondensedDataset:
    """Check several sets and return them as one."""
    _check(sets)
    _warn_of_repeats(sets)
    names, values, label = _classes(sets)
    labels = [torch.tensor([names.index(name) for name in s.recipe.class_names])[s.synthetic.labels] for s in sets]
    order = torch.cat(labels).argsort(stable=True)
    recipe = _combined_recipe(sets, names, values)
    if recipe.kind == "coreset":
        numbers = [row for s in sets for row in s.recipe.rows or ()]
        recipe = dataclasses.replace(recipe, rows=[numbers[i] for i in order.tolist()])
    tensors = _combined_tensors(sets, labels, order, recipe)
    if recipe.kind == "coreset":
        rows = _combined_rows(sets, tensors.labels, order, recipe, label)
    else:
        features = datasets.Features(
            {n: f for n, f in sets[0].features.items() if n in (recipe.image_column, recipe.label_column)}
        )
        rows = decoded_rows(tensors, recipe, datasets.Features({**features, recipe.label_column: label}))
    return CondensedDataset.from_parts(rows, tensors, recipe, _combined_source(sets, label))


def _check(sets: list[CondensedDataset]) -> None:
    """Raise unless the sets go together."""
    for s in sets:
        if not isinstance(s, CondensedDataset):
            raise TypeError(f"sets should be condensed sets; got {type(s).__name__}")
    if len(sets) < 2:
        raise ValueError(f"combining takes two condensed sets or more; got {len(sets)}")
    for name in _ALIKE:
        _check_equal(name, [getattr(s.recipe, name) for s in sets])
    for name in ("zca_matrix", "zca_mean"):
        tensors = [getattr(s.synthetic, name) for s in sets]
        if any(
            (t is None) != (tensors[0] is None) or (t is not None and not torch.equal(t, tensors[0])) for t in tensors
        ):
            raise ValueError(f"{name} should be equal in all sets, because networks see whitened images; it differs")
    _check_equal("label_views", [s.recipe.label_views for s in sets])
    _check_equal("label_top", [s.recipe.label_top for s in sets])
    has_soft = [s.synthetic.has_soft_labels for s in sets]
    _check_equal("the soft labels", has_soft)
    if has_soft[0]:
        _check_equal("the temperature of the soft labels", [s.recipe.temperature for s in sets])
        _check_equal("class_names (the order of the soft labels)", [s.recipe.class_names for s in sets])


def _warn_of_repeats(sets: list[CondensedDataset]) -> None:
    """Warn of sets that are equal, because their rows say nothing new."""
    for (i, first), (j, second) in itertools.combinations(enumerate(sets, 1), 2):
        if first.recipe.class_names == second.recipe.class_names and first.synthetic.equals(second.synthetic):
            logger.warning("sets %d and %d are equal, so the combined set has the same rows twice", i, j)


def _check_equal(what: str, values: list[Any]) -> None:
    """Raise `ValueError` unless all values are equal; of dicts, the message shows the entries that differ."""
    for i, value in enumerate(values):
        if value != values[0]:
            first, other = _without_equal(values[0], value)
            raise ValueError(
                f"{what} should be equal in all sets; got {first!r:.200} in set 1 and {other!r:.200} in set {i + 1}"
            )


def _without_equal(first: Any, other: Any) -> tuple[Any, Any]:
    """Return two values, and of two dicts only the entries that differ."""
    if not (isinstance(first, dict) and isinstance(other, dict)):
        return first, other
    equal = {key for key in first.keys() & other.keys() if first[key] == other[key]}
    return tuple({key: value for key, value in d.items() if key not in equal} for d in (first, other))  # type: ignore[return-value]


def _classes(sets: list[CondensedDataset]) -> tuple[list[str], list[Any], Any]:
    """Return the names of all classes, their label values, and the feature of the label column."""
    column = sets[0].recipe.label_column
    features = [s.features[column] for s in sets]
    names = list(dict.fromkeys(name for s in sets for name in s.recipe.class_names))
    if all(isinstance(feature, datasets.ClassLabel) for feature in features):
        return names, list(range(len(names))), datasets.ClassLabel(names=names)
    _check_equal(f"the feature of the column {column!r}", features)
    values: dict[str, Any] = {}
    for s in sets:
        for name, value in zip(s.recipe.class_names, s.recipe.label_values, strict=True):
            if values.setdefault(name, value) != value:
                raise ValueError(f"class {name!r} has the label {values[name]!r} in one set and {value!r} in another")
    return names, list(values.values()), features[0]


def _combined_tensors(
    sets: list[CondensedDataset], labels: list[Tensor], order: Tensor, recipe: Recipe
) -> CondensedTensors:
    """Return the tensors of all sets, sorted by class."""
    first = sets[0].synthetic
    per_entry = first.decoder.rows_per_entry
    rows = (order[:, None] * per_entry + torch.arange(per_entry)).flatten()
    soft_labels = [s.synthetic.soft_labels for s in sets if s.synthetic.soft_labels is not None]
    view_labels = [s.synthetic.view_labels for s in sets if s.synthetic.view_labels is not None]
    return CondensedTensors(
        stored=first.decoder.combine([s.synthetic.stored for s in sets], labels),
        labels=torch.cat(labels)[order],
        decoder=recipe.tensor_decoder,
        soft_labels=torch.cat(soft_labels)[rows] if soft_labels else None,
        view_labels=ViewLabels.joined(view_labels).part(rows) if view_labels else None,
        student_lr=common([s.synthetic.student_lr for s in sets]),
        zca_matrix=first.zca_matrix,
        zca_mean=first.zca_mean,
    )


def _combined_rows(
    sets: list[CondensedDataset], labels: Tensor, order: Tensor, recipe: Recipe, label: Any
) -> datasets.Dataset:
    """Return the real rows of several coresets, with every column, interleaved by class."""
    tables, places, start = [], [], 0
    columns = list(sets[0].parts.rows.features)  # another set may have them in another order
    features = [{**s.parts.rows.features, recipe.label_column: label} for s in sets]
    _check_equal("the features of the columns", features)
    schema = datasets.Features({column: features[0][column] for column in columns}).arrow_schema
    for s in sets:
        rows = s.parts.rows.with_format("arrow")
        own = round_robin(s.synthetic.labels.tolist())
        places.append(start + torch.tensor(own).argsort())  # row of every entry
        start += len(own)
        value_of = dict(zip(recipe.class_names, recipe.label_values, strict=True))
        new_value = dict(zip(s.recipe.label_values, map(value_of.__getitem__, s.recipe.class_names), strict=True))
        table = rows[:].select(columns)
        values = [new_value[value] for value in table[recipe.label_column].to_pylist()]
        kind = schema.field(recipe.label_column)
        table = table.set_column(table.schema.get_field_index(recipe.label_column), kind, pa.array(values, kind.type))
        tables.append(table.replace_schema_metadata(schema.metadata))
    positions = torch.cat(places)[order][round_robin(labels.tolist())]
    return datasets.Dataset(InMemoryTable(pa.concat_tables(tables).take(positions.numpy()).combine_chunks()))


def _combined_recipe(sets: list[CondensedDataset], names: list[str], values: list[Any]) -> Recipe:
    """Return a recipe that holds those of all parts; what they have in common stands in it as well."""
    parts = [part for s in sets for part in _parts_of(s)]
    recipes = [recipe for s in sets for recipe in s.recipe.part_recipes]
    first = recipes[0]
    ipc: Counter[str] = Counter()
    for part in parts:
        ipc.update(part["ipc"])
    mean, std = _pooled(recipes)
    return dataclasses.replace(
        first,
        method="combined",
        method_version=1,
        ipc={name: ipc[name] for name in names if name in ipc},
        steps=None if first.steps is None else sum(recipe.steps or 0 for recipe in recipes),
        preset=common([recipe.preset for recipe in recipes]),
        network=" + ".join(dict.fromkeys(recipe.network for recipe in recipes)),
        options={
            name: value
            for name, value in first.options.items()
            if all(name in recipe.options and recipe.options[name] == value for recipe in recipes)
        },
        augment=common([recipe.augment for recipe in recipes]),
        class_names=names,
        label_values=values,
        image_size=common([recipe.image_size for recipe in recipes]),
        mean=mean,
        std=std,
        source=_source_facts(recipes),
        citation=None,
        teacher=None,
        plan={},
        runtime={"seconds": round(sum(map(_seconds, recipes)), 1)},
        created_at=max(recipe.created_at for recipe in recipes),
        evaluation=[],
        nearest=None,
        parts=parts,
        extra={},
    )


def _parts_of(s: CondensedDataset) -> list[dict[str, Any]]:
    """Return what a set brings: itself, or its own parts."""
    if s.recipe.parts is not None:
        return s.recipe.parts
    present = [s.recipe.class_names[c] for c in s.synthetic.labels.unique().tolist()]
    ipc = {name: s.recipe.budget(name) for name in present}
    rate = s.synthetic.student_lr
    return [{"recipe": s.recipe.to_dict(), "ipc": ipc, "student_lr": None if rate is None else float(rate)}]


def _seconds(recipe: Recipe) -> float:
    """Return how long a set took to make; 0 if that is not known."""
    value = recipe.runtime.get("seconds")
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _distinct(recipes: list[Recipe]) -> list[Recipe]:
    """Return the first recipe of every source."""
    sources = [recipe.source for recipe in recipes]
    return [recipe for i, recipe in enumerate(recipes) if sources.index(recipe.source) == i]


def _pooled(recipes: list[Recipe]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation, per channel, of the pixels of all sources together.

    If the size of one is not known, all count alike.
    """
    if all((recipe.mean, recipe.std) == (recipes[0].mean, recipes[0].std) for recipe in recipes):
        return recipes[0].mean, recipes[0].std
    recipes = _distinct(recipes)
    sizes = [recipe.source.get("num_examples") for recipe in recipes]
    is_known = all(isinstance(size, int) and size > 0 for size in sizes)
    weight = torch.tensor(sizes if is_known else [1] * len(sizes), dtype=torch.float64)  # (sources,)
    weight = weight / weight.sum()
    means, stds = (torch.tensor([getattr(r, name) for r in recipes], dtype=torch.float64) for name in ("mean", "std"))
    mean = weight @ means  # (C,)
    std = (weight @ (stds.square() + means.square()) - mean.square()).sqrt()
    return mean.tolist(), std.tolist()


def _source_facts(recipes: list[Recipe]) -> dict[str, Any]:
    """Return what the sources have in common, and how many images they have together."""
    sources = [recipe.source for recipe in _distinct(recipes)]
    if len(sources) == 1:
        return sources[0]
    counts = [source.get("num_examples") for source in sources]
    facts = {name: common([source.get(name) for source in sources]) for name in sources[0]}
    return {**facts, "num_examples": sum(counts) if all(isinstance(n, int) for n in counts) else None}


def _combined_source(sets: list[CondensedDataset], label: Any) -> datasets.Dataset | None:
    """Return the sources one after the other, each once, with the labels of the feature `label`.

    None if one is not known, or if their features then differ.

    Two are the same if they have the same images, or, for sets of different image sizes, the same rows. None also if
    two sets were combined before of sources of which they share some: these cannot be taken out.
    """
    sources: list[datasets.Dataset] = []
    known: set[str] = set()
    for s in sorted(sets, key=lambda s: -len(s.recipe.sources)):  # what was combined may hold the source of another
        if s.source is None:
            return None
        source = _with_label(s.source.with_format(None), s.recipe.label_column, label)
        if sources and source.features != sources[0].features:
            return None
        hashes = {facts["content_hash"] for facts in s.recipe.sources if facts.get("content_hash")}
        if s.source._fingerprint not in known and not (hashes and hashes <= known):
            if hashes & known:
                return None
            sources.append(source)
        known |= {s.source._fingerprint, *hashes}
    return datasets.concatenate_datasets(sources)


def _with_label(source: datasets.Dataset, column: str, label: Any) -> datasets.Dataset:
    """Return a dataset whose labels are those of another `ClassLabel` that has all of its names."""
    own = source.features[column]
    if own == label or not isinstance(own, datasets.ClassLabel):
        return source
    index = {i: label.str2int(name) for i, name in enumerate(own.names)}
    labels = [index.get(value, value) for value in source[column]]
    order = source.column_names
    return source.remove_columns(column).add_column(column, labels, feature=label).select_columns(order)
