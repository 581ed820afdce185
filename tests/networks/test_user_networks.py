"""A user's own networks: their embeddings, the errors for bad ones, and the memory that networks take."""

import copy
from functools import partial

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from hf_condense.networks.architectures import ConvNet
from hf_condense.networks.factory import check_network
from hf_condense.networks.network_facts import activation_bytes
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
        (3, TypeError, "should be a name or a callable that returns a module; got int"),
        (lambda **_: "net", TypeError, "network '.*<lambda>' should return a torch.nn.Module; got str"),
        (no_head, ValueError, "has no nn.Linear; give it a method embed"),
        (unused, ValueError, "did not use its last linear layer 'extra.spare' in forward"),
        (lambda **size: plain(**{**size, "num_classes": 9}), ValueError, r"into logits \(2, 4\); got \(2, 9\)"),
        (FlatEmbedding, ValueError, r"into embeddings \(2, D\) with embed; got \(\)"),
    ):
        with pytest.raises(error, match=message):
            factory(spec, side=8)


class OfClasses(nn.Module):
    """A user's network that is made from the number of classes alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


class OtherNames(OfClasses):
    """A user's network whose argument has another name."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)


class Maker:
    """An object that makes networks."""

    def __call__(self, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
        return OfClasses(num_classes)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (OfClasses, "OfClasses"),
        (Maker(), "Maker"),
        (lambda num_classes: OfClasses(num_classes), "<lambda>"),
        (lambda: OfClasses(4), "<lambda>"),
        (partial(OtherNames, n_classes=4), "OtherNames"),
    ],
)
def test_a_callable_gets_only_the_keywords_that_it_takes(spec: object, name: str) -> None:
    networks = factory(spec, side=8)
    assert networks.name == name
    assert networks.build(0)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    "spec",
    [
        torchvision.models.resnet18,
        partial(torchvision.models.get_model, "mobilenet_v3_small"),
        partial(torchvision.models.vit_b_16, image_size=32),
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_constructor_of_torchvision_makes_networks_for_any_channels(spec: object, channels: int) -> None:
    net = factory(spec, channels=channels, side=32).build(0)
    assert net(torch.zeros(2, channels, 32, 32)).shape == (2, 4)
    assert net.embed(torch.zeros(2, channels, 32, 32)).ndim == 2


def test_with_three_channels_a_network_of_torchvision_is_left_as_it_is() -> None:
    net = factory(torchvision.models.resnet18, side=32).build(0).net
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.bias) == ((7, 7), (2, 2), None)
    grey = factory(torchvision.models.resnet18, channels=1, side=32).build(0).net
    assert (grey.conv1.in_channels, grey.conv1.kernel_size, grey.conv1.padding) == (1, (7, 7), (3, 3))
    assert grey.conv1.bias is None


def test_a_module_is_refused_with_what_to_pass() -> None:
    for check in (check_network, partial(factory, side=8)):
        with pytest.raises(TypeError, match=r"this OfClasses is one: many .* pass a function .*or the class itself"):
            check(OfClasses(4))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (OtherNames, r"'OtherNames' takes \(n_classes: int\).*missing a required argument: 'n_classes'; wrap it"),
        (lambda c, n, size, /: plain(c, n, size), r"takes \(c, n, size, /\), .* argument: 'c'; wrap it in a function"),
        (nn.Linear, "'Linear' takes .*in_features"),
    ],
)
def test_a_callable_that_takes_other_arguments_is_refused_with_those_it_should_take(spec: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        factory(spec, side=8)


def test_an_error_inside_a_callable_says_how_it_was_called() -> None:
    def broken(channels: int, **others: object) -> nn.Module:
        raise KeyError("width")

    call = r"broken\(channels=3, num_classes=4, image_size=\(8, 8\)\)"
    with pytest.raises(ValueError, match=f"{call} raised KeyError: 'width'") as info:
        factory(broken, side=8)
    assert isinstance(info.value.__cause__, KeyError)
    with pytest.raises(ValueError, match=r"resnet18\(num_classes=4\) raised ValueError: .*num_classes"):
        factory(partial(torchvision.models.resnet18, weights="DEFAULT"), side=32)


def test_an_error_in_a_forward_says_how_the_network_was_made() -> None:
    with pytest.raises(ValueError, match=r"made by OfClasses\(num_classes=4\), failed on two images \(2, 1, 8, 8\): "):
        factory(OfClasses, channels=1, side=8)
    with pytest.raises(
        ValueError, match=r"alexnet.* failed on .*; the name 'alexnet', as text, gives a version for sm"
    ):
        factory(torchvision.models.alexnet, side=32)
    with pytest.raises(ValueError, match=r"logits \(2, 4\); got GoogLeNetOutputs"):
        factory(partial(torchvision.models.googlenet, init_weights=False), side=32)


def test_networks_that_are_not_new_on_every_call_are_refused() -> None:
    always, sizes = OfClasses(4), iter(range(1, 9))
    with pytest.raises(ValueError, match=r"<lambda>\(\) returned one with the same weights twice"):
        factory(lambda: always, side=8)
    with pytest.raises(ValueError, match="returned one with tensors of other shapes the second time"):
        factory(lambda **facts: plain(**facts, hidden=next(sizes)), side=8)


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.Linear(192, 4, device="meta")], ids=["lazy", "meta"])
def test_weights_without_values_are_refused(layer: nn.Module) -> None:
    with pytest.raises(
        ValueError, match=r"should have weights; .* returned a Sequential with lazy layers, or with weights"
    ):
        factory(lambda: nn.Sequential(nn.Flatten(), copy.deepcopy(layer)), side=8)


def test_a_network_without_weights_is_refused() -> None:
    class Weightless(nn.Flatten):
        def embed(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(ValueError, match=r"should have weights to train; .*Weightless\(\) returned one without any"):
        factory(Weightless, side=2, channels=1)


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
