"""What a caller asks of an evaluation, checked as far as that needs no data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import nn

from hf_condense.base.checks import compile_option, integer, listed, number, one_of, seed_value
from hf_condense.base.devices import CompileOption
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.engine.registry import list_methods
from hf_condense.evaluation.subject import Subject
from hf_condense.networks.augment import families_of
from hf_condense.networks.factory import NetworkSpec, check_network, list_networks
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe

SEARCHED_RATES = (0.001, 0.005, 0.01, 0.05, 0.1)  # those of DD-Ranking (arXiv:2505.13300)


@dataclass(frozen=True)
class Request:
    """What a caller asks of an evaluation.

    Attributes:
        networks: The kinds of networks.
        training: How networks are trained.
        keeps_flips: Whether networks are trained with flips even if the set was made without them.
        rates: Learning rates to choose from on held-out rows; none: they are not searched.
        fixed_rate: Whether the caller gave the learning rate, which then counts more than one that a set has learned.
        max_updates: Cap on the updates of a network, or None.
        ipc: Images per class that the set is cut down to, in turn; None: it is used whole.
        network_seeds: Seed of every network.
        baselines: Names of the baselines, each once.
        compile: Whether to compile the networks.
        seed: Seed of every draw, besides the networks' own.
    """

    networks: tuple[NetworkSpec, ...]
    training: TrainingRecipe
    keeps_flips: bool
    rates: tuple[float, ...]
    fixed_rate: bool
    max_updates: int | None
    ipc: tuple[int | None, ...]
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
        lr: str | float | Sequence[float] | None = None,
        ipc: int | Sequence[int] | None = None,
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
        rates = _rates(lr)
        training = training_recipe(recipe, epochs, augment)
        if len(rates) == 1:
            training = dataclasses.replace(training, lr=rates[0])
        if max_updates is not None:
            max_updates = integer("max_updates", max_updates, least=1)
        compile = compile_option(compile)
        return cls(
            networks=_networks(networks),
            training=training,
            keeps_flips=augment is not None,
            rates=rates if len(rates) > 1 else (),
            fixed_rate=len(rates) == 1,
            max_updates=max_updates,
            ipc=_ipc(ipc),
            network_seeds=_network_seeds(seeds),
            baselines=_baselines(baselines),
            compile=compile,
            seed=seed_value("seed", seed),
        )

    def shared_training(self, train: object) -> TrainingRecipe:
        """Return how networks are trained on a set and its baselines: without flips if the set was made without."""
        augment = self.training.augment
        if self.keeps_flips or augment is None or not isinstance(train, CondensedDataset):
            return self.training
        parts = [part.augment or part.options.get("augment") for part in train.recipe.part_recipes]
        made_by = [families_of(families) for families in parts if isinstance(families, str)]
        if any(families and "flip" not in families for families in made_by):
            augment = "_".join(name for name in augment.split("_") if name != "flip") or "none"
        return dataclasses.replace(self.training, augment=augment)

    def training_for_set(self, subject: Subject, training: TrainingRecipe) -> TrainingRecipe:
        """Return how networks are trained on the set itself: with the rate that it may have learned, which is SGD's."""
        if subject.student_lr is None or self.fixed_rate or training.optimiser != "sgd":
            return training
        return dataclasses.replace(training, lr=subject.student_lr)


def training_recipe(recipe: str | TrainingRecipe, epochs: int | None, augment: str | None) -> TrainingRecipe:
    """Return the training recipe with what the caller changes in it.

    Tables and cards have its name, epochs, rate and augmentation. If it has the name of a published one, the name says
    what else is different.
    """
    if isinstance(recipe, str):
        one_of("recipe", recipe, RECIPES)
        recipe = RECIPES[recipe]
    elif not isinstance(recipe, TrainingRecipe):
        raise TypeError(f"recipe should be one of {', '.join(RECIPES)} or a TrainingRecipe; got {recipe!r}")
    epochs = recipe.epochs if epochs is None else integer("epochs", epochs, least=1)
    augment = recipe.augment if augment is None else augment
    return dataclasses.replace(recipe, name=_distinct_name(recipe), epochs=epochs, augment=augment)


def _distinct_name(recipe: TrainingRecipe) -> str:
    """Return the name of a recipe; behind that of a published one stands what differs and is in no table.

    Example:
        >>> _distinct_name(dataclasses.replace(RECIPES["dsa"], epochs=20, batch_size=64))
        'dsa (batch_size=64)'
    """
    published = RECIPES.get(recipe.name, recipe)
    names = [f.name for f in dataclasses.fields(recipe) if f.name not in ("epochs", "lr", "augment")]
    changed = {name: value for name in names if (value := getattr(recipe, name)) != getattr(published, name)}
    if not changed:
        return recipe.name
    return f"{recipe.name} ({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _rates(lr: str | float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the learning rates that the caller gives: none, one to use, or several to choose from."""
    if lr is None:
        return ()
    if isinstance(lr, str):
        if lr != "search":
            raise ValueError(f"lr should be a number, a list of numbers or 'search'; got {lr!r}")
        return SEARCHED_RATES
    values = [lr] if isinstance(lr, Real) else _values("lr", lr)
    rates = tuple(dict.fromkeys(number("lr", value, above=0, below=math.inf) for value in values))
    if not rates:
        raise ValueError("lr should be a learning rate, several to choose from, or 'search'; got none")
    return rates


def _ipc(ipc: int | Sequence[int] | None) -> tuple[int | None, ...]:
    """Return the numbers of images per class that the set is cut down to, each once, the smallest first."""
    if ipc is None:
        return (None,)
    values = [ipc] if isinstance(ipc, (Integral, str)) else _values("ipc", ipc)
    if not values:
        raise ValueError("ipc should be a number of images per class, or several; got none")
    return tuple(sorted({integer("ipc", value, least=1) for value in values}))


def _baselines(baselines: str | Sequence[str]) -> list[str]:
    """Check the names of the baselines, each once; `"none"` alone stands for no baseline."""
    names = list(dict.fromkeys([baselines] if isinstance(baselines, str) else _values("baselines", baselines)))
    coresets = [info.name for info in list_methods() if info.kind == "coreset"]
    real = [name for name in names if name != "none"]
    for name in real:
        one_of("baselines", name, dict.fromkeys(["random", "full", *coresets, "none"]))
    if real and len(real) < len(names):
        raise ValueError(f"baselines has both 'none' and {listed(real)}; leave out one or the other")
    return real


def _network_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Return the seed of every network."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return list(range(integer("seeds", seeds, least=1)))
    values = [] if isinstance(seeds, (str, bool)) else _values("seeds", seeds)
    integers = all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)
    if not values or not integers or len(set(values)) < len(values):
        raise ValueError(f"seeds should be a number of networks, or their seeds, different integers; got {seeds!r}")
    network_seeds = [int(value) for value in values]
    if not -(2**63) <= min(network_seeds) <= max(network_seeds) < 2**64:  # files hold integers of 64 bits
        raise ValueError(f"seeds should be in -2**63..2**64 - 1; got {seeds!r}")
    return network_seeds


def _networks(networks: NetworkSpec | Sequence[NetworkSpec]) -> tuple[NetworkSpec, ...]:
    """Check the networks, as far as that needs no images."""
    one = isinstance(networks, (str, nn.Module)) or callable(networks)
    specs: list[NetworkSpec] = [networks] if one else _values("networks", networks)  # type: ignore[list-item]
    specs = [name for spec in specs for name in (list_networks() if spec == "all" else [spec])]
    specs = [spec for i, spec in enumerate(specs) if not any(spec is one or spec == one for one in specs[:i])]
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
