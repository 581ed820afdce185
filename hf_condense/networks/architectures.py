"""The networks: the ConvNet family, torchvision's networks for small images, and `embed` for any module."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_condense.base.checks import integer, one_of
from hf_condense.base.words import plural
from hf_condense.networks.instance_norm import InstanceNorm


class HalvingPool(nn.Module):
    """Average pooling over 2 x 2 pixels, for even sides.

    On a CPU, adding neighbours takes a third of the time of PyTorch's kernel, which reads one pixel after the other.
    They are unbound, not sliced: the derivative of a slice fills a whole image with zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the means: (B, C, H, W) -> (B, C, H / 2, W / 2)."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.avg_pool2d(x, 2)
        upper, lower = x.unflatten(2, (-1, 2)).unbind(3)  # (B, C, H / 2, W)
        left, right = (upper + lower).unflatten(3, (-1, 2)).unbind(4)  # (B, C, H / 2, W / 2)
        means: Tensor = (left + right) * 0.25
        return means


TORCHVISION: Final = ("alexnet", "resnet18", "vgg11")
_NORMS: Final = ("instance", "batch", "layer", "group", "none")
_ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "relu": partial(nn.ReLU, inplace=True),  # nobody needs the output of the norm before it
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}
_POOLINGS: Final[dict[str, Callable[[], nn.Module]]] = {
    "avg": HalvingPool,
    "max": partial(nn.MaxPool2d, 2),
    "none": nn.Identity,
}
_SMALL_SIDE: Final = 64  # Up to this side, torchvision's networks get a stem that keeps the resolution.
_SMALLEST_SIDE: Final = 16  # Below, their last layers would see a single pixel, which instance norm sets to zero.


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, normalisation, activation and 2x2 pooling, then one linear layer.

    Sides that the pooling does not divide are padded with zeros before the first convolution, so 28x28 becomes 32x32.

    Args:
        channels: Channels of an image (`int`, >= 1).
        num_classes: Number of logits (`int`, >= 1).
        image_size: Height and width of an image.
        width: Filters of every convolution (`int`, defaults to 128).
        depth: Number of blocks (`int`, >= 1). By default `max(1, round(log2(shorter side)) - 2)`: 3 for 28-32 pixels,
            4 for 64, 5 for 128.
        norm: `"instance"` (the default), `"batch"`, `"layer"`, `"group"` (4 groups) or `"none"`.
        activation: `"relu"` (the default), `"leakyrelu"`, `"sigmoid"` or `"gelu"`.
        pooling: `"avg"` (the default), `"max"` or `"none"`.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If an option is unknown, a number is below 1, or pooling would leave less than one pixel.

    References:
        Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018; as used by Zhao et al.,
        "Dataset Condensation with Gradient Matching", ICLR 2021, section 4 (arXiv:2006.05929).

    Example:
        >>> net = ConvNet(3, 10, (32, 32))
        >>> sum(p.numel() for p in net.parameters())
        320010
        >>> net.embed(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2048])
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        image_size: tuple[int, int],
        *,
        width: int = 128,
        depth: int | None = None,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        depth = default_depth(image_size) if depth is None else depth
        integer("channels", channels, least=1)
        integer("num_classes", num_classes, least=1)
        integer("width", width, least=1)
        integer("depth", depth, least=1)
        one_of("norm", norm, _NORMS)
        one_of("activation", activation, _ACTIVATIONS)
        one_of("pooling", pooling, _POOLINGS)
        if norm == "group" and width % 4:
            raise ValueError(f"group norm makes 4 groups, so the width must be a multiple of 4; got {width}")
        halvings = 0 if pooling == "none" else depth
        if min(image_size) < 2**halvings:
            raise ValueError(
                f"{halvings} {plural(halvings, 'pooling layer')} would leave nothing of "
                f"{image_size[0]}x{image_size[1]} images: use images of at least "
                f"{2**halvings}x{2**halvings} pixels, or a smaller depth"
            )
        padding, (h, w) = _pad_to_multiple(image_size, 2**halvings)
        layers: list[nn.Module] = [padding]
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1),
                _norm_layer(norm, width, (h, w)),
                _ACTIVATIONS[activation](),
                _POOLINGS[pooling](),
            ]
            h, w = (h, w) if pooling == "none" else (h // 2, w // 2)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * h * w, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the flattened output of the last block: (B, C, H, W) -> (B, D)."""
        return self.features(x).flatten(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (B, C, H, W) -> (B, K)."""
        return self.classifier(self.embed(x))  # type: ignore[no-any-return]


class WithEmbedding(nn.Module):
    """Give any network a method `embed`, which returns the input of its last linear layer.

    Args:
        net: A network from images to logits with at least one `nn.Linear`; the last one defined is taken as the head.

    Raises:
        ValueError: If `net` has no linear layer.

    Example:
        >>> net = WithEmbedding(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)))
        >>> net.embed(torch.zeros(4, 3, 2, 2)).shape
        torch.Size([4, 5])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise ValueError(
                f"cannot find an embedding in {type(net).__name__}: it has no nn.Linear; "
                "give it a method embed(x) that returns (B, D)"
            )
        self.head = linears[-1]

    def embed(self, x: Tensor) -> Tensor:
        """Return the input of the last linear layer: (B, C, H, W) -> (B, D)."""
        embeddings: list[Tensor] = []
        head = self.net.get_submodule(self.head)
        with head.register_forward_pre_hook(lambda _, inputs: embeddings.append(inputs[0])):
            self.net(x)
        if not embeddings:
            raise ValueError(
                f"{type(self.net).__name__} did not use its last linear layer {self.head!r} in forward; "
                "give it a method embed(x) that returns (B, D)"
            )
        return embeddings[-1].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits: (B, C, H, W) -> (B, K)."""
        return self.net(x)  # type: ignore[no-any-return]


def mlp(*, channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Return a perceptron with two hidden layers of 128 units and ReLU, with fresh weights.

    References:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, section 4 (arXiv:2006.05929).
    """
    height, width = image_size
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def lenet(*, channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Return LeNet-5 with ReLU and max pooling, with fresh weights.

    Sides of less than 32 pixels are padded with zeros up to 32, as LeCun et al. did with MNIST.

    References:
        LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE 1998; in the
        form of Zhao et al., ICLR 2021, section 4 (arXiv:2006.05929).
    """
    h, w = (max(side, 32) for side in image_size)
    padding = _pad_to(image_size, (h, w))
    h, w = (((side - 4) // 2 - 4) // 2 for side in (h, w))  # two convolutions without padding, each pooled
    return nn.Sequential(
        padding,
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * h * w, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def default_depth(image_size: tuple[int, int]) -> int:
    """Return the number of ConvNet blocks that leaves about 4x4 pixels."""
    return max(1, round(math.log2(min(image_size))) - 2)


def torchvision_network(
    base: str, *, channels: int, num_classes: int, image_size: tuple[int, int], norm: str = "instance"
) -> nn.Module:
    """Return one of torchvision's networks, made for small images, with fresh weights.

    It has no dropout, and its head is one linear layer on the mean of the last features. Images of up to 64 pixels get
    a stem that keeps their resolution.

    Args:
        base: A name in `TORCHVISION`.
        channels: Channels of an image (`int`, >= 1).
        num_classes: Number of logits (`int`, >= 1).
        image_size: Height and width of an image, each >= 16.
        norm: `"instance"` (the default) or `"batch"`.

    Raises:
        ValueError: If the images are smaller than 16 pixels.
    """
    from torchvision import models  # slow to import, and most runs need the ConvNet only

    if min(image_size) < _SMALLEST_SIDE:
        raise ValueError(
            f"{base} takes images of at least {_SMALLEST_SIDE}x{_SMALLEST_SIDE} pixels; "
            f"got {image_size[0]}x{image_size[1]}: use 'convnet', or a larger image_size"
        )
    make_norm = partial(_norm_layer, norm, size=image_size)
    with torch.device("meta"):  # The heads made for ImageNet are large and thrown away, so they get no memory.
        if base == "resnet18":
            net = models.resnet18(num_classes=num_classes, norm_layer=make_norm)
            _adapt_resnet(net, channels, image_size)
        else:
            net = models.alexnet() if base == "alexnet" else models.vgg11()
            _adapt_sequential(net, base, channels, num_classes, image_size, make_norm)
    reset_parameters(net.to_empty(device="cpu"))
    return net  # type: ignore[no-any-return]


def reset_parameters(net: nn.Module) -> None:
    """Draw the weights of a network afresh, layer after layer, and set its statistics back."""
    for module in net.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _adapt_resnet(net: Any, channels: int, image_size: tuple[int, int]) -> None:
    """Replace the stem of a ResNet by one for the given images."""
    net.conv1 = _stem(net.conv1, channels, image_size)
    if _is_small(image_size):
        net.maxpool = nn.Identity()


def _adapt_sequential(
    net: Any,
    base: str,
    channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    make_norm: Callable[[int], nn.Module],
) -> None:
    """Replace the stem and the head of an AlexNet or a VGG, and add a norm after every convolution."""
    first, *rest = net.features
    small = _is_small(image_size)
    if small and base == "alexnet":
        rest = [rest[0], *rest[2:]]  # without the pooling after the stem
    layers: list[nn.Module] = []
    if small and base == "vgg11":
        layers.append(_pad_to_multiple(image_size, 2**5)[0])  # it has five poolings
    for layer in (_stem(first, channels, image_size), *rest):
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(make_norm(layer.out_channels))
            width = layer.out_channels
    net.features, net.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Linear(width, num_classes)


def _is_small(image_size: tuple[int, int]) -> bool:
    return min(image_size) <= _SMALL_SIDE


def like(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return a convolution like another one, for images of some channels, with fresh weights."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)  # type: ignore[arg-type]


def _stem(conv: nn.Conv2d, channels: int, image_size: tuple[int, int]) -> nn.Conv2d:
    """Return a first convolution like `conv` for the given images; for small ones it keeps their resolution."""
    if _is_small(image_size):
        return nn.Conv2d(channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
    return like(conv, channels)


def _pad_to_multiple(size: tuple[int, int], multiple: int) -> tuple[nn.Module, tuple[int, int]]:
    """Return a layer that pads both sides of images evenly with zeros up to a multiple, and the padded size."""
    h, w = (side + -side % multiple for side in size)
    return _pad_to(size, (h, w)), (h, w)


def _pad_to(size: tuple[int, int], padded: tuple[int, int]) -> nn.Module:
    """Return a layer that pads images of one size evenly with zeros to another one."""
    if size == padded:
        return nn.Identity()
    missing_h, missing_w = padded[0] - size[0], padded[1] - size[1]
    left, top = missing_w // 2, missing_h // 2
    return nn.ZeroPad2d((left, missing_w - left, top, missing_h - top))


def _norm_layer(kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    """Return a layer that normalises (B, channels, *size)."""
    match kind:
        case "instance":
            return InstanceNorm(channels)  # as in the papers: affine, without running statistics
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.LayerNorm([channels, *size])
        case "group":
            return nn.GroupNorm(4, channels)
    return nn.Identity()
