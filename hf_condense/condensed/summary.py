"""How a set was made and what it takes, as facts by name: for the command line and for pages."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hf_condense.base.words import plural
from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.sizes import Sizes
from hf_condense.condensed.tensors import CondensedTensors


def summary(name: str, stored: Facts, tensors: CondensedTensors) -> dict[str, str]:
    """Return how a set was made and what it takes, one fact for each name; facts that are not known are left out.

    Args:
        name: Name of the set where it lies.
        stored: What its `condense_config.json` says.
        tensors: Its exact tensors.
    """
    recipe = stored.recipe
    channels, height, width = recipe.image_shape
    facts = {
        "set": f"{name}: {stored.num_rows} rows, columns {', '.join(stored.features)}",
        "method": f"{recipe.method} ({recipe.kind}), version {recipe.method_version}",
        "classes": f"{len(recipe.class_names)}: {', '.join(recipe.class_names)}",
        "images per class": recipe.ipc_text,
        "image": f"{channels} x {height} x {width} (channels, height, width)",
        "storage": f"{recipe.storage}, {recipe.expand} {plural(recipe.expand, 'row')} for each image of the budget",
        **_sizes(stored, tensors),
        "pixel range": recipe.pixel_range,
        "parts": " + ".join(part.config_name for part in recipe.part_recipes) if recipe.parts else None,
        "network": recipe.network,
        "steps": recipe.steps,
        "seed": None if recipe.parts else recipe.seed,  # each part has its own
        "preset": recipe.preset,
        "teacher": recipe.teacher_text,
        "options": ", ".join(f"{name}={value}" for name, value in recipe.options.items()),
        "source": ", ".join(f"{name} {value}" for name, value in recipe.source.items() if value is not None),
        "created": recipe.created_at,
        "runtime": ", ".join(f"{name} {value}" for name, value in recipe.runtime.items()),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _sizes(stored: Facts, tensors: CondensedTensors) -> dict[str, str]:
    """Return how many numbers and bytes a set takes, and what of it is what."""
    sizes, recipe = Sizes.of(stored), stored.recipe
    layout = tensors.decoder.layout(1, 1)
    floats = {name: tensor for name, tensor in tensors.stored.items() if layout[name][0] == "F32"}
    integers = {name: tensor for name, tensor in tensors.stored.items() if name not in floats}
    pixels = f"{sizes.source_bytes:,} B" if sizes.source_bytes else ""
    rows = f"{sizes.rows:,} {'real' if recipe.kind == 'coreset' else 'decoded'} rows of 8-bit images"
    return {
        "float budget": f"{sizes.budget:,}",
        "stored floats": f"{sizes.stored:,} {recipe.store_dtype}, {_bytes_and_shapes(floats)}",
        "integers": _bytes_and_shapes({**integers, "labels": tensors.labels}),
        "other tensors": _bytes_and_shapes(tensors.optional()),
        "tensor file": f"{sizes.share_of_source(sizes.tensor_bytes)}: all of these and a header, exact",
        "Parquet file": f"{sizes.share_of_source(sizes.parquet_bytes)}: {rows}",
        "source pixels": pixels,
    }


def _bytes_and_shapes(tensors: Mapping[str, Tensor]) -> str:
    """Return how many bytes some tensors take, with their names and shapes; nothing if there are none."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    shapes = (f"{name} {' x '.join(map(str, tensor.shape)) or 1}" for name, tensor in tensors.items())
    return f"{size:,} B: {', '.join(shapes)}" if tensors else ""
