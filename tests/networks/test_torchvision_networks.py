"""torchvision's networks: small images, norms and embeddings."""

import pytest
import torch
from torch import nn

from hf_condense.networks.architectures import torchvision_network
from hf_condense.networks.factory import list_networks
from hf_condense.networks.instance_norm import InstanceNorm
from hf_condense.networks.network_facts import has_batch_statistics
from tests.support.small_networks import factory


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


@pytest.mark.parametrize(
    ("name", "side", "stem", "resolution"),
    [
        ("resnet18", 32, 3, 32),
        ("resnet18", 64, 3, 64),
        ("resnet18", 96, 7, 48),
        ("alexnet", 32, 3, 32),
        ("alexnet", 96, 11, 23),
        ("vgg11", 32, 3, 32),
        ("vgg11", 28, 3, 32),
        ("vgg11", 96, 3, 96),
    ],
)
def test_small_images_keep_their_resolution_in_the_stem(name: str, side: int, stem: int, resolution: int) -> None:
    net = factory(name, side=side).build(0)
    conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    sides = []
    conv.register_forward_hook(lambda _, inputs, output: sides.append(output.shape[-1]))
    net(torch.zeros(1, 3, side, side))
    assert (conv.kernel_size, sides) == ((stem, stem), [resolution])


@pytest.mark.parametrize(("name", "convolutions"), [("alexnet", 5), ("resnet18", 20), ("vgg11", 8)])
def test_norms_follow_every_convolution(name: str, convolutions: int) -> None:
    for suffix, norm in (("", InstanceNorm), ("-in", InstanceNorm), ("-bn", nn.BatchNorm2d)):
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


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "vgg11"])
def test_images_too_small_for_torchvision_raise_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} takes images of at least 16x16 pixels; got 15x15"):
        factory(name, side=15)


@pytest.mark.parametrize(("size", "stem"), [((64, 96), 3), ((96, 64), 3), ((65, 96), 7)])
def test_shorter_side_decides_whether_images_are_small(size: tuple[int, int], stem: int) -> None:
    net = torchvision_network("resnet18", channels=3, num_classes=5, image_size=size)
    assert net.conv1.kernel_size == (stem, stem)
