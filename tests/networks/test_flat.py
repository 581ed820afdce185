"""A network as a function of one vector gives what the network itself gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_condense.networks.flat import FlatNetwork, parameter_vector
from tests.support.small_networks import factory, weights


def without_embed(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """A user's network without a method `embed`."""
    pixels = channels * image_size[0] * image_size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 6), nn.Tanh(), nn.Linear(6, num_classes))


SPECS = ["convnet-w4-d1", "convnet-w4-d2-bn", "resnet18", without_embed]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS, ids=["convnet", "batch norm", "resnet18", "without embed"])
def test_logits_are_those_of_the_module(spec: object, images: Tensor) -> None:
    net, other = factory(spec).build(0), factory(spec).build(1)
    flat = FlatNetwork(net)
    for module in (net, other):
        vector = parameter_vector(module)
        torch.testing.assert_close(flat.logits(vector, images), module(images))
    assert not torch.allclose(net(images), other(images))


@pytest.mark.parametrize("spec", SPECS, ids=["convnet", "batch norm", "resnet18", "without embed"])
def test_the_module_is_never_changed(spec: object, images: Tensor) -> None:
    net = factory(spec).build(0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flat, vector = FlatNetwork(net), parameter_vector(factory(spec).build(1))
    flat.logits(vector, images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.state_dict().keys() == before.keys()


def test_gradients_for_the_vector_are_those_for_the_parameters(images: Tensor) -> None:
    net = factory("convnet-w4-d1").build(0).double()
    vector = parameter_vector(net).requires_grad_()
    direction = torch.randn_like(net(images.double()))
    (flat,) = torch.autograd.grad((FlatNetwork(net).logits(vector, images.double()) * direction).sum(), vector)
    expected = torch.autograd.grad((net(images.double()) * direction).sum(), list(net.parameters()))
    torch.testing.assert_close(flat, torch.cat([g.flatten() for g in expected]))


def test_parameter_vector_joins_the_parameters_bit_for_bit() -> None:
    net = factory("convnet-w4-d2-bn").build(0)
    next(net.parameters()).requires_grad_(False)
    vector = parameter_vector(net)
    assert torch.equal(vector, weights(net))
    assert not vector.requires_grad
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert not torch.equal(vector, weights(net)), "the vector should be a copy"
