"""What a set takes, counted in full: numbers, bytes of its files, and what of the bytes is what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hf_condense.condensed.files.facts import Facts
from hf_condense.condensed.files.untrusted import ITEM_BYTES
from hf_condense.condensed.rows import SOFT_LABEL_COLUMN
from hf_condense.condensed.views import CROP_NUMBERS

_INTEGERS = ("I32", "I64")  # types of what a storage form keeps apart from its numbers
_LABEL_BYTES = 8
# For a view, the number and the class of each logit that is stored, and the numbers of its crop, in 16 bits each.
_LOGIT_BYTES, _CROP_BYTES = 4, 2 * CROP_NUMBERS


@dataclass(frozen=True)
class Sizes:
    """What a set takes.

    Attributes:
        budget: Numbers that its classes may store: images per class x channels x height x width, summed over classes.
        stored: Numbers that they store: those that were learned, or the pixels of a coreset.
        stored_bytes: Bytes of these numbers.
        integer_bytes: Bytes of the labels and of the integers of the storage form, such as positions.
        soft_label_bytes: Bytes of soft labels, 0 without them.
        whitening_bytes: Bytes of the matrix and the mean of the whitening, 0 without it.
        tensor_bytes: Bytes of the safetensors file: all of these, its header, and a learned rate.
        parquet_bytes: Bytes of the Parquet file, which holds decoded rows.
        rows: Number of these rows.
        source_bytes: Bytes of the source's pixels, 8 bits per channel, at the size of the set; 0 if unknown.
    """

    budget: int
    stored: int
    stored_bytes: int
    integer_bytes: int
    soft_label_bytes: int
    whitening_bytes: int
    tensor_bytes: int
    parquet_bytes: int
    rows: int
    source_bytes: int

    @classmethod
    def of(cls, facts: Facts) -> Sizes:
        """Return what a set takes, by what its `condense_config.json` says.

        Raises:
            CondensedFormatError: If a size is no count.
            ValueError: If the tensors of such a set do not fit into a file of the stated size.
        """
        recipe, decoder, rows = facts.recipe, facts.recipe.decoder, facts.num_rows
        pixels, entries = math.prod(recipe.image_shape), rows // decoder.rows_per_entry
        classes = recipe.number_of_classes(entries)
        images = sum(recipe.ipc.values()) if isinstance(recipe.ipc, dict) else classes * recipe.ipc
        layout = [(kind, math.prod(shape)) for kind, shape in decoder.layout(entries, classes).values()]
        stored = sum(amount for kind, amount in layout if kind not in _INTEGERS)
        integers = sum(ITEM_BYTES[kind] * amount for kind, amount in layout if kind in _INTEGERS)
        source_images = recipe.source.get("num_examples")
        sizes = cls(
            budget=images * pixels,
            stored=stored,
            stored_bytes=stored * getattr(torch, recipe.store_dtype).itemsize,
            integer_bytes=integers + _LABEL_BYTES * entries,
            soft_label_bytes=_soft_label_bytes(facts),
            whitening_bytes=4 * pixels * (pixels + 1) if facts.is_whitened else 0,
            tensor_bytes=facts.tensor_bytes,
            parquet_bytes=facts.parquet_bytes,
            rows=rows,
            source_bytes=source_images * pixels if isinstance(source_images, int) else 0,
        )
        if sizes.header_bytes < 0:
            raise ValueError(
                f"tensor_bytes should be at least {facts.tensor_bytes - sizes.header_bytes:,}, which the tensors take; "
                f"got {facts.tensor_bytes:,}"
            )
        return sizes

    @property
    def header_bytes(self) -> int:
        """Bytes of the header of the safetensors file, with those of a learned rate."""
        tensors = self.stored_bytes + self.integer_bytes + self.soft_label_bytes + self.whitening_bytes
        return self.tensor_bytes - tensors

    def share_of_source(self, size: int) -> str:
        """Return how many bytes these are and, if they are fewer, which fraction of the source's pixels."""
        if not self.source_bytes > size > 0:
            return f"{size:,} B"
        times = self.source_bytes / size
        return f"{size:,} B (1/{times:,.{0 if times >= 10 else 1}f})"


def _soft_label_bytes(facts: Facts) -> int:
    """Return the bytes of the soft labels of a set, 0 without them."""
    recipe, rows = facts.recipe, facts.num_rows
    if recipe.label_views is not None and recipe.label_top is not None:
        return rows * recipe.label_views * (_LOGIT_BYTES * recipe.label_top + _CROP_BYTES)
    added = facts.features.keys() - {recipe.image_column, recipe.label_column}
    return 4 * rows * len(recipe.class_names) if recipe.kind != "coreset" and SOFT_LABEL_COLUMN in added else 0
