"""Gradients that look for flat minima: sharpness-aware training (SAM) and the surrogate gap (GSAM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_EPSILON = 1e-12


@torch.no_grad()
def sharpen(net: nn.Module, accumulate: Callable[[], None], radius: float, gap: float) -> None:
    """Replace a network's gradient by one that leads to flatter minima. Its weights are the same afterwards.

    Args:
        net: The network, whose gradient at its weights has been computed.
        accumulate: Adds the gradient of the same batch at the present weights to the network's.
        radius: How far uphill the gradient is taken instead (rho), > 0.
        gap: Weight of the surrogate gap (alpha), >= 0; 0 is plain SAM.

    Reference:
        Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 2 (arXiv:2010.01412); Zhuang et al.,
        "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1 (arXiv:2203.08065).
    """
    weights = [p for p in net.parameters() if p.grad is not None]
    here = [_gradient(p).clone() for p in weights]
    before = [p.clone() for p in weights]
    scale = radius / (_inner(here, here).sqrt() + _EPSILON)
    for p, g in zip(weights, here, strict=True):
        p.add_(scale * g)
        _gradient(p).zero_()
    with torch.enable_grad():
        accumulate()
    for p, kept in zip(weights, before, strict=True):
        p.copy_(kept)
    if gap:
        uphill = [_gradient(p) for p in weights]
        along = _inner(here, uphill) / (_inner(uphill, uphill) + _EPSILON)
        for g, u in zip(here, uphill, strict=True):
            u.sub_(gap * (g - along * u))  # what the gradient here has across the one uphill


def _gradient(parameter: Tensor) -> Tensor:
    """Return a gradient that is known to be there."""
    assert parameter.grad is not None
    return parameter.grad


def _inner(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Inner product of all tensors as one vector."""
    found: Tensor = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    return found
