"""Reading the datasets of an evaluation: each one once, however often it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import datasets
import torch

from hf_condense.condensed.recipe import Recipe
from hf_condense.source.class_source import ClassSource
from hf_condense.source.columns import find_image_column, find_label_column
from hf_condense.source.load import load_source

_Shape = tuple[int | None, int, int]  # (C, H, W), where C is None if the pictures say it
_Key = tuple[str, str, str, _Shape | None]  # fingerprint, image column, label column, shape


@dataclass(frozen=True)
class Reader:
    """How datasets are read. It keeps what it has read, because hashing and decoding a large dataset takes long.

    Attributes:
        image_column: The caller's choice, or None.
        label_column: The caller's choice, or None.
        cache: Whether decoded images are cached on disk.
        progress: Whether progress bars are shown.
        device: Where tensors go.
        has_options: Whether the caller could choose columns; else no message offers it.
    """

    image_column: str | None
    label_column: str | None
    cache: bool
    progress: bool
    device: torch.device
    has_options: bool = True
    _sources: dict[_Key, ClassSource] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of_set(cls, *, cache: bool, progress: bool) -> Reader:
        """Return what reads the source of a set, whose recipe names the columns, for pictures of both."""
        return cls(None, None, cache, progress, torch.device("cpu"), has_options=False)

    def check_columns(self, by_role: Mapping[str, datasets.Dataset | None]) -> None:
        """Refuse a column of the caller's that no dataset has.

        Args:
            by_role: The datasets that are read, by the name of the argument that they were passed as; None: none was.

        Raises:
            TypeError: If its name is no text.
            ValueError: If no dataset has it.
        """
        columns = {role: ds.column_names for role, ds in by_role.items() if ds is not None}
        for option, name in (("image_column", self.image_column), ("label_column", self.label_column)):
            if name is None:
                continue
            if not isinstance(name, str):
                raise TypeError(f"{option} should be the name of a column; got {name!r} ({type(name).__name__})")
            if not any(name in names for names in columns.values()):
                listed = "; ".join(f"{role} has {', '.join(map(repr, names))}" for role, names in columns.items())
                raise ValueError(f"{option}={name!r} is not a column of {' or '.join(columns)}; {listed}")

    def columns(self, ds: datasets.Dataset, what: str, recipe: Recipe | None = None) -> tuple[str, str]:
        """Return the image and the label column of a dataset: each the caller's, the recipe's or the only one.

        The caller's counts if the dataset has it, else the recipe's if the dataset has it.

        Args:
            ds: The dataset.
            what: The name of the argument that it was passed as, for messages.
            recipe: How the evaluated set was made, or None.

        Raises:
            ValueError: If a column is missing or ambiguous.
        """
        recorded = (None, None) if recipe is None else (recipe.image_column, recipe.label_column)
        given = (self.image_column, self.label_column)
        columns = []
        for find, *names in zip((find_image_column, find_label_column), given, recorded, strict=True):
            name = next((name for name in names if name in ds.column_names), None)
            try:
                columns.append(find(ds, name))
            except ValueError as error:
                absent = names[0] if name is None else None
                hint = f"; it has no column {absent!r} either: rename one of its columns" if absent else ""
                reason = str(error)
                absent_own = name is None and names[-1]
                if not self.has_options:
                    reason = reason.partition("; pass ")[0]
                    hint = f"; call the one that is meant {names[-1]!r}, as the set does" if absent_own else ""
                raise ValueError(f"{what}: {reason}{hint}") from None
        return columns[0], columns[1]

    def load(
        self,
        ds: datasets.Dataset,
        what: str,
        recipe: Recipe | None = None,
        shape: _Shape | None = None,
        *,
        streams: bool = False,
    ) -> ClassSource:
        """Return a dataset's images by class, on the device, in the normalisation of the dataset itself.

        Args:
            ds: The dataset, without formatting, as `check_dataset` returns it.
            what: The name of the argument that it was passed as, for messages.
            recipe: How the evaluated set was made: its columns are looked for first.
            shape: (C, H, W) that the images are brought to, where C is None if the pictures say it; default: their own.
            streams: Whether large pictures may be decoded when they are asked for.

        Raises:
            ValueError: If a column is missing or ambiguous, or a picture or label is damaged.
        """
        image_column, label_column = self.columns(ds, what, recipe)
        key = (ds._fingerprint, image_column, label_column, shape)
        if key not in self._sources:
            channels, size = (shape[0], (shape[1], shape[2])) if shape else (None, None)
            with naming(what):
                source = load_source(
                    ds,
                    image_column=image_column,
                    label_column=label_column,
                    image_size=size,
                    channels=channels,
                    cache=self.cache,
                    progress=self.progress,
                    streams=streams,
                ).to(self.device)
            # Images that are asked for in the shape that they have anyway are the same images.
            self._sources[key] = self._sources[(*key[:3], source.image_shape)] = source
        return self._sources[key]


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Start the messages of errors in a block with the name of the argument that a dataset was passed as."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
