"""What a caller asks of an evaluation, checked as far as that needs no data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import datasets
from torch import nn

from hf_condense.base.checks import integer, one_of
from hf_condense.base.devices import CompileOption
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.engine.registry import list_methods
from hf_condense.networks.factory import NetworkSpec, check_network
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe


@dataclass(frozen=True)
class Request:
    """What a caller asks of an evaluation.

    Attributes:
        networks: The kinds of networks.
        training: How networks are trained.
        keeps_flips: Whether networks are trained with flips even if the set was made without them.
        max_updates: Cap on the updates of a network, or None.
        network_seeds: Seed of every network.
        baselines: Names of the baselines, each once.
        compile: Whether to compile the networks.
        seed: Seed of every draw, beside the networks' own.
    """

    networks: tuple[NetworkSpec, ...]
    training: TrainingRecipe
    keeps_flips: bool
    max_updates: int | None
    network_seeds: list[int]
    baselines: list[str]
    compile: CompileOption
    seed: int

    @classmethod
    def check(
        cls,
        *,
        networks: NetworkSpec | Sequence[NetworkSpec],
        recipe: str | TrainingRecipe,
        epochs: int | None,
        max_updates: int | None,
        seeds: int | Sequence[int],
        baselines: str | Sequence[str],
        augment: str | None,
        compile: CompileOption,
        seed: int,
    ) -> Request:
        """Check the options of `evaluate`, whose names they have.

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If a name is unknown, or a number is out of range.
        """
        training = _training_recipe(recipe, epochs, augment)
        if max_updates is not None:
            max_updates = integer("max_updates", max_updates, least=1)
        if compile not in (True, False, "auto"):
            raise ValueError(f"compile should be True, False or 'auto'; got {compile!r}")
        return cls(
            networks=_networks(networks),
            training=training,
            keeps_flips=augment is not None,
            max_updates=max_updates,
            network_seeds=_network_seeds(seeds),
            baselines=_baselines(baselines),
            compile=compile,
            seed=integer("seed", seed),
        )

    def training_on(self, train: datasets.Dataset) -> TrainingRecipe:
        """Return how networks are trained on a set and its baselines: without flips if the set was made without."""
        augment = self.training.augment
        if self.keeps_flips or augment is None or not isinstance(train, CondensedDataset):
            return self.training
        families = train.recipe.options.get("augment")
        if isinstance(families, str) and families not in ("", "none") and "flip" not in families.split("_"):
            augment = "_".join(name for name in augment.split("_") if name != "flip") or "none"
        return dataclasses.replace(self.training, augment=augment)


def _training_recipe(recipe: str | TrainingRecipe, epochs: int | None, augment: str | None) -> TrainingRecipe:
    """Return the training recipe with what the caller changes in it."""
    if isinstance(recipe, str):
        one_of("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    elif not isinstance(recipe, TrainingRecipe):
        raise TypeError(f"recipe should be one of {', '.join(RECIPES)} or a TrainingRecipe; got {recipe!r}")
    epochs = recipe.epochs if epochs is None else integer("epochs", epochs, least=1)
    return dataclasses.replace(recipe, epochs=epochs, augment=recipe.augment if augment is None else augment)


def _baselines(baselines: str | Sequence[str]) -> list[str]:
    """Check the names of the baselines, each once."""
    names = list(dict.fromkeys([baselines] if isinstance(baselines, str) else _values("baselines", baselines)))
    coresets = [info.name for info in list_methods() if info.kind == "coreset"]
    for name in names:
        one_of("baselines", name, dict.fromkeys(["random", "full", *coresets]))
    return names


def _network_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seed of every network."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return list(range(integer("seeds", seeds, least=1)))
    values = [] if isinstance(seeds, (str, bool)) else _values("seeds", seeds)
    integers = all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)
    if not values or not integers or len(set(values)) < len(values):
        raise ValueError(f"seeds should be a number of networks, or their seeds, different integers; got {seeds!r}")
    return [int(value) for value in values]


def _networks(networks: NetworkSpec | Sequence[NetworkSpec]) -> tuple[NetworkSpec, ...]:
    """Check the networks, as far as that needs no images."""
    one = isinstance(networks, (str, nn.Module)) or callable(networks)
    specs: list[NetworkSpec] = [networks] if one else _values("networks", networks)  # type: ignore[list-item]
    if not specs:
        raise ValueError('networks should name at least one network, such as "convnet"; got none')
    for spec in specs:
        check_network(spec)
    return tuple(specs)


def _values(name: str, values: Any) -> list[Any]:
    """Return the values of a list, a tuple, an array or whatever else can be gone through."""
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{name} should be one value or a list of them; got {values!r}") from None
