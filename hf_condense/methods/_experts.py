"""Expert trajectories: weights of networks during training on the real set. Methods share the recordings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_condense.engine.options import option
from hf_condense.methods._images import ImageConfig, check_trainable
from hf_condense.methods._recordings import Recordings, Training, recorded_networks
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.training_recipe import TrainingRecipe, epochs_for

if TYPE_CHECKING:
    from hf_condense.engine.run import Run


@dataclass(frozen=True)
class ExpertConfig(ImageConfig):
    """Options of methods that follow experts: how experts are trained and recorded."""

    experts: int = option(20, "Number of networks that are trained on the real set.", ge=1, tiny=2)
    snapshots: int = option(
        9,
        "Snapshots recorded per expert, including the initial weights. More images per class need longer trajectories.",
        ge=2,
        tiny=6,
    )
    snapshot_every: int | None = option(
        None, "Updates of an expert between two snapshots; None: one epoch.", ge=1, tiny=2
    )
    lr_expert: float = option(0.01, "Learning rate of the experts.", gt=0)
    momentum_expert: float = option(0.0, "Momentum of the experts, in [0, 1).", ge=0, lt=1)
    batch_expert: int = option(256, "Real images per update of an expert.", ge=1)
    augment_expert: str = option(
        "none",
        "Augmentation of the experts' training images: families joined by _, or 'none'. Each image draws its own.",
        valid=Augmentation.parse,
    )
    flatness: float = option(
        0.0,
        "Radius of sharpness-aware training (SAM) of the experts, which doubles their cost; 0 switches it off.",
        ge=0,
    )
    surrogate_gap: float = option(0.0, "Weight of the GSAM surrogate-gap term; requires flatness > 0.", ge=0)


def recorded_experts(run: Run, config: ExpertConfig) -> Recordings:
    """Return the experts of a run; record those that are not in the cache yet. See `recorded_networks`.

    Args:
        run: The run, which gives network, seed and source.
        config: How many experts there are, and how they are trained.

    References:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, section 3.2
        (arXiv:2203.11932).
    """
    every = snapshot_interval(config, len(run.source))
    recipe = expert_recipe(config, every, len(run.source))
    training = Training(
        noun="expert",
        rate_option="lr_expert",
        recipe=recipe,
        count=config.experts,
        snapshots=config.snapshots,
        every=every,
        every_key=config.snapshot_every,
    )
    return recorded_networks(run, training)


def check_experts(run: Run, config: ExpertConfig) -> None:
    """Check, before anything is trained, what `option` cannot check: the network, and options that depend on others.

    Raises:
        ValueError: If options contradict each other, or the network has frozen parameters.
    """
    check_trainable(run)
    if config.surrogate_gap and not config.flatness:
        raise ValueError(
            f"surrogate_gap={config.surrogate_gap!r} requires flatness > 0; pass a flatness, or leave surrogate_gap out"
        )


def snapshot_interval(config: ExpertConfig, rows: int) -> int:
    """Return the number of updates of an expert between two snapshots."""
    return config.snapshot_every or math.ceil(rows / config.batch_expert)


def expert_recipe(config: ExpertConfig, every: int, rows: int) -> TrainingRecipe:
    """Return the training recipe of experts: SGD at a constant rate, until the last snapshot."""
    updates = (config.snapshots - 1) * every
    return TrainingRecipe(
        "expert",
        epochs=epochs_for(updates, rows, config.batch_expert),
        batch_size=config.batch_expert,
        lr=config.lr_expert,
        momentum=config.momentum_expert,
        weight_decay=0.0,
        milestones=(),
        augment=config.augment_expert,
        flatness=config.flatness,
        surrogate_gap=config.surrogate_gap,
    )
