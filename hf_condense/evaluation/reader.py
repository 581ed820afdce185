"""Reading the datasets of an evaluation: each one once, however often it is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import datasets
import torch

from hf_condense.condensed.recipe import Recipe
from hf_condense.source.class_source import ClassSource, load_source
from hf_condense.source.columns import find_image_column, find_label_column

_Key = tuple[str, str, str, tuple[int, ...] | None]  # fingerprint, image column, label column, (C, H, W)


@dataclass(frozen=True)
class Reader:
    """How datasets are read. It keeps what it has read, because hashing and decoding a large dataset takes long.

    Attributes:
        image_column: The caller's choice, or None.
        label_column: The caller's choice, or None.
        cache: Whether decoded images are cached on disk.
        progress: Whether progress bars are shown.
        device: Where tensors go.
    """

    image_column: str | None
    label_column: str | None
    cache: bool
    progress: bool
    device: torch.device
    _sources: dict[_Key, ClassSource] = field(default_factory=dict, init=False, repr=False)

    def columns(self, ds: datasets.Dataset, recipe: Recipe | None) -> tuple[str, str]:
        """Return the image and the label column: the caller's, else the recipe's if `ds` has it, else the only one.

        Raises:
            ValueError: If a column is missing or ambiguous.
        """
        image_column, label_column = self.image_column, self.label_column
        if recipe is not None:
            names = ds.column_names
            image_column = image_column or (recipe.image_column if recipe.image_column in names else None)
            label_column = label_column or (recipe.label_column if recipe.label_column in names else None)
        return find_image_column(ds, image_column), find_label_column(ds, label_column)

    def load(
        self, ds: datasets.Dataset, recipe: Recipe | None = None, shape: tuple[int, ...] | None = None
    ) -> ClassSource:
        """Return a dataset's images by class, on the device, in the normalisation of the dataset itself.

        Args:
            ds: The dataset, without formatting, as `check_dataset` returns it.
            recipe: How the evaluated set was made: its columns are looked for first.
            shape: (C, H, W) that the images are brought to; default: their own.
        """
        image_column, label_column = self.columns(ds, recipe)
        key = (ds._fingerprint, image_column, label_column, shape)
        if key not in self._sources:
            channels, size = (shape[0], (shape[1], shape[2])) if shape else (None, None)
            source = load_source(
                ds,
                image_column=image_column,
                label_column=label_column,
                image_size=size,
                channels=channels,
                cache=self.cache,
                progress=self.progress,
            ).to(self.device)
            # Images that are asked for in the shape that they have anyway are the same images.
            self._sources[key] = self._sources[(*key[:3], source.image_shape)] = source
        return self._sources[key]
