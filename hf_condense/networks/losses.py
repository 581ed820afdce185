"""The loss of networks that are trained at a temperature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tempered_cross_entropy(
    logits: Tensor, targets: Tensor, temperature: float = 1.0, reduction: str = "mean", *, rows: int = 1
) -> Tensor:
    """Return the cross-entropy at a temperature, times its square, which keeps the size of gradients.

    Args:
        logits: (n, K). It is computed in float32 or wider, because networks may run under autocast.
        targets: Labels (n,) or probabilities (n, K).
        temperature: Divisor of the logits, > 0.
        reduction: "mean" or "sum" over the rows, or "none".
        rows: Divisor of the loss: of a sum, the rows over which a mean runs.

    Returns:
        (), or (n,) without a reduction.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2 (arXiv:1503.02531).
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(logits / temperature, targets, reduction=reduction) * (temperature**2 / rows)
