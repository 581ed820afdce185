"""Sharpness-aware training: a gradient that leads to flatter minima."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_condense.networks.flat import gradient_of

_EPSILON = 1e-12  # keeps quotients of a zero gradient finite


@torch.no_grad()
def sharpen(net: nn.Module, accumulate: Callable[[], None], radius: float, gap: float) -> None:
    """Replace a network's gradient by one that leads to flatter minima. Its weights are the same afterwards.

    Args:
        net: The network, with its gradient at the present weights.
        accumulate: Adds the gradient of the same batch, at the weights that the network has then, to the network's.
        radius: Length of the step uphill, after which the gradient is taken (rho), > 0.
        gap: Weight of the surrogate gap (alpha), >= 0; 0 is plain SAM.

    References:
        Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 2 (arXiv:2010.01412); Zhuang et al.,
        "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1 (arXiv:2203.08065).
    """
    weights = [p for p in net.parameters() if p.grad is not None]
    plain = [gradient_of(p).clone() for p in weights]
    before = [p.clone() for p in weights]
    scale = radius / (_inner_product(plain, plain).sqrt() + _EPSILON)
    for p, g in zip(weights, plain, strict=True):
        p.add_(scale * g)
        gradient_of(p).zero_()
    with torch.enable_grad():
        accumulate()
    for p, original in zip(weights, before, strict=True):
        p.copy_(original)
    if gap:
        uphill = [gradient_of(p) for p in weights]
        along = _inner_product(plain, uphill) / (_inner_product(uphill, uphill) + _EPSILON)
        for g, u in zip(plain, uphill, strict=True):
            u.sub_(gap * (g - along * u))  # the part of the plain gradient that is orthogonal to the one uphill


def _inner_product(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, each taken as one vector."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
