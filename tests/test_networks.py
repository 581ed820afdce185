"""Networks: sizes, options, weights under a key, second derivatives and what is said about bad input."""

import copy
import random
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hf_condense.networks import (
    ConvNet,
    NetworkFactory,
    activation_bytes,
    has_batch_statistics,
    list_networks,
    network_factory,
)


def factory(spec: object, channels: int = 3, side: int = 16, classes: int = 4) -> NetworkFactory:
    return network_factory(spec, channels=channels, image_size=(side, side), num_classes=classes)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


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


NORMS = {"in": nn.GroupNorm, "bn": nn.BatchNorm2d, "ln": nn.LayerNorm, "gn": nn.GroupNorm, "nonorm": None}
ACTIVATIONS = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
POOLINGS = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d, "nopool": None}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_combination_of_options(norm: str, activation: str, pooling: str) -> None:
    made = factory(f"convnet-{pooling}-w4-{norm}-d2-{activation}", side=9)
    net = made.build(0)
    kinds = [type(m) for m in net.modules()]
    for layer in (NORMS[norm], ACTIVATIONS[activation], POOLINGS[pooling]):
        assert layer is None or kinds.count(layer) == 2
    assert not any(kind in kinds for kind in {nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm} - {NORMS[norm]})
    x = torch.randn(3, 3, 9, 9)
    assert net(x).shape == (3, 4)
    assert net.embed(x).shape == (3, 4 * (9 * 9 if pooling == "nopool" else 3 * 3))
    assert has_batch_statistics(net) == (norm == "bn")
    assert factory(made.name, side=9).name == made.name


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
    made = factory(name)
    one, two = made.build(1), made.build(2)
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
    made = factory(name)
    torch.manual_seed(5)
    state, python_state = torch.get_rng_state(), random.getstate()
    first = made.build(0, "net", 1)
    factory(name).build(0, "other")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    torch.manual_seed(6)
    assert torch.equal(weights(first), weights(made.build(0, "net", 1)))
    assert not torch.equal(weights(first), weights(made.build(0, "net", 2)))
    assert first.training
    assert {t.device.type for t in first.state_dict().values()} == {"cpu"}
    assert all(torch.isfinite(t).all() for t in first.state_dict().values())


def test_networks_are_made_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        net = factory("convnet-w4").build(0)
    assert torch.equal(weights(net), weights(factory("convnet-w4").build(0)))


# --- torchvision's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "vgg11"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 64])
def test_torchvision_networks_take_small_images(name: str, channels: int, side: int) -> None:
    check_torchvision(name, channels, side)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "vgg11"])
@pytest.mark.parametrize("side", [16, 37, 70])
def test_torchvision_networks_take_unusual_sizes(name: str, side: int) -> None:
    check_torchvision(name, 3, side)


@torch.no_grad()
def check_torchvision(name: str, channels: int, side: int) -> None:
    net = factory(name, channels, side, 5).build(0)
    x = torch.randn(2, channels, side, side)
    logits, embedding = net(x), net.embed(x)
    assert logits.shape == (2, 5)
    assert embedding.shape == (2, 256 if name == "alexnet" else 512)
    head = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(head(embedding), logits)
    assert embedding.std(0).max() > 1e-3  # images can be told apart: no layer was left with a single pixel to normalise
    assert not has_batch_statistics(net)
    assert not any(isinstance(m, nn.Dropout) for m in net.modules())


@pytest.mark.parametrize(("name", "side", "stem", "resolution"), [
    ("resnet18", 32, 3, 32), ("resnet18", 64, 3, 64), ("resnet18", 96, 7, 48), ("alexnet", 32, 3, 32),
    ("alexnet", 96, 11, 23), ("vgg11", 32, 3, 32), ("vgg11", 28, 3, 32), ("vgg11", 96, 3, 96),
])  # fmt: skip
def test_small_images_keep_their_resolution_in_the_stem(name: str, side: int, stem: int, resolution: int) -> None:
    net = factory(name, side=side).build(0)
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    seen = []
    conv.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[-1]))
    net(torch.zeros(1, 3, side, side))
    assert (conv.kernel_size, seen) == ((stem, stem), [resolution])


@pytest.mark.parametrize(("name", "convolutions"), [("alexnet", 5), ("resnet18", 20), ("vgg11", 8)])
def test_norms_follow_every_convolution(name: str, convolutions: int) -> None:
    for suffix, norm in (("", nn.GroupNorm), ("-in", nn.GroupNorm), ("-bn", nn.BatchNorm2d)):
        kinds = [type(m) for m in factory(name + suffix).build(0).modules()]
        assert (kinds.count(nn.Conv2d), kinds.count(norm)) == (convolutions, convolutions)


def test_batch_norm_starts_from_its_usual_statistics() -> None:
    for module in factory("resnet18-bn").build(0).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))
            assert module.num_batches_tracked == 0


def test_every_listed_name_works() -> None:
    for name in list_networks():
        assert factory(name).build(0)(torch.zeros(2, 3, 16, 16)).shape == (2, 4)


# --- the user's own --------------------------------------------------------------------------------


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
    made = factory(Own, side=4)
    net = made.build(0)
    assert made.name == "Own"
    assert type(net) is Own
    assert net.embed(torch.zeros(2, 3, 4, 4)).shape == (2, 6)
    assert torch.equal(weights(net), weights(made.build(0)))


@pytest.mark.parametrize("spec", [plain, partial(plain, hidden=7)], ids=["function", "partial"])
def test_an_embedding_is_derived_from_the_last_linear_layer(spec: object) -> None:
    made = factory(spec, side=4)
    net = made.build(0).eval()
    assert made.name == "plain"
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
        ("convnet-w0", "width must be an integer of at least 1; got 0"),
        ("convnet-d0", "depth must be an integer of at least 1; got 0"),
        ("convnet-w6-gn", "multiple of 4; got 6"),
        ("convnet-d5", r"5 poolings leave nothing of 16x16 images: use images of at least 32 pixels"),
    ],
)
def test_bad_names_say_what_is_right(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factory(spec)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "vgg11"])
def test_too_small_for_torchvision(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} takes images of at least 16 pixels a side; got 15x15"):
        factory(name, side=15)


@pytest.mark.parametrize("option", ["norm", "activation", "pooling"])
def test_convnet_names_the_options_it_knows(option: str) -> None:
    with pytest.raises(ValueError, match=f"unknown {option} 'x'; known: "):
        ConvNet(3, 2, (8, 8), **{option: "x"})


def test_numbers_below_one() -> None:
    for wrong in ({"channels": 0}, {"num_classes": 0}, {"image_size": (0, 8)}):
        with pytest.raises(ValueError, match="at least 1; got 0"):
            network_factory("convnet", **{"channels": 1, "num_classes": 2, "image_size": (8, 8), **wrong})


def test_bad_callables_say_what_is_right() -> None:
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


# --- measures --------------------------------------------------------------------------------------


def test_activation_bytes_of_a_known_network() -> None:
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
