"""The finished set: tensors, storage forms, recipe, files, card, Hub. It knows nothing of how a set was made."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset as CondensedDataset


def __getattr__(name: str) -> Any:
    """Hand on the class, which pickles of earlier versions look for here."""
    if name != "CondensedDataset":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("hf_condense.condensed.dataset").CondensedDataset
