"""How many real images a network, or each network of a stack, classifies correctly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_condense.base.memory import memory_budget
from hf_condense.networks.batches import with_zero_rows
from hf_condense.networks.network_facts import activation_bytes
from hf_condense.source.class_source import ClassSource

_CPU_TEST_CHUNK = 64
_TEST_CHUNK = 1024  # on other devices


def images_per_test(net: nn.Module, test: ClassSource) -> int:
    """Return how many test images go through a network at a time: as many as fit into memory, up to a limit."""
    largest = _CPU_TEST_CHUNK if test.device.type == "cpu" else _TEST_CHUNK
    channels, height, width = test.image_shape
    plain_net = getattr(net, "_orig_mod", net)  # a compiled network holds the one that it was made from
    bytes_per_image = max(1, activation_bytes(plain_net, (channels, height, width)))
    return max(1, min(largest, len(test), memory_budget(test.device) // bytes_per_image))


def accuracy(net: nn.Module, test: ClassSource, outputs: Tensor) -> float:
    """Return the share of test images that a network classifies correctly, in [0, 1]. It is left in evaluation mode.

    Args:
        net: The network, possibly compiled.
        test: Real images, normalised as the network's training images were.
        outputs: The network's output that stands for each class of `test`. int64 (number of classes,).
    """
    return share_correct(predictions(net, test), test, outputs)


@torch.no_grad()
def predictions(net: nn.Module, test: ClassSource) -> Tensor:
    """Return the output of a network that is largest for every test image: int64 (N,), on the CPU.

    Args:
        net: The network, possibly compiled, or a stack of M networks: then the result is (N, M). It is left in
            evaluation mode.
        test: Real images, normalised as the network's training images were.
    """
    net.eval()
    size, parts = images_per_test(net, test), []
    for index in torch.arange(len(test)).split(size):
        images = with_zero_rows(test.at(index), size - len(index))  # so that compiled code sees one shape
        parts.append(net(images)[: len(index)].argmax(-1))  # (n,) or (n, M)
    return torch.cat(parts).cpu()


def share_correct(predicted: Tensor, test: ClassSource, outputs: Tensor) -> float:
    """Return the share of test images for which the predicted output (N,) is the one that stands for their class."""
    return int((predicted == outputs[test.labels]).sum()) / len(test)
