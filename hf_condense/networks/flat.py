"""A network as a function of one vector: all its parameters, frozen ones too, joined in the module's order."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FlatNetwork:
    """A network whose parameters are handed in as one vector (P,), so that whole trainings can be differentiated.

    Args:
        net: The network; it is used for its structure, in the mode that it is in, and never changed.

    Attributes:
        size: Number of parameters P.
        blocks: Place in the vector of every tensor with two or more dimensions: weights, not biases, nor most norms.

    Example:
        >>> net = FlatNetwork(nn.Linear(2, 1))
        >>> net.size, net.blocks
        (3, [slice(0, 2, None)])
        >>> net.logits(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0, 1.0]]))
        tensor([[6.]])
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._shapes = {name: parameter.shape for name, parameter in net.named_parameters()}
        self._counts = [math.prod(shape) for shape in self._shapes.values()]
        self.size = sum(self._counts)
        stops = torch.tensor([0, *self._counts]).cumsum(0).tolist()
        self.blocks = [
            slice(start, start + count)
            for start, count, shape in zip(stops, self._counts, self._shapes.values(), strict=False)
            if len(shape) > 1
        ]

    def logits(self, vector: Tensor, images: Tensor) -> Tensor:
        """Classify images with the parameters of a vector: (P,), (N, C, H, W) -> (N, K)."""
        parts = vector.split(self._counts)
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        # Copies, because batch norm in training mode writes into its running statistics.
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        found: Tensor = functional_call(self.net, {**named, **buffers}, (images,))
        return found


def parameter_vector(net: nn.Module) -> Tensor:
    """Return a copy of a network's parameters as one vector (P,), on the CPU.

    A copy, because what `detach().cpu()` gives on a CPU is the live weights themselves.
    """
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]).cpu()
