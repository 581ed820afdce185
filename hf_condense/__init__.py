"""Dataset condensation for the Hugging Face ecosystem: a large labelled image dataset in, a tiny synthetic one out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_condense._version import __version__

if TYPE_CHECKING:
    from hf_condense.api import condense_dataset
    from hf_condense.base.errors import CondensedFormatError, NonFiniteLossError, RunInterrupted
    from hf_condense.condensed.combine import combine_condensed
    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.loading import list_condensed, load_condensed
    from hf_condense.condensed.removal import remove_condensed
    from hf_condense.condensed.scores import Evaluation
    from hf_condense.condensed.training_views import TrainingViews
    from hf_condense.engine.method import Composer, Loss, Method, MethodInfo, Preset, Selector
    from hf_condense.engine.options import MethodConfig, option
    from hf_condense.engine.registry import get_method, list_methods, register_method, unregister_method
    from hf_condense.engine.run import Run
    from hf_condense.evaluation.evaluate import evaluate
    from hf_condense.evaluation.ranking import RankingScores, dd_ranking
    from hf_condense.networks.factory import list_networks
    from hf_condense.networks.teachers import Teacher
    from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe
    from hf_condense.web_page import write_page

# Public name -> module; imported when first asked for, so that `import hf_condense` stays quick. No module at the top
# may bear a public name: importing it would put the module in the place of the function.
_HOME = {
    "condense_dataset": "api",
    "CondensedDataset": "condensed.dataset",
    "CondensedFormatError": "base.errors",
    "NonFiniteLossError": "base.errors",
    "RunInterrupted": "base.errors",
    "Evaluation": "condensed.scores",
    "combine_condensed": "condensed.combine",
    "evaluate": "evaluation.evaluate",
    "RankingScores": "evaluation.ranking",
    "dd_ranking": "evaluation.ranking",
    "list_condensed": "condensed.loading",
    "load_condensed": "condensed.loading",
    "remove_condensed": "condensed.removal",
    "write_page": "web_page",
    "TrainingViews": "condensed.training_views",
    "Composer": "engine.method",
    "Loss": "engine.method",
    "Method": "engine.method",
    "MethodConfig": "engine.options",
    "MethodInfo": "engine.method",
    "Preset": "engine.method",
    "Selector": "engine.method",
    "option": "engine.options",
    "list_methods": "engine.registry",
    "register_method": "engine.registry",
    "get_method": "engine.registry",
    "unregister_method": "engine.registry",
    "list_networks": "networks.factory",
    "Teacher": "networks.teachers",
    "RECIPES": "networks.training_recipe",
    "TrainingRecipe": "networks.training_recipe",
    "Run": "engine.run",
}

__all__ = [
    "RECIPES",
    "Composer",
    "CondensedDataset",
    "CondensedFormatError",
    "Evaluation",
    "Loss",
    "Method",
    "MethodConfig",
    "MethodInfo",
    "NonFiniteLossError",
    "Preset",
    "RankingScores",
    "Run",
    "RunInterrupted",
    "Selector",
    "Teacher",
    "TrainingRecipe",
    "TrainingViews",
    "__version__",
    "combine_condensed",
    "condense_dataset",
    "dd_ranking",
    "evaluate",
    "get_method",
    "list_condensed",
    "list_methods",
    "list_networks",
    "load_condensed",
    "option",
    "register_method",
    "remove_condensed",
    "unregister_method",
    "write_page",
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
