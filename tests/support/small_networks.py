"""Networks for small images, as the tests of networks make them."""

import torch
from torch import Tensor, nn

from hf_condense.networks.factory import NetworkFactory, network_factory


def factory(spec: object, channels: int = 3, side: int = 16, classes: int = 4) -> NetworkFactory:
    return network_factory(spec, channels=channels, image_size=(side, side), num_classes=classes)


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])
