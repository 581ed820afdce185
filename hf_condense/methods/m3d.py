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

Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Function of synthetic and real rows that returns their Gram matrices: synthetic, synthetic with real, real."""

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # widths of the Gaussians, in units of the mean squared distance
_EPSILON = 1e-12


def squared_mmd(synthetic: Tensor, real: Tensor, kernel: Kernel) -> Tensor:
    """Return the squared maximum mean discrepancy of each class (biased estimator), summed over classes.

    Args:
        synthetic: Embeddings of the synthetic rows. (K, n, D).
        real: Embeddings of the real rows. (K, B, D).
        kernel: Function that returns the Gram matrices: `gaussian_mixture`, `linear` or `polynomial`.

    Returns:
        ().

    References:
        Zhang et al., "M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy", AAAI 2024, equation 6
        (arXiv:2312.15927); Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 5.

    Example:
        >>> float(squared_mmd(torch.tensor([[[0.0]]]), torch.tensor([[[1.0], [2.0]]]), linear))
        2.25
    """
    within_synthetic, between, within_real = kernel(synthetic, real)
    return (within_synthetic.mean((1, 2)) - 2 * between.mean((1, 2)) + within_real.mean((1, 2))).sum()


def gaussian_mixture(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gram matrices of a sum of five Gaussians, exp(-d^2 / (w b)) for w in `WIDTHS`.

    The bandwidth b is the mean squared distance of distinct rows, synthetic and real together. It is computed for each
    class and carries no gradient, so that the images cannot shrink it instead of matching.

    Args:
        synthetic: Embeddings of the synthetic rows. (K, n, D).
        real: Embeddings of the real rows. (K, B, D).

    Returns:
        (K, n, n), (K, n, B) and (K, B, B).
    """
    within_synthetic = squared_distances(synthetic, synthetic)
    between = squared_distances(synthetic, real)
    within_real = squared_distances(real, real)
    rows = synthetic.shape[1] + real.shape[1]
    with torch.no_grad():
        total = within_synthetic.sum((1, 2)) + 2 * between.sum((1, 2)) + within_real.sum((1, 2))
        bandwidth = (total / (rows * (rows - 1))).clamp_min(_EPSILON)[:, None, None]  # (K, 1, 1)

    def gram(distances: Tensor) -> Tensor:
        mixture: Tensor = sum(torch.exp(-distances / (bandwidth * width)) for width in WIDTHS)  # type: ignore[assignment]
        return mixture

    return gram(within_synthetic), gram(between), gram(within_real)


def linear(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inner products; the squared MMD is then the objective of DM. Shapes as for `gaussian_mixture`."""
    return synthetic @ synthetic.mT, synthetic @ real.mT, real @ real.mT


def polynomial(synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x'y / D + 1)^2 for dimension D: it compares means and covariances. Shapes as for `gaussian_mixture`."""
    within_synthetic, between, within_real = ((gram / real.shape[-1] + 1).square() for gram in linear(synthetic, real))
    return within_synthetic, between, within_real


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances, never negative: (K, n, D), (K, m, D) -> (K, n, m)."""
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


_KERNELS: dict[str, Kernel] = {"gaussian": gaussian_mixture, "linear": linear, "polynomial": polynomial}


@dataclass(frozen=True)
class KernelMomentsConfig(EmbeddingConfig):
    """Options of M3D."""

    kernel: str = option(
        "gaussian",
        "Kernel of the discrepancy: 'gaussian' (a mixture of five widths), 'linear' (equal to DM) or 'polynomial'.",
        choices=tuple(_KERNELS),
    )
    augment: str = option("color_crop_cutout", AUGMENT_HELP, role="augment")
    ipm: int = option(5, "Steps per random network. A larger number saves forward passes of the real images.", ge=1)


def _rate(task: Task) -> float:
    """Return the image rate of derived configurations: for pixels in [0, 1], 1 for each stored image of a class.

    The mean over the images of a class divides the gradient of each image by their number, so the rate grows with that
    number. Division by the variance converts the rate to normalised images.
    """
    return task.ipc / task.std**2


def _paper(task: Task) -> dict[str, object]:
    """Return the options of derived configurations; the authors did not publish their own."""
    return {"steps": 10_000, "batch_real": 128, "factor": 2, "lr_img": _rate(task), "reuse_real": False}


def _default(task: Task) -> dict[str, object]:
    return {"steps": 2000, "lr_img": _rate(task)}


def _quick(task: Task) -> dict[str, object]:
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
        pairs = zip(synthetic.split(counts), real, strict=True)
        return torch.stack([squared_mmd(s[None], r[None], kernel) for s, r in pairs]).sum()
