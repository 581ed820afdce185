"""What the command line prints: tables and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_condense.base.tables import plain_table

if TYPE_CHECKING:
    from torch import Tensor

    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.facts import Facts
    from hf_condense.engine.method import MethodInfo


def facts_table(small: CondensedDataset, stored: Facts) -> str:
    """Return how a set was made and what it takes, one fact in a line.

    Args:
        small: The set.
        stored: What its `condense_config.json` says.
    """
    recipe = small.recipe
    channels, height, width = recipe.image_shape
    facts = {
        "set": f"{recipe.config_name}: {len(small)} rows, columns {', '.join(small.column_names)}",
        "method": f"{recipe.method} ({recipe.kind}), version {recipe.method_version}",
        "classes": f"{len(recipe.class_names)}: {', '.join(recipe.class_names)}",
        "images per class": recipe.ipc,
        "image": f"{channels} x {height} x {width} (channels, height, width)",
        "storage": f"{recipe.storage}, {recipe.expand} row{'s'[: recipe.expand > 1]} for each image of the budget",
        **_sizes(small, stored),
        "pixel range": recipe.pixel_range,
        "parts": " + ".join(part.config_name for part in recipe.part_recipes) if recipe.parts else None,
        "network": recipe.network,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "preset": recipe.preset,
        "teacher": recipe.teacher_text,
        "options": ", ".join(f"{name}={value}" for name, value in recipe.options.items()),
        "source": ", ".join(f"{name} {value}" for name, value in recipe.source.items() if value is not None),
        "created": recipe.created_at,
        "runtime": ", ".join(f"{name} {value}" for name, value in recipe.runtime.items()),
    }
    return plain_table([(name, str(value)) for name, value in facts.items() if value not in (None, "")])


def _sizes(small: CondensedDataset, stored: Facts) -> dict[str, str]:
    """Return how many numbers and bytes a set takes, and what of it is what."""
    from hf_condense.condensed.sizes import Sizes

    sizes, tensors = Sizes.of(stored), small.synthetic
    layout = tensors.decoder.layout(1, 1)
    floats = {name: tensor for name, tensor in tensors.stored.items() if layout[name][0] == "F32"}
    integers = {name: tensor for name, tensor in tensors.stored.items() if name not in floats}
    pixels = f"{sizes.source_bytes:,} B" if sizes.source_bytes else ""
    rows = f"{sizes.rows:,} {'real' if small.recipe.kind == 'coreset' else 'decoded'} rows of 8-bit images"
    return {
        "float budget": f"{sizes.budget:,}",
        "stored floats": f"{sizes.stored:,} {small.recipe.store_dtype}, {_bytes_and_shapes(floats)}",
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


def method_text(info: MethodInfo) -> str:
    """Return the description of one method: summary, paper, cost, options, presets."""
    import dataclasses

    from hf_condense.engine.registry import get_method

    cls = get_method(info.name)
    lines = [
        f"{info.name}: {info.title}",
        info.summary,
        "",
        f'{info.authors}, "{info.paper}", {info.venue} {info.year}',
        info.link,
        f"Cost: {info.cost}",
    ]
    fields = [(f"  {f.name}={f.default}", f.metadata.get("help", "")) for f in dataclasses.fields(cls.Config)]
    presets = [(f"  {name}", preset.description) for name, preset in cls.presets.items()]
    for title, rows in (("Options (--option NAME=VALUE):", fields), ("Presets (--preset NAME):", presets)):
        if rows:
            lines += ["", title, plain_table(rows)]
    return "\n".join(lines)
