"""Training recipes as data: how networks are trained, and the evaluation recipes of the papers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hf_condense.base.checks import boolean, check_text, integer, number, one_of
from hf_condense.networks.augment import ALL_FAMILIES, FAMILIES, Augmentation, Mode


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained: SGD or AdamW on cross-entropy, with a learning rate that drops at milestones.

    Training takes exactly `epochs` epochs (the DC code runs one more). If the number of updates is capped, the schedule
    shrinks with it. `RECIPES` has the published ones: `dc` (300 epochs) and `dsa` (1,000, augmented) of SGD at 0.01 in
    batches of 256, `idc` (1,000, CutMix) in batches of 64, and `soft` (300 of AdamW at 0.001 in batches of 50).

    Attributes:
        name: Name of the recipe.
        epochs: Number of passes over the rows, >= 1.
        batch_size: Rows per update, >= 1; the last update of an epoch may have fewer.
        lr: Learning rate at the start, > 0.
        momentum: Momentum of SGD, in [0, 1).
        weight_decay: Weight decay, >= 0; of weight matrices and filters alone if the optimiser is AdamW.
        milestones: Where the learning rate drops, as increasing fractions of the updates in (0, 1).
        gamma: Factor of the learning rate at each milestone, > 0.
        restart_optimiser: Reset the momentum at each milestone, where the DC code makes a new optimiser.
        augment: Families of DSA (`color`, `crop`, `cutout`, `flip`, `scale`, `rotate`) joined by `_`. None means no
            augmentation; `"none"` is kept as None. Each image draws its own parameters.
        always: Those of the families that are applied to every image, in this order; families that are not in `augment`
            are left out. Text may join them by `_`. One of the remaining families is drawn per image.
        cutmix_beta: Both parameters of CutMix's Beta distribution, > 0.
        cutmix_probability: Share of the updates that use CutMix, in [0, 1].
        flatness: Radius of sharpness-aware training (SAM), >= 0; 0 trains without it.
        surrogate_gap: Weight of the surrogate gap (GSAM), >= 0; used only if `flatness` is positive.
        optimiser: `"sgd"`, or `"adamw"`, which has no momentum to choose and spares biases and norms its weight decay.
        cosine: Share of a half-wave of the cosine along which the learning rate falls, in [0, 1]: with 0 it stays, with
            1/2 it ends at half, with 1 at zero.
        view_area: Smallest share of the area of a random crop that each image is replaced by, in (0, 1], or None. Rows
            whose views have soft labels are replaced by one of these views instead.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of its range, the name is empty, or a family is unknown.
    """

    name: str
    epochs: int
    batch_size: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    restart_optimiser: bool = True
    augment: str | None = None
    always: tuple[str, ...] = ()
    cutmix_beta: float = 1.0
    cutmix_probability: float = 0.0
    flatness: float = 0.0
    surrogate_gap: float = 0.0
    optimiser: str = "sgd"
    cosine: float = 0.0
    view_area: float | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if not self.name:
            raise ValueError(f"name: a recipe needs one, such as 'mine'; got {self.name!r}")
        prefix = f"recipe {self.name!r}: "
        _keep(
            self,
            epochs=integer(prefix + "epochs", self.epochs, least=1),
            batch_size=integer(prefix + "batch_size", self.batch_size, least=1),
            lr=number(prefix + "lr", self.lr, above=0, below=math.inf),
            momentum=number(prefix + "momentum", self.momentum, least=0, below=1),
            weight_decay=number(prefix + "weight_decay", self.weight_decay, least=0, below=math.inf),
            milestones=_fractions(prefix + "milestones", self.milestones),
            gamma=number(prefix + "gamma", self.gamma, above=0, below=math.inf),
            restart_optimiser=boolean(prefix + "restart_optimiser", self.restart_optimiser),
            always=_families(prefix + "always", self.always),
            cutmix_beta=number(prefix + "cutmix_beta", self.cutmix_beta, above=0, below=math.inf),
            cutmix_probability=number(prefix + "cutmix_probability", self.cutmix_probability, least=0, most=1),
            flatness=number(prefix + "flatness", self.flatness, least=0, below=math.inf),
            surrogate_gap=number(prefix + "surrogate_gap", self.surrogate_gap, least=0, below=math.inf),
            cosine=number(prefix + "cosine", self.cosine, least=0, most=1),
        )
        one_of(prefix + "optimiser", self.optimiser, ("sgd", "adamw"))
        if self.view_area is not None:
            _keep(self, view_area=number(prefix + "view_area", self.view_area, above=0, most=1))
        if not all(a < b for a, b in pairwise((0.0, *self.milestones, 1.0))):
            raise ValueError(f"{prefix}milestones should increase within (0, 1); got {self.milestones!r}")
        if not self.augmentations():  # "none" and None are the same
            _keep(self, augment=None)

    def augmentations(self) -> list[Augmentation]:
        """Return the augmentations that are applied to every batch, one after the other."""
        augmentation = Augmentation.parse(self.augment)
        if augmentation is None:
            return []
        always = tuple(name for name in self.always if name in augmentation.families)
        others = tuple(name for name in augmentation.families if name not in always)
        stages: list[tuple[tuple[str, ...], Mode]] = [(always, "all"), (others, "single")]
        return [Augmentation(families, mode) for families, mode in stages if families]

    def rate(self, share: float) -> float:
        """Return the factor of the learning rate that the cosine gives after a share of the updates, in [0, 1]."""
        return (1 + math.cos(math.pi * self.cosine * share)) / 2

    def updates(self, rows: int, cap: int | None = None) -> int:
        """Return the number of updates that training on `rows` rows takes, at most `cap`."""
        updates = self.epochs * math.ceil(rows / self.batch_size)
        return updates if cap is None else min(updates, cap)


def epochs_for(updates: int, rows: int, batch_size: int) -> int:
    """Return how many epochs a number of updates takes, rounded up.

    Example:
        >>> epochs_for(10, rows=100, batch_size=30)
        3
    """
    return math.ceil(updates / math.ceil(rows / batch_size))


def _fractions(name: str, fractions: Any) -> tuple[float, ...]:
    """Return fractions of the updates.

    Raises:
        TypeError: If they are not numbers in a sequence.
    """
    if isinstance(fractions, str) or not isinstance(fractions, Iterable):
        raise TypeError(f"{name} should be a sequence of numbers, such as (0.5,); got {fractions!r}")
    return tuple(number(name, fraction) for fraction in fractions)


def _families(name: str, families: Any) -> tuple[str, ...]:
    """Return names of families of augmentations, which text joins by `_`.

    Raises:
        TypeError: If they are neither text nor a sequence.
        ValueError: If one is unknown.
    """
    if not isinstance(families, Iterable):
        raise TypeError(f"{name} should be names of families, such as ('flip',); got {families!r}")
    names = tuple(families.split("_") if isinstance(families, str) else families)
    for family in names:
        one_of(name, family, FAMILIES)
    return names


def _keep(recipe: TrainingRecipe, **values: Any) -> None:
    """Give a frozen recipe checked values: plain numbers of Python in place of those of NumPy, which JSON lacks."""
    for name, value in values.items():
        object.__setattr__(recipe, name, value)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        TrainingRecipe("dc", epochs=300),
        TrainingRecipe("dsa", epochs=1000, augment=ALL_FAMILIES),
        TrainingRecipe(
            "idc",
            epochs=1000,
            batch_size=64,
            milestones=(2 / 3, 5 / 6),
            gamma=0.2,
            restart_optimiser=False,
            augment="color_crop_flip_scale_rotate",
            always=("flip", "color"),
            cutmix_probability=0.5,
        ),
        TrainingRecipe(
            "soft",
            epochs=300,
            batch_size=50,
            lr=0.001,
            weight_decay=0.01,
            milestones=(),
            augment="flip",
            cutmix_probability=1.0,
            optimiser="adamw",
            cosine=0.5,
            view_area=0.5,
        ),
    )
}
"""The published evaluation recipes.

`dc`: Zhao et al., ICLR 2021 (arXiv:2006.05929). `dsa`: Zhao and Bilen, ICML 2021 (arXiv:2102.08259), also used for DM
and most of what followed. `idc`: Kim et al., ICML 2022 (arXiv:2205.14959), made for sets that store patches.
`soft`: Sun et al., CVPR 2024 (arXiv:2312.03526), for the soft labels of a teacher; the paper's batches depend on the
set.
"""
