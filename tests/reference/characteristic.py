"""Characteristic functions by the textbook: complex numbers, one row and one frequency at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def characteristic_function(rows: Tensor, frequency: Tensor) -> Tensor:
    """Return the mean of exp(i t'x) over rows (n, D) at one frequency (D,): a complex number."""
    terms = [torch.exp(1j * sum(t * x for t, x in zip(frequency, row, strict=True))) for row in rows]
    return sum(terms) / len(terms)


def discrepancy(synthetic: Tensor, real: Tensor, frequencies: Tensor, amplitude: float, phase: float) -> Tensor:
    """Return the discrepancy of one class: rows (n, D) and (B, D), frequencies (F, D)."""
    total = torch.zeros((), dtype=torch.float64)
    for frequency in frequencies:
        s, r = characteristic_function(synthetic, frequency), characteristic_function(real, frequency)
        from_amplitudes = (r.abs() - s.abs()) ** 2
        from_phases = 2 * (r.abs() * s.abs() - r.real * s.real - r.imag * s.imag)
        total = total + (amplitude * from_amplitudes + phase * from_phases).sqrt()
    return total / len(frequencies)


def gaussian_mmd(synthetic: Tensor, real: Tensor, scale: float) -> float:
    """Return the squared MMD with the kernel exp(-scale^2 |x - y|^2 / 2), by a double loop (biased estimator)."""

    def mean_kernel(first: Tensor, second: Tensor) -> float:
        kernels = [float(torch.exp(-(scale**2) * ((x - y) ** 2).sum() / 2)) for x in first for y in second]
        return sum(kernels) / len(kernels)

    return mean_kernel(synthetic, synthetic) - 2 * mean_kernel(synthetic, real) + mean_kernel(real, real)
