"""A user's own networks: their embeddings, the errors for bad ones, and the memory that networks take."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hf_condense.networks.architectures import ConvNet
from hf_condense.networks.factory import activation_bytes
from tests.support.small_networks import factory, weights


class Own(nn.Module):
    """A user's network with an embedding of its own."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Linear(channels * image_size[0] * image_size[1], 6)
        self.last = nn.Linear(6, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embed(x))


def plain(channels: int, num_classes: int, image_size: tuple[int, int], hidden: int = 7) -> nn.Module:
    inside = channels * image_size[0] * image_size[1]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inside, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, num_classes)
    )


def test_a_users_network_keeps_its_own_embedding() -> None:
    networks = factory(Own, side=4)
    net = networks.build(0)
    assert networks.name == "Own"
    assert type(net) is Own
    assert net.embed(torch.zeros(2, 3, 4, 4)).shape == (2, 6)
    assert torch.equal(weights(net), weights(networks.build(0)))


@pytest.mark.parametrize("spec", [plain, partial(plain, hidden=7)], ids=["function", "partial"])
def test_an_embedding_is_derived_from_the_last_linear_layer(spec: object) -> None:
    networks = factory(spec, side=4)
    net = networks.build(0).eval()
    assert networks.name == "plain"
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    inner = net.net
    torch.testing.assert_close(net.embed(x), inner[:4](x))
    torch.testing.assert_close(inner[4](net.embed(x)), net(x))
    (gradient,) = torch.autograd.grad(net.embed(x).sum(), x)
    assert gradient.abs().sum() > 0
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    assert len(inner[4]._forward_pre_hooks) == 0


def test_a_single_linear_layer_embeds_its_pixels() -> None:
    net = factory(
        lambda channels, num_classes, image_size: nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes)), side=2
    )
    x = torch.randn(3, 3, 2, 2)
    assert torch.equal(net.build(0).embed(x), x.flatten(1))


def test_bad_callables_raise_an_error_that_says_what_is_right() -> None:
    def no_head(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def unused(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        net = no_head(channels, num_classes, image_size)
        net.register_module("extra", nn.Identity())
        net.extra.spare = nn.Linear(2, 2)
        return net

    class FlatEmbedding(Own):
        def embed(self, x: Tensor) -> Tensor:
            return x.sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x.flatten(1)))

    for spec, error, message in (
        (3, TypeError, "must be a name or a callable that returns a module; got int"),
        (lambda **_: "net", TypeError, "must return a torch.nn.Module; it returned str"),
        (no_head, ValueError, "has no nn.Linear; give it a method embed"),
        (unused, ValueError, "did not use its last linear layer 'extra.spare' in forward"),
        (lambda **size: plain(**{**size, "num_classes": 9}), ValueError, r"logits \(2, 4\) .* returned \(2, 9\)"),
        (FlatEmbedding, ValueError, r"with embed, into \(2, D\); it returned \(2, 4\) and \(\)"),
    ):
        with pytest.raises(error, match=message):
            factory(spec, side=8)


def test_activation_bytes_equal_the_count_by_hand() -> None:
    """A block keeps what the convolution, the norm and the pooling read, and the statistics of the norm."""
    net = ConvNet(3, 2, (8, 8), width=4, depth=1)
    floats = 3 * 64 + 4 * 64 + 2 * 4 + 4 * 64 + 4 * 16
    assert activation_bytes(net, (3, 8, 8)) == 4 * floats


def test_activation_bytes_grow_with_the_network_and_leave_it_alone() -> None:
    small, large = (factory(f"convnet-w{w}-bn", side=8).build(0) for w in (4, 8))
    before, random_state = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    assert activation_bytes(large, (3, 8, 8)) > activation_bytes(small, (3, 8, 8)) > 0
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    small.requires_grad_(False)
    with torch.no_grad():
        assert activation_bytes(small, (3, 8, 8)) > 0
    assert activation_bytes(factory(plain, side=8).build(0), (3, 8, 8)) > 0
