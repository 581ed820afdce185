"""Networks: sizes, options, weights under a key, second derivatives, and the errors for bad input."""

import random

import pytest
import torch
from torch import Tensor, nn

from hf_condense.networks.architectures import ConvNet, HalvingPool
from hf_condense.networks.factory import list_networks, network_factory
from hf_condense.networks.instance_norm import InstanceNorm
from hf_condense.networks.network_facts import has_batch_statistics
from tests.support.small_networks import factory, weights


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- ConvNet ---------------------------------------------------------------------------------------


def test_the_default_on_cifar10_has_the_parameters_of_the_papers() -> None:
    net = factory("convnet", 3, 32, 10).build(0)
    assert count(net) == 320_010
    assert net.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)


@pytest.mark.parametrize(
    ("size", "depth", "embedding"),
    [
        ((28, 28), 3, 4 * 4),  # padded to 32
        ((32, 32), 3, 4 * 4),
        ((64, 64), 4, 4 * 4),
        ((128, 128), 5, 4 * 4),
        ((27, 29), 3, 4 * 4),
        ((33, 47), 3, 5 * 6),
        ((32, 65), 3, 4 * 9),
        ((8, 8), 1, 4 * 4),
        ((2, 3), 1, 1 * 2),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_convnet_takes_every_size(size: tuple[int, int], depth: int, embedding: int, channels: int) -> None:
    net = network_factory("convnet-w4", channels=channels, image_size=size, num_classes=5).build(0)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == depth
    x = torch.randn(2, channels, *size)
    assert net.embed(x).shape == (2, 4 * embedding)
    assert net(x).shape == (2, 5)
    torch.testing.assert_close(net(x), net.classifier(net.embed(x)))


def test_padding_of_28_is_that_of_the_papers_first_convolution() -> None:
    """Two zeros on every side before a convolution padded by 1 are a convolution padded by 3."""
    net = factory("convnet-w4", 1, 28).build(0)
    x = torch.randn(2, 1, 28, 28)
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(net.features[:2](x), nn.functional.conv2d(x, conv.weight, conv.bias, padding=3))


def test_convnet_equals_its_definition() -> None:
    net = ConvNet(2, 3, (8, 8), width=4, depth=2).double()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    p = dict(net.named_parameters())
    names = [n.rsplit(".", 1)[0] for n in p if n.endswith("weight")]
    out = x
    for conv, norm in (names[0:2], names[2:4]):
        out = nn.functional.conv2d(out, p[f"{conv}.weight"], p[f"{conv}.bias"], padding=1)
        mean, var = out.mean((2, 3), keepdim=True), out.var((2, 3), keepdim=True, unbiased=False)
        out = (out - mean) / (var + 1e-5).sqrt()
        out = (out * p[f"{norm}.weight"].reshape(-1, 1, 1) + p[f"{norm}.bias"].reshape(-1, 1, 1)).relu()
        out = out.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    torch.testing.assert_close(net.embed(x), out.flatten(1))
    torch.testing.assert_close(net(x), out.flatten(1) @ p["classifier.weight"].T + p["classifier.bias"])


def test_pooling_is_that_of_pytorch() -> None:
    x = torch.randn(2, 3, 6, 4, requires_grad=True)
    pooled = HalvingPool()(x)
    torch.testing.assert_close(pooled, nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(torch.autograd.grad(pooled.sum(), x)[0], torch.full_like(x, 0.25))


NORMS = {"in": InstanceNorm, "bn": nn.BatchNorm2d, "ln": nn.LayerNorm, "gn": nn.GroupNorm, "nonorm": None}
ACTIVATIONS = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
POOLINGS = {"avg": HalvingPool, "max": nn.MaxPool2d, "nopool": None}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_combination_of_options_builds_its_layers(norm: str, activation: str, pooling: str) -> None:
    networks = factory(f"convnet-{pooling}-w4-{norm}-d2-{activation}", side=9)
    net = networks.build(0)
    kinds = [type(m) for m in net.modules()]
    for layer in (NORMS[norm], ACTIVATIONS[activation], POOLINGS[pooling]):
        assert layer is None or kinds.count(layer) == 2
    assert not any(kind in kinds for kind in {nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, InstanceNorm} - {NORMS[norm]})
    x = torch.randn(3, 3, 9, 9)
    assert net(x).shape == (3, 4)
    assert net.embed(x).shape == (3, 4 * (9 * 9 if pooling == "nopool" else 3 * 3))
    assert has_batch_statistics(net) == (norm == "bn")
    assert factory(networks.name, side=9).name == networks.name


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("convnet", "convnet"),
        ("convnet-w128-d3-in-relu-avg", "convnet"),
        ("convnet-max-gelu-bn-d2-w32", "convnet-w32-d2-bn-gelu-max"),
        ("convnet-nopool-w8", "convnet-w8-nopool"),
        ("resnet18-in", "resnet18"),
        ("vgg11-bn", "vgg11-bn"),
    ],
)
def test_names_are_canonical(given: str, canonical: str) -> None:
    assert factory(given, side=32).name == canonical


@pytest.mark.parametrize(
    ("spec", "at_64", "blocks", "at_128"),
    [
        ("convnet-w4", "convnet-w4", 4, "convnet-w4"),
        ("convnet-w4-d5", "convnet-w4-d5", 5, "convnet-w4"),
        ("convnet-w4-d4", "convnet-w4", 4, "convnet-w4-d4"),
    ],
)
def test_network_at_another_size_is_what_the_spec_asks_for_there(
    spec: str, at_64: str, blocks: int, at_128: str
) -> None:
    large = factory(spec, side=128)
    small = large.at_size((64, 64))
    assert (large.name, small.name, small.image_size) == (at_128, at_64, (64, 64))
    assert sum(isinstance(m, nn.Conv2d) for m in small.build(0).modules()) == blocks
    assert small.at_size((128, 128)).name == at_128


def test_second_derivatives_reach_the_images() -> None:
    """What gradient matching needs: the gradient, for the images, of the gradient for the weights."""
    for norm in NORMS:
        net = factory(f"convnet-w4-d2-gelu-{norm}", 2, 8, 3).build(norm).double()
        label = torch.tensor([0, 2])

        def weight_gradient(x: Tensor, net: nn.Module = net, label: Tensor = label) -> Tensor:
            loss = nn.functional.cross_entropy(net(x), label)
            return torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), create_graph=True)]
            )

        x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
        direction = torch.randn_like(weight_gradient(x))
        (exact,) = torch.autograd.grad(weight_gradient(x) @ direction, x)
        step = 1e-5 * torch.randn_like(x)
        with torch.no_grad():
            ahead, behind = x + step, x - step
        change = (weight_gradient(ahead) - weight_gradient(behind)) @ direction
        torch.testing.assert_close(change.detach(), 2 * (exact * step).sum(), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "vgg11", "convnet-w4"])
def test_second_derivatives_exist_for_every_network(name: str) -> None:
    net = factory(name, side=16).build(0)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    gradients = torch.autograd.grad(net(x).logsumexp(1).sum(), list(net.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


@pytest.mark.parametrize("name", ["convnet-w4", "resnet18"])
def test_functional_call_uses_the_weights_it_is_given(name: str) -> None:
    networks = factory(name)
    one, two = networks.build(1), networks.build(2)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(torch.func.functional_call(one, dict(two.named_parameters()), (x,)), two(x))
    student = {k: p.detach().requires_grad_() for k, p in one.named_parameters()}
    gradients = torch.autograd.grad(torch.func.functional_call(one, student, (x,)).sum(), list(student.values()))
    assert all(torch.isfinite(g).all() for g in gradients)


def test_convnet_is_captured_whole_by_the_compiler() -> None:
    net = factory("convnet-w4", 1, 28).build(0)
    x = torch.randn(2, 1, 28, 28)
    for plain in (net, net.embed):
        compiled = torch.compile(plain, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), plain(x))


# --- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alexnet-bn", "convnet-w4", "resnet18"])
def test_the_key_decides_the_weights_and_global_generators_are_untouched(name: str) -> None:
    networks = factory(name)
    torch.manual_seed(5)
    state, python_state = torch.get_rng_state(), random.getstate()
    first = networks.build(0, "net", 1)
    factory(name).build(0, "other")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    torch.manual_seed(6)
    assert torch.equal(weights(first), weights(networks.build(0, "net", 1)))
    assert not torch.equal(weights(first), weights(networks.build(0, "net", 2)))
    assert first.training
    assert {t.device.type for t in first.state_dict().values()} == {"cpu"}
    assert all(torch.isfinite(t).all() for t in first.state_dict().values())


@pytest.mark.parametrize(
    "name",
    [
        *list_networks(),
        *(f"convnet-w4-d2-{norm}" for norm in ("bn", "ln", "gn", "nonorm")),
        *(f"{name}-bn" for name in ("alexnet", "resnet18", "vgg11")),
        "shufflenet_v2_x0_5",  # as torchvision makes it
    ],
)
@pytest.mark.parametrize("side", [16, 65])
def test_fresh_networks_equal_built_ones_whatever_became_of_the_last_one(name: str, side: int) -> None:
    networks = factory(name, side=side)
    used = networks.fresh(0, "net", 1)
    used(torch.randn(2, 3, side, side)).square().sum().backward()  # batch norm updates its statistics
    torch.optim.SGD(used.parameters(), lr=1).step()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fresh, built = networks.fresh(0, "net", 2), networks.build(0, "net", 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(fresh.state_dict()) == list(built.state_dict())
    for name, tensor in built.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_only_networks_that_draw_in_their_layers_alone_are_drawn_afresh() -> None:
    named, own = factory("convnet-w4"), factory(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    assert named.fresh(0) is named.fresh(1)
    assert own.fresh(0) is not own.fresh(1)


def test_networks_are_made_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        net = factory("convnet-w4").build(0)
    assert torch.equal(weights(net), weights(factory("convnet-w4").build(0)))


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convnett", r"unknown network 'convnett'; known: alexnet, convnet, .*; did you mean 'convnet'\?"),
        ("", "unknown network ''"),
        (
            "convnet-leakyrel",
            r"unknown option 'leakyrel' .* known for convnet: w<filters>, .*did you mean 'leakyrelu'\?",
        ),
        ("convnet-", "unknown option ''"),
        ("resnet18-w32", "unknown option 'w32' .* known for resnet18: in, bn"),
        ("convnet-bn-in", "gives its norm twice"),
        ("convnet-w8-w9", "gives its width twice"),
        ("convnet-w0", "width should be at least 1; got 0"),
        ("convnet-d0", "depth should be at least 1; got 0"),
        ("convnet-w6-gn", "multiple of 4; got 6"),
        ("convnet-d5", r"5 pooling layers would leave nothing of 16x16 images: use images of at least 32x32 pixels"),
    ],
)
def test_bad_names_say_what_is_right(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factory(spec)


@pytest.mark.parametrize("option", ["norm", "activation", "pooling"])
def test_unknown_options_of_the_convnet_raise_value_error(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} should be one of '.*'; got 'x'"):
        ConvNet(3, 2, (8, 8), **{option: "x"})


def test_numbers_below_one_raise_value_error() -> None:
    for wrong in ({"channels": 0}, {"num_classes": 0}, {"image_size": (0, 8)}):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            network_factory("convnet", **{"channels": 1, "num_classes": 2, "image_size": (8, 8), **wrong})


def test_each_side_is_padded_evenly_by_what_it_lacks_itself() -> None:
    padded = ConvNet(1, 3, (28, 32), width=4, depth=3).features[0](torch.ones(1, 1, 28, 32))
    expected = torch.zeros(1, 1, 32, 32)
    expected[:, :, 2:30] = 1
    assert torch.equal(padded, expected)
