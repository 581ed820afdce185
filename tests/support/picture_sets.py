"""Datasets made of single pictures, for tests of odd input."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures

from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source


def encoded(picture: Pictures.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture, or an array of pixels, as the bytes of a file."""
    if isinstance(picture, np.ndarray):
        picture = Pictures.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def picture_set(
    cells: Sequence[bytes | dict[str, Any] | None],
    labels: Sequence[Any] | None = None,
    *,
    image: Any = None,
    label: Any = None,
) -> Dataset:
    """Return a dataset of encoded pictures; labels default to class 0 of "a" and "b"."""
    rows = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    features = Features({"image": image or Image(), "label": label or ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": rows, "label": labels or [0] * len(rows)}, features=features)


def read(ds: Dataset, **options: Any) -> ClassSource:
    """Load a source without cache and progress bar."""
    return load_source(ds, **{"cache": False, "progress": False, **options})


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Return uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
