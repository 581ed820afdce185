"""Dataset condensation for the Hugging Face ecosystem: a large labelled image dataset in, a tiny synthetic one out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_condense._version import __version__

if TYPE_CHECKING:
    from hf_condense.api import condense_dataset
    from hf_condense.condensed import CondensedDataset
    from hf_condense.errors import CondensedFormatError, NonFiniteLossError
    from hf_condense.evaluating import Evaluation, evaluate
    from hf_condense.hub import list_condensed
    from hf_condense.method import Method, MethodConfig, MethodInfo, Selector
    from hf_condense.registry import list_methods, register_method
    from hf_condense.storage import load_condensed

# Public name -> module; imported when first asked for, so that `import hf_condense` stays quick. No module may bear a
# public name: importing it would put the module in the place of the function.
_HOME = {
    "condense_dataset": "api",
    "CondensedDataset": "condensed",
    "CondensedFormatError": "errors",
    "NonFiniteLossError": "errors",
    "Evaluation": "evaluating",
    "evaluate": "evaluating",
    "list_condensed": "hub",
    "Method": "method",
    "MethodConfig": "method",
    "MethodInfo": "method",
    "Selector": "method",
    "list_methods": "registry",
    "register_method": "registry",
    "load_condensed": "storage",
}

__all__ = [
    "CondensedDataset",
    "CondensedFormatError",
    "Evaluation",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "NonFiniteLossError",
    "Selector",
    "__version__",
    "condense_dataset",
    "evaluate",
    "list_condensed",
    "list_methods",
    "load_condensed",
    "register_method",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'hf_condense' has no attribute {name!r}")
    value = getattr(import_module(f"hf_condense.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
