"""What a network's structure says of its cost and its training, whatever its weights are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hf_condense.networks.factory import activation_bytes, has_batch_statistics
from hf_condense.networks.flat import parameter_bytes


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
