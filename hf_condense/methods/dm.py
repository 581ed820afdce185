"""DM: align the mean embeddings of real and synthetic images under random networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.engine.forms import form_rate, form_values
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.task import Task
from hf_condense.methods._embeddings import Chunk, EmbeddingConfig, EmbeddingMatching
from hf_condense.methods._images import ADVICE_FOR_DIGITS


def mean_discrepancy(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the squared distance between class means of embeddings, summed over classes.

    Args:
        real: Mean real embedding of each class. (K, D).
        synthetic: Mean synthetic embedding of each class. (K, D).

    Returns:
        A scalar, ().

    References:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, equation 4 (arXiv:2110.04181).

    Example:
        >>> import torch
        >>> float(mean_discrepancy(torch.zeros(2, 3), torch.ones(2, 3)))
        6.0
    """
    return (real - synthetic).square().sum()


def class_means(embeddings: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Return the mean embedding of each class, in the order of `classes`: (n, D), (n,), (k,) -> (k, D)."""
    membership = (labels[None, :] == classes[:, None]).to(embeddings.dtype)  # (k, n)
    return (membership / membership.sum(1, keepdim=True)) @ embeddings


@dataclass(frozen=True)
class DistributionMatchingConfig(EmbeddingConfig):
    """Options of DM."""


def _paper(task: Task) -> dict[str, Any]:
    """Return the options of the authors' code for an ipc."""
    return {"steps": 20_000, "lr_img": 10.0 if task.ipc >= 100 else 1.0, "pixel_range": "free"}


def _quick(task: Task) -> dict[str, Any]:
    short = {"steps": 1000, "ipm": 5, "decay": True, "network": "convnet-w32"}
    return {**short, "lr_img": task.ipc * form_rate(task), **form_values(task)}


def _default(task: Task) -> dict[str, Any]:
    # The mean over ipc images divides the gradient of each image by ipc, so the rate grows with ipc.
    return {"steps": 1000, "lr_img": float(task.ipc)}


class DistributionMatching(EmbeddingMatching[DistributionMatchingConfig]):
    """Distribution matching (DM).

    References:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, equation 4 (arXiv:2110.04181);
        see `mean_discrepancy`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dm",
        title="Distribution Matching",
        kind="synthetic",
        summary="Aligns the mean embeddings of real and synthetic images under fresh random networks.",
        paper="Dataset Condensation with Distribution Matching",
        authors="Bo Zhao and Hakan Bilen",
        venue="WACV",
        year=2023,
        link="https://arxiv.org/abs/2110.04181",
        cost="one forward of the real batch, one forward and backward of the synthetic set",
    )
    version: ClassVar[int] = 2
    Config = DistributionMatchingConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("1,000 steps at width 128, a learning rate of 1 per stored image of a class.", _default),
        "paper": Preset(
            f"20,000 steps and unclamped pixels, as the authors' code runs it (WACV 2023). {ADVICE_FOR_DIGITS}", _paper
        ),
        "quick": Preset(
            "1,000 steps at width 32, five per network, falling rates, the storage form that measured best: minutes on "
            "two cores for some 1,000 rows, all of which take part in each step.",
            _quick,
        ),
    }

    def summary(self, chunk: Chunk, real: Tensor) -> Tensor:
        """Return the class means of the real embeddings: (k, B, D) -> (k, D)."""
        return real.mean(1)

    def discrepancy(self, chunk: Chunk, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        """Return the squared distances of the class means, summed over classes."""
        classes = to_device(torch.tensor(chunk.classes), labels.device)
        return mean_discrepancy(real, class_means(synthetic, labels, classes))
