"""Features by which coreset methods compare rows: a trained network's embeddings, pixels, or a column of the user's."""

from __future__ import annotations

from torch import Tensor

from hf_condense.run import Run


def features_of(run: Run, kind: str, updates: int) -> Tensor:
    """x"""
    return run.column(kind)
