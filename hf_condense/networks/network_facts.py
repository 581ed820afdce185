"""What a network's structure says of its cost and its training, whatever its weights are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_condense.base.memory import graph_bytes
from hf_condense.base.rng import seeded_globals


@dataclass(frozen=True)
class NetworkFacts:
    """Facts that all networks of a kind share.

    Attributes:
        activation_bytes: Bytes that the forward pass of one image keeps for the backward pass, without the weights.
        parameter_bytes: Bytes of all parameters.
        batch_statistics: Whether an image's output depends on its neighbours in the batch.
        frozen: Names of the parameters that are not trained.
    """

    activation_bytes: int
    parameter_bytes: int
    batch_statistics: bool
    frozen: tuple[str, ...]

    @classmethod
    def of(cls, net: nn.Module, image_shape: tuple[int, ...]) -> NetworkFacts:
        """Return the facts of a network for images of a shape (C, H, W). It stays as it is.

        Example:
            >>> NetworkFacts.of(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
            NetworkFacts(activation_bytes=48, parameter_bytes=260, batch_statistics=False, frozen=())
        """
        frozen = tuple(name for name, parameter in net.named_parameters() if not parameter.requires_grad)
        return cls(activation_bytes(net, image_shape), parameter_bytes(net), has_batch_statistics(net), frozen)


def has_batch_statistics(net: nn.Module) -> bool:
    """Return whether a network normalises over the batch, so that an image's output depends on its neighbours."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def activation_bytes(net: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Return how many bytes the forward pass of one image keeps for the backward pass, without the weights.

    The network runs once, on its own device. Its buffers and the global generators stay as they are.

    Args:
        net: Any network from images to logits.
        image_shape: (channels, height, width) of an image, or whatever else the network takes for one.

    Example:
        >>> activation_bytes(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))  # the 12 floats of the image
        48
    """
    weight = next(net.parameters(), torch.empty(0))
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    images = torch.zeros(2, *image_shape, device=weight.device, dtype=weight.dtype)  # batch norm needs two images
    images.requires_grad_()
    with seeded_globals("activation_bytes", devices=[weight.device]):
        kept = graph_bytes(
            lambda: torch.func.functional_call(net, buffers, (images,)), (*net.parameters(), *buffers.values())
        )
    return kept // len(images)


def parameter_count(net: nn.Module) -> int:
    """Return the number P of a network's parameters, frozen ones too.

    Example:
        >>> parameter_count(nn.Linear(2, 1)), parameter_bytes(nn.Linear(2, 1))
        (3, 12)
    """
    return sum(parameter.numel() for parameter in net.parameters())


def parameter_bytes(net: nn.Module) -> int:
    """Return the size of a network's parameters in bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
