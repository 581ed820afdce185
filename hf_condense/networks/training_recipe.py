"""How networks are trained, as data: the evaluation recipes of the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from hf_condense.networks.augment import Augmentation, Mode


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained: SGD on cross-entropy with a stepped learning rate.

    A run has exactly `epochs` epochs (the DC code runs one more). When the number of updates is capped, the schedule
    shrinks with it.

    Attributes:
        name: Name of the recipe.
        epochs: Passes over the rows, >= 1.
        batch_size: Rows in an update, >= 1; the last one of an epoch takes what is left.
        lr: Learning rate at the start, > 0.
        momentum: Of SGD, in [0, 1).
        weight_decay: Of SGD, >= 0.
        milestones: Where the learning rate drops, as fractions of the updates, rising within (0, 1).
        gamma: What the learning rate is multiplied by at a milestone.
        restart_optimiser: Forget the momentum at a milestone: the DC code makes a new optimiser there.
        augment: Families of DSA joined by `_`, or None. Each image draws its own parameters.
        always: Those of them that every image gets, in this order; of the others it gets one, drawn uniformly.
        cutmix_beta: Both parameters of CutMix's Beta distribution, > 0.
        cutmix_probability: Share of the updates that use CutMix, in [0, 1].
        flatness: Radius of sharpness-aware training (SAM), >= 0; 0 trains plainly.
        surrogate_gap: With flatness: weight of the surrogate gap (GSAM), >= 0.

    Raises:
        ValueError: If a value is out of its range, or a family is unknown.
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

    def __post_init__(self) -> None:
        marks = (0.0, *self.milestones, 1.0)
        rules = {
            "epochs should be at least 1": self.epochs >= 1,
            "batch_size should be at least 1": self.batch_size >= 1,
            "lr should be positive and finite": 0 < self.lr < math.inf,
            "momentum should be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay should be at least 0": self.weight_decay >= 0,
            "milestones should rise within (0, 1)": all(a < b for a, b in pairwise(marks)),
            "gamma should be positive": self.gamma > 0,
            "cutmix_beta should be positive": self.cutmix_beta > 0,
            "cutmix_probability should be in [0, 1]": 0 <= self.cutmix_probability <= 1,
            "flatness should be at least 0": self.flatness >= 0,
            "surrogate_gap should be at least 0": self.surrogate_gap >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"recipe {self.name!r}: {rule}; got {getattr(self, rule.split()[0])!r}")
        self.augmentations()

    def augmentations(self) -> list[Augmentation]:
        """Return what is applied to every batch, one after the other."""
        listed = Augmentation.parse(self.augment)
        if listed is None:
            return []
        always = tuple(name for name in self.always if name in listed.families)
        others = tuple(name for name in listed.families if name not in always)
        stages: list[tuple[tuple[str, ...], Mode]] = [(always, "all"), (others, "single")]
        return [Augmentation(families, mode) for families, mode in stages if families]

    def updates(self, rows: int, cap: int | None = None) -> int:
        """Return the number of updates that training on `rows` rows takes, at most `cap`."""
        wanted = self.epochs * math.ceil(rows / self.batch_size)
        return wanted if cap is None else min(wanted, cap)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        TrainingRecipe("dc", epochs=300),
        TrainingRecipe("dsa", epochs=1000, augment="color_crop_cutout_flip_scale_rotate"),
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
    )
}
"""Published evaluation recipes.

`dc`: Zhao et al., ICLR 2021 (arXiv:2006.05929). `dsa`: Zhao and Bilen, ICML 2021 (arXiv:2102.08259), also used for DM
and most of what followed. `idc`: Kim et al., ICML 2022 (arXiv:2205.14959), used by methods with a factor.
"""
