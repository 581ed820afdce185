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
    recipe, tensors = small.recipe, small.synthetic
    floats = sum(tensor.numel() for tensor in tensors.stored.values())
    channels, height, width = recipe.image_shape
    facts = {
        "set": f"{recipe.config_name}: {len(small)} rows, columns {', '.join(small.column_names)}",
        "method": f"{recipe.method} ({recipe.kind}), version {recipe.method_version}",
        "classes": f"{len(recipe.class_names)}: {', '.join(recipe.class_names)}",
        "images per class": recipe.ipc,
        "image": f"{channels} x {height} x {width} (channels, height, width)",
        "storage": f"{recipe.storage}, {recipe.expand} row{'s'[: recipe.expand > 1]} for each image of the budget",
        "stored floats": f"{floats:,}: {_shapes(tensors.stored)}",
        "other tensors": _shapes(tensors.optional()),
        "tensor file": f"{stored.tensor_bytes:,} bytes, exact",
        "Parquet file": f"{stored.parquet_bytes:,} bytes, 8-bit images",
        "pixel range": recipe.pixel_range,
        "network": recipe.network,
        "steps": recipe.steps,
        "seed": recipe.seed,
        "preset": recipe.preset,
        "options": ", ".join(f"{name}={value}" for name, value in recipe.options.items()),
        "source": ", ".join(f"{name} {value}" for name, value in recipe.source.items() if value is not None),
        "created": recipe.created_at,
        "runtime": ", ".join(f"{name} {value}" for name, value in recipe.runtime.items()),
    }
    return plain_table([(name, str(value)) for name, value in facts.items() if value not in (None, "")])


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    """Return the names and shapes of some tensors."""
    return ", ".join(f"{name} {' x '.join(map(str, tensor.shape)) or 1}" for name, tensor in tensors.items())


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
