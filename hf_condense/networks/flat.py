"""A network as a function of one vector, which holds all its parameters (frozen ones too) in the module's order."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from hf_condense.base.devices import to_device


class FlatNetwork:
    """A network that takes its parameters as one vector (P,), so that whole trainings can be differentiated.

    Args:
        net: The network, which gives the structure and the mode (training or evaluation) and is never changed.

    Attributes:
        size: Number of parameters P.
        blocks: Where in the vector each tensor with two or more dimensions is: weights, but no biases and few norms.

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
        """Return the logits of images under the parameters in a vector: (P,), (N, C, H, W) -> (N, K)."""
        logits: Tensor = functional_call(self.net, self._tensors(vector), (images,))
        return logits

    def _tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the parameters that a vector holds, and copies of the network's buffers, by name."""
        parts = vector.split(self._counts)
        parameters = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        # The buffers are copied because batch norm in training mode writes into its running statistics.
        return {**parameters, **{name: buffer.clone() for name, buffer in self.net.named_buffers()}}


def parameter_vector(net: nn.Module) -> Tensor:
    """Return a copy of a network's parameters as one vector (P,), on the CPU and without a graph."""
    return parameters_to_vector(net.parameters()).detach().cpu()


@torch.no_grad()
def copy_state(net: nn.Module, fresh: nn.Module) -> None:
    """Overwrite the parameters and buffers of a network by those of another one of the same kind.

    On a GPU, all numbers of a type go over in one copy, for which the host does not wait.

    Args:
        net: The network that is overwritten, on any device.
        fresh: The other network, on the CPU.
    """
    state = fresh.state_dict()
    device = next(net.parameters()).device
    if device.type == "cpu" or not all(isinstance(tensor, Tensor) for tensor in state.values()):  # a module's own facts
        net.load_state_dict(state)
        return
    names = defaultdict(list)
    for name, tensor in state.items():
        names[tensor.dtype].append(name)
    for group in names.values():
        numbers = to_device(torch.cat([state[name].flatten() for name in group]), device)
        state.update(zip(group, numbers.split([state[name].numel() for name in group]), strict=True))
    for name, tensor in net.state_dict().items():
        tensor.copy_(state[name].view_as(tensor))


def gradient_of(tensor: Tensor) -> Tensor:
    """Return the gradient of a tensor that has one."""
    assert tensor.grad is not None
    return tensor.grad
