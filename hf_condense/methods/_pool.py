"""A pool of networks: pairs of first and trained weights, and their blends. Methods and runs share the recordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.engine.options import option
from hf_condense.methods._images import ALWAYS, ImageConfig, check_trainable, check_two_classes
from hf_condense.methods._recordings import Recordings, Training, recorded_networks
from hf_condense.networks.augment import Augmentation, families_of
from hf_condense.networks.losses import tempered_cross_entropy
from hf_condense.networks.training_recipe import TrainingRecipe, epochs_for

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

PAPER_POOL: dict[str, Any] = {
    "pool_size": 20,
    "pool_updates": 23_400,
    "batch_pool": 128,
    "augment_pool": "color_crop",
    "cutmix_pool": 0.5,
}
"""The pool of the code of DANCE and NCFM for CIFAR: 60 epochs of 50,000 images."""

_UNPOOLED = "pass networks='fresh' and calibration=0"
_WITH_POOL = "With networks='pool': "
_POOL = {"networks": ("pool",)}  # what gives options of the pool an effect


@dataclass(frozen=True)
class PoolConfig(ImageConfig):
    """Options of methods that can compare embeddings under a pool of trained networks."""

    networks: str = option(
        "fresh",
        "'fresh': random networks. 'pool': blends of the first and the trained weights of networks that are trained on "
        "the real set once, recorded in the cache, and shared by methods and runs.",
        choices=("fresh", "pool"),
    )
    pool_size: int = option(
        10, _WITH_POOL + "number of networks that are trained on the real set.", ge=1, tiny=2, needs=_POOL
    )
    pool_updates: int = option(300, _WITH_POOL + "training updates of each network.", ge=1, tiny=4, needs=_POOL)
    lr_pool: float = option(
        0.01,
        _WITH_POOL + "learning rate of the networks; it falls to a fifth after two thirds of the updates, and again "
        "after five sixths.",
        gt=0,
        needs=_POOL,
    )
    batch_pool: int = option(128, _WITH_POOL + "real images per training update.", ge=1, needs=_POOL)
    augment_pool: str = option(
        "none",
        _WITH_POOL + "augmentation of the training images: families joined by _, or 'none'. Each image draws its own: "
        "flip, color and cutout are always applied if they are listed, and one of the others.",
        valid=Augmentation.parse,
        needs=_POOL,
    )
    cutmix_pool: float = option(
        0.0, _WITH_POOL + "share of the training updates that use CutMix, in [0, 1].", ge=0, le=1, needs=_POOL
    )
    calibration: float = option(
        0.0,
        _WITH_POOL + "weight of the cross-entropy of the synthetic rows under the trained network of the drawn pair. "
        "It is the mean over the rows of a class, summed over classes as the discrepancy is. 0 switches it off; "
        "otherwise a step makes a second forward and backward pass of the synthetic rows.",
        ge=0,
    )


@dataclass(frozen=True)
class Pool:
    """A pool of networks on disk. Only the pair that is asked for is read into memory.

    Attributes:
        pairs: The recordings; each has two snapshots, the first and the trained weights.
    """

    pairs: Recordings

    def blend(self, run: Run, draw: int) -> Tensor:
        """Return the weights of a random point between the first and the trained weights of a random network.

        Args:
            run: The run.
            draw: Number of the draw: its key.

        Returns:
            (P,), on the CPU.

        References:
            Zhang et al., "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024,
            on pseudo long-term distribution alignment (arXiv:2406.01063).
        """
        number, position = self._drawn(run, draw)
        first, trained = self.pairs.window(number, 0, 2)
        return torch.lerp(first, trained, position)

    def trained(self, run: Run, draw: int) -> Tensor:
        """Return the trained weights of the pair that `blend` uses in the same draw: (P,), on the CPU."""
        return self.pairs.window(self._drawn(run, draw)[0], 1, 1)[0]

    def _drawn(self, run: Run, draw: int) -> tuple[int, float]:
        """Return the number of the pair in a draw, and the position between its ends in [0, 1)."""
        generator = run.rng("pool", draw)
        number = int(torch.randint(len(self.pairs), (), generator=generator))
        return number, float(torch.rand((), generator=generator))


def calibration_loss(logits: Tensor, targets: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean cross-entropy of the rows of each class, summed over classes.

    A chunk that holds whole classes thus adds its exact share, and an image's gradient has the scale of one of a mean
    over the rows of its class, as in discrepancies.

    Args:
        logits: Logits of a trained network. (n, K).
        targets: Labels (n,) or probabilities (n, K).
        labels: Classes of the rows, by which they are averaged; on the CPU, nothing waits for a GPU. (n,).
        temperature: Divisor of the logits, > 0.

    Returns:
        A scalar, ().

    References:
        Zhang et al., "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024, on
        distribution calibration (arXiv:2406.01063).

    Example:
        >>> float(calibration_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1])).exp())
        4.0
    """
    losses = tempered_cross_entropy(logits, targets, temperature, reduction="none")  # (n,)
    _, places, counts = labels.unique(return_inverse=True, return_counts=True)
    total: Tensor = (losses / to_device(counts[places], losses.device)).sum()
    return total


def recorded_pool(run: Run, config: PoolConfig) -> Pool:
    """Return the pool of a run; record the networks that are not in the cache yet. See `recorded_networks`.

    Args:
        run: The run, which gives network, seed and source.
        config: How many networks there are, and how they are trained.
    """
    training = Training(
        noun="pool network",
        rate_option="lr_pool",
        recipe=pool_recipe(config, len(run.source)),
        count=config.pool_size,
        snapshots=2,
        every=config.pool_updates,
        every_key=config.pool_updates,
    )
    return Pool(recorded_networks(run, training))


def pool_recipe(config: PoolConfig, rows: int) -> TrainingRecipe:
    """Return the training recipe of a pool: SGD with momentum and weight decay, and a rate that falls twice."""
    return TrainingRecipe(
        "pool",
        epochs=epochs_for(config.pool_updates, rows, config.batch_pool),
        batch_size=config.batch_pool,
        lr=config.lr_pool,
        milestones=(2 / 3, 5 / 6),
        gamma=0.2,
        restart_optimiser=False,
        augment=config.augment_pool,
        always=ALWAYS if families_of(config.augment_pool) else (),
        cutmix_probability=config.cutmix_pool,
    )


def check_pool(run: Run, config: PoolConfig, method: str) -> None:
    """Check, before anything is trained, what `option` cannot check.

    Raises:
        ValueError: If options contradict each other, or no network can be trained.
    """
    if config.networks == "fresh":
        if config.calibration:
            raise ValueError(
                f"calibration={config.calibration!r} needs trained networks, but networks='fresh'; pass "
                "networks='pool', or calibration=0"
            )
        return
    check_two_classes(run, method, _UNPOOLED)
    check_trainable(run, _UNPOOLED)
