"""The multilayer perceptron, LeNet, and torchvision's classifiers by name."""

import pytest
import torch
import torchvision.models
from torch import nn

from hf_condense.networks.factory import check_network
from tests.support.small_networks import factory


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_classics_on_mnist_have_the_parameters_of_the_papers() -> None:
    assert count(factory("lenet", 1, 28, 10).build(0)) == 61_706
    assert count(factory("mlp", 1, 28, 10).build(0)) == 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10


def test_padding_of_28_is_that_of_lenets_first_convolution() -> None:
    net = factory("lenet", 1, 28).build(0)
    x = torch.randn(2, 1, 28, 28)
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(net.net[:2](x), nn.functional.conv2d(x, conv.weight, conv.bias, padding=2))


@pytest.mark.parametrize(("side", "features"), [(8, 16 * 5 * 5), (32, 16 * 5 * 5), (40, 16 * 7 * 7)])
@pytest.mark.parametrize("channels", [1, 3])
def test_lenet_takes_every_size(side: int, features: int, channels: int) -> None:
    net = factory("lenet", channels, side, 5).build(0)
    first = next(m for m in net.modules() if isinstance(m, nn.Linear))
    assert first.in_features == features
    x = torch.randn(2, channels, side, side)
    assert net(x).shape == (2, 5)
    assert net.embed(x).shape == (2, 84)


def test_the_perceptron_embeds_by_its_last_hidden_layer() -> None:
    net = factory("mlp", side=4).build(0)
    x = torch.randn(2, 3, 4, 4)
    assert net.embed(x).shape == (2, 128)
    torch.testing.assert_close(net.net[-1](net.embed(x)), net(x))


@pytest.mark.parametrize("name", ["mlp-w8", "lenet-bn"])
def test_options_of_the_classics_are_refused(name: str) -> None:
    base, suffix = name.split("-")
    with pytest.raises(ValueError, match=f"unknown option '{suffix}' in network '{name}'; known for {base}: none"):
        check_network(name)


def test_a_classifier_of_torchvision_is_made_by_its_name() -> None:
    networks = factory("shufflenet_v2_x0_5", 1, 32, 5)
    assert (networks.name, networks.named) == ("shufflenet_v2_x0_5", True)
    assert count(networks.build(0)) == count(factory(torchvision.models.shufflenet_v2_x0_5, 1, 32, 5).build(0))
    assert count(factory("resnet18").build(0)) != count(torchvision.models.resnet18(num_classes=4)), "ours comes first"


def test_an_unknown_name_leads_to_the_nearest_one_of_torchvision() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'mobilnet_v2'; known: .*did you mean 'mobilenet_v2'\?"):
        check_network("mobilnet_v2")
