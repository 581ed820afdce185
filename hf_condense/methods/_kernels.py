"""How unlike the embeddings of two sets of rows are: the squared MMD of a kernel, and characteristic functions."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the Gaussians, in units of the mean squared distance; each doubles the last
_EPSILON = 1e-12


class Kernel(Protocol):
    """Function of rows that returns their Gram matrices: synthetic, synthetic with real, real."""

    def __call__(
        self, synthetic: Tensor, real: Tensor, within: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Gram matrices.

        Args:
            synthetic: Embeddings of the synthetic rows. (K, n, D).
            real: Embeddings of the real rows. (K, B, D).
            within: What the kernel is a function of for pairs of real rows, squared distances or inner products, if it
                is at hand. (K, B, B).

        Returns:
            (K, n, n), (K, n, B) and (K, B, B).
        """


def squared_mmd(synthetic: Tensor, real: Tensor, kernel: Kernel, within: Tensor | None = None) -> Tensor:
    """Return the squared maximum mean discrepancy of each class (biased estimator), summed over classes.

    Args:
        synthetic: Embeddings of the synthetic rows. (K, n, D).
        real: Embeddings of the real rows. (K, B, D).
        kernel: Function that returns the Gram matrices: `gaussian_mixture`, `linear` or `polynomial`.
        within: Squared distances (`gaussian_mixture`) or inner products of the real rows, if they are at hand; they
            are the same in all steps on the same real rows. (K, B, B).

    Returns:
        A scalar, ().

    References:
        Zhang et al., "M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy", AAAI 2024, equation 6
        (arXiv:2312.15927); Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 5.

    Example:
        >>> float(squared_mmd(torch.tensor([[[0.0]]]), torch.tensor([[[1.0], [2.0]]]), linear))
        2.25
    """
    within_synthetic, between, within_real = kernel(synthetic, real, within)
    return (within_synthetic.mean((1, 2)) - 2 * between.mean((1, 2)) + within_real.mean((1, 2))).sum()


def gaussian_mixture(synthetic: Tensor, real: Tensor, within: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gram matrices of a sum of five Gaussians, exp(-d^2 / (w b)) for w in `WIDTHS`.

    The bandwidth b is the mean squared distance of distinct rows, synthetic and real together. It is computed for each
    class and carries no gradient, so that the images cannot shrink it instead of matching.

    Args:
        synthetic: Embeddings of the synthetic rows. (K, n, D).
        real: Embeddings of the real rows. (K, B, D).
        within: Squared distances of the real rows, if they are at hand. (K, B, B).

    Returns:
        (K, n, n), (K, n, B) and (K, B, B).

    References:
        Zhang et al., AAAI 2024; widths and bandwidth are those of code that builds on the authors' own.
    """
    within_synthetic = squared_distances(synthetic, synthetic)
    between = squared_distances(synthetic, real)
    within_real = squared_distances(real, real) if within is None else within
    rows = synthetic.shape[1] + real.shape[1]
    with torch.no_grad():
        total = within_synthetic.sum((1, 2)) + 2 * between.sum((1, 2)) + within_real.sum((1, 2))
        bandwidth = (total / (rows * (rows - 1))).clamp_min(_EPSILON)[:, None, None]  # (K, 1, 1)

    def gram(distances: Tensor) -> Tensor:
        # A Gaussian of half the width is the square of the wider one.
        mixture = gaussian = torch.exp(distances / (-WIDTHS[-1] * bandwidth))
        for _ in WIDTHS[1:]:
            gaussian = gaussian.square()
            mixture = mixture + gaussian
        return mixture

    return gram(within_synthetic), gram(between), gram(within_real)


def linear(synthetic: Tensor, real: Tensor, within: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return inner products; the squared MMD is then the objective of DM. Shapes as for `gaussian_mixture`.

    References:
        Zhang et al., AAAI 2024; code that builds on the authors' own has this kernel.
    """
    return synthetic @ synthetic.mT, synthetic @ real.mT, real @ real.mT if within is None else within


def polynomial(synthetic: Tensor, real: Tensor, within: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x'y / D + 1)^2 for dimension D: it compares means and covariances. Shapes as for `gaussian_mixture`.

    References:
        Zhang et al., AAAI 2024; code that builds on the authors' own has this kernel, without the division by D.
    """
    within_synthetic, between, within_real = (
        (gram / real.shape[-1] + 1).square() for gram in linear(synthetic, real, within)
    )
    return within_synthetic, between, within_real


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances, never negative: (K, n, D), (K, m, D) -> (K, n, m)."""
    squares = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


def normalised(embeddings: Tensor) -> Tensor:
    """Return rows (..., D) at length 1. A row of zeros, which has no direction, stays zero and gets no gradient."""
    squares = embeddings.square().sum(-1, keepdim=True)  # (..., 1)
    vanishes = squares <= _EPSILON**2
    return embeddings * torch.where(vanishes, 0.0, torch.where(vanishes, 1.0, squares).rsqrt())


def characteristic_function(embeddings: Tensor, frequencies: Tensor) -> Tensor:
    """Return the empirical characteristic function, the mean of exp(i t'x) over rows x, at some frequencies t.

    Args:
        embeddings: (..., n, D).
        frequencies: (F, D).

    Returns:
        Real and imaginary parts. (..., 2, F).
    """
    phases = embeddings @ frequencies.mT  # (..., n, F)
    return torch.stack([phases.cos().mean(-2), phases.sin().mean(-2)], -2)


def characteristic_discrepancy(
    synthetic: Tensor, real: Tensor, amplitude_weight: float = 0.5, phase_weight: float = 0.5
) -> Tensor:
    """Return the discrepancy of characteristic functions, averaged over frequencies.

    At each frequency, let A be the squared difference of the moduli and P the rest of the squared distance, which comes
    from the phases. The discrepancy is sqrt(amplitude_weight * A + phase_weight * P). With equal weights w, it is
    sqrt(w) times the distance. The mean over normal frequencies of that distance's square is the squared MMD of a
    Gaussian kernel.

    Args:
        synthetic: Characteristic function of the synthetic rows. (2, F).
        real: Characteristic function of the real rows. (2, F).
        amplitude_weight: Weight of the differences between moduli, >= 0.
        phase_weight: Weight of the differences between phases, >= 0.

    Returns:
        (). Its gradient is finite where the functions agree: there, the root is clamped.

    References:
        Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025,
        equations 7 and 8 (arXiv:2502.20653).

    Example:
        >>> function = torch.tensor([[1.0], [0.0]])
        >>> round(float(characteristic_discrepancy(-function, function)), 4)
        1.4142
    """
    # P is the squared distance minus A. Written as below, nothing cancels where the weights are equal.
    radicand = phase_weight * (synthetic - real).square().sum(0)  # (F,)
    if amplitude_weight != phase_weight:
        difference = _modulus(synthetic) - _modulus(real)
        radicand = radicand + (amplitude_weight - phase_weight) * difference.square()
    return radicand.clamp_min(_EPSILON).sqrt().mean()


def _modulus(function: Tensor) -> Tensor:
    """Return the moduli of complex numbers, with a finite gradient at zero: (2, F) -> (F,)."""
    return function.square().sum(0).clamp_min(_EPSILON**2).sqrt()


def parse_scales(scales: str) -> tuple[float, ...]:
    """Parse a mixture of scales such as `"0.5_1_2"`.

    Raises:
        ValueError: If a scale is not a positive, finite number.
    """
    try:
        numbers = tuple(float(scale) for scale in scales.split("_"))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"expected positive numbers joined by _, such as '0.5_1_2'; got {scales!r}")
    return numbers
