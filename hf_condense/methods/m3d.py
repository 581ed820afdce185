"""M3D (ECHO): align all moments of real and synthetic embeddings, by the squared MMD of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.engine.method import MethodInfo, Preset, option
from hf_condense.engine.task import Task
from hf_condense.methods._images import AUGMENT_HELP
from hf_condense.methods._siamese import EmbeddingConfig, EmbeddingMatching

Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # synthetic, real -> their three Gram matrices

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the Gaussians, in units of the mean squared distance
_EPSILON = 1e-12


def squared_mmd(synthetic: Tensor, real: Tensor, kernel: Kernel) -> Tensor:
    """Squared maximum mean discrepancy of each class, summed over classes; the biased estimator.

    Args:
        synthetic: Embeddings of the synthetic rows.
        real: Embeddings of the real rows.
        kernel: Makes the Gram matrices: `gaussian_mixture`, `linear` or `polynomial`.

    Shapes:
        (K, n, D), (K, B, D) -> ()

    Reference:
        Zhang et al., "M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy", AAAI 2024, equation 6
        (arXiv:2312.15927); Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 5.

    Example:
        >>> float(squared_mmd(torch.tensor([[[0.0]]]), torch.tensor([[[1.0], [2.0]]]), linear))
        2.25
    """
    own, across, other = kernel(synthetic, real)
    return (own.mean((1, 2)) - 2 * across.mean((1, 2)) + other.mean((1, 2))).sum()


def gaussian_mixture(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of five Gaussians, exp(-d^2 / (w b)) for w in `WIDTHS`; b is the mean squared distance of distinct rows.

    b is found anew for each class and carries no gradient, so that images cannot shrink it instead of matching.

    Shapes:
        (K, n, D), (K, B, D) -> (K, n, n), (K, n, B), (K, B, B)
    """
    own, across, other = (squared_distances(a, b) for a, b in ((synthetic, synthetic), (synthetic, real), (real, real)))
    rows = synthetic.shape[1] + real.shape[1]
    with torch.no_grad():
        total = own.sum((1, 2)) + 2 * across.sum((1, 2)) + other.sum((1, 2))
        bandwidth = (total / (rows * (rows - 1))).clamp_min(_EPSILON)[:, None, None]  # (K, 1, 1)
    grams = [sum(torch.exp(-d / (bandwidth * w)) for w in WIDTHS) for d in (own, across, other)]
    return grams[0], grams[1], grams[2]  # type: ignore[return-value]


def linear(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products: the squared distance of the means, which is DM. Shapes as `gaussian_mixture`."""
    return synthetic @ synthetic.mT, synthetic @ real.mT, real @ real.mT


def polynomial(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x'y / D + 1)^2: means and covariances; D is the embedding's dimension. Shapes as `gaussian_mixture`."""
    own, across, other = ((gram / real.shape[-1] + 1).square() for gram in linear(synthetic, real))
    return own, across, other


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances, never negative: (K, n, D), (K, m, D) -> (K, n, m)."""
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


_KERNELS: dict[str, Kernel] = {"gaussian": gaussian_mixture, "linear": linear, "polynomial": polynomial}


@dataclass(frozen=True)
class KernelMomentsConfig(EmbeddingConfig):
    """Options of M3D."""

    kernel: str = option(
        "gaussian",
        "'gaussian' (a mixture of five widths), 'linear' (which is DM) or 'polynomial'.",
        choices=tuple(_KERNELS),
    )
    augment: str = option("color_crop_cutout", AUGMENT_HELP, role="augment")
    ipm: int = option(5, "Steps per random network; a larger one saves forwards of the real images.", ge=1)


def _rate(task: Task) -> float:
    """Return the rate of derived configurations, 1 per stored image of a class for pixels in [0, 1], normalised.

    The mean over the images of a class divides the gradient of each by their number, so the rate grows with it.
    """
    return task.ipc / task.std**2


def _paper(task: Task) -> dict[str, object]:
    """Tasks of derived configurations; the authors' own were not published."""
    return {"steps": 10_000, "batch_real": 128, "factor": 2, "lr_img": _rate(task), "reuse_real": False}


def _default(task: Task) -> dict[str, object]:
    """A fifth of the paper's steps."""
    return {"steps": 2000, "lr_img": _rate(task)}


def _quick(task: Task) -> dict[str, object]:
    """Minutes on two cores."""
    return {"steps": 1000, "lr_img": _rate(task), "network": "convnet-w32", "decay": True}


class KernelMoments(EmbeddingMatching[KernelMomentsConfig]):
    """Minimising the maximum mean discrepancy (M3D), first published as ECHO."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="m3d",
        title="Minimising Maximum Mean Discrepancy",
        kind="synthetic",
        summary="Aligns all moments of real and synthetic embeddings in the space of a kernel.",
        paper="M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy",
        authors="Hansong Zhang, Shikun Li, Pengju Wang, Dan Zeng and Shiming Ge",
        venue="AAAI",
        year=2024,
        link="https://arxiv.org/abs/2312.15927",
        cost="that of dm and Gram matrices; forwards of the real batch once per network",
        aliases=("echo",),
    )
    Config = KernelMomentsConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("2,000 steps at width 128, five per network on the same real batch.", _default),
        "paper": Preset(
            "10,000 steps, factor 2, five per network; from configurations derived from the authors' code, as their "
            "own were not published (AAAI 2024).",
            _paper,
        ),
        "quick": Preset("1,000 steps at width 32, falling rates: minutes on two cores.", _quick),
    }

    def discrepancy(self, real: Tensor, synthetic: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        """Return the squared MMD, summed over classes."""
        counts = labels.unique_consecutive(return_counts=True)[1].tolist()  # rows are grouped by class
        kernel = _KERNELS[self.config.kernel]
        if len(set(counts)) == 1:
            return squared_mmd(synthetic.unflatten(0, (len(classes), -1)), real, kernel)
        each = zip(synthetic.split(counts), real, strict=True)
        return torch.stack([squared_mmd(own[None], other[None], kernel) for own, other in each]).sum()
