"""Make networks by name (the ConvNet family, classics, torchvision's) or by the user's own callable."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from hf_condense.base.checks import integer
from hf_condense.base.errors import did_you_mean
from hf_condense.base.rng import Key, seeded_globals
from hf_condense.networks.architectures import (
    TORCHVISION,
    ConvNet,
    WithEmbedding,
    default_depth,
    lenet,
    mlp,
    reset_parameters,
    torchvision_network,
)
from hf_condense.networks.user_networks import OwnNetwork, check_own

NetworkSpec = str | Callable[..., nn.Module]

# Each suffix in a network's name sets an option of the ConvNet to a value.
_SUFFIXES: Final = {
    "in": ("norm", "instance"),
    "bn": ("norm", "batch"),
    "ln": ("norm", "layer"),
    "gn": ("norm", "group"),
    "nonorm": ("norm", "none"),
    "relu": ("activation", "relu"),
    "leakyrelu": ("activation", "leakyrelu"),
    "sigmoid": ("activation", "sigmoid"),
    "gelu": ("activation", "gelu"),
    "avg": ("pooling", "avg"),
    "max": ("pooling", "max"),
    "nopool": ("pooling", "none"),
}
_PLAIN: Final[dict[str, Callable[..., nn.Module]]] = {"lenet": lenet, "mlp": mlp}  # networks without options
_DEFAULTS: Final = {"width": 128, "norm": "instance", "activation": "relu", "pooling": "avg"}


@dataclass(frozen=True)
class NetworkFactory:
    """Build networks of one kind, with fresh weights for every key. `network_factory` returns one.

    Attributes:
        name: The canonical name, which leaves out options at their default. For a callable, its qualified name.
        channels: Channels of an image.
        image_size: Height and width of an image.
        num_classes: Number of logits.
        make: What makes a network, given the keywords `channels`, `num_classes` and `image_size`.
        spec: What the caller asked for. The name leaves out a depth that is the default at this size, but the caller
            wants it at other sizes too.
        named: Whether the name alone says what the network is. It does not for a callable, so nothing is cached under
            that name.
        renews: Whether `reset_parameters` makes a network what a new one would be: each layer draws its weights when it
            is made, in the order of `modules()`, and nothing else is drawn.
    """

    name: str
    channels: int
    image_size: tuple[int, int]
    num_classes: int
    make: Callable[..., nn.Module] = field(repr=False)
    spec: NetworkSpec = field(repr=False)
    named: bool = True
    renews: bool = False

    def build(self, *key: Key) -> nn.Module:
        """Return a network with fresh weights, on the CPU and in training mode.

        Args:
            *key: Address of the weights (see `rng.key_seed`). The same key gives the same weights, and the global
                generators stay as they are.

        Returns:
            A module from (B, C, H, W) to (B, K), with a method `embed` to (B, D).

        Raises:
            TypeError: If the user's callable cannot be called with these keywords, or does not return a module.
            ValueError: If the user's callable raises an error.
        """
        with seeded_globals(*key), torch.device("cpu"):
            net = self.make(channels=self.channels, num_classes=self.num_classes, image_size=self.image_size)
        net = net if callable(getattr(net, "embed", None)) else WithEmbedding(net)
        return net.cpu().train()

    def fresh(self, *key: Key) -> nn.Module:
        """Return a network with the parameters and buffers of `build`, to be read before the next call overwrites them.

        Drawing new weights for the layers of one module takes a fraction of the time in which layers are made.

        Args:
            *key: Address of the weights, as for `build`.
        """
        if not self.renews:
            return self.build(*key)
        with seeded_globals(*key):
            reset_parameters(self._kept)
        return self._kept

    @cached_property
    def _kept(self) -> nn.Module:
        """The module that `fresh` returns."""
        return self.build("kept")

    def at_size(self, image_size: tuple[int, int]) -> NetworkFactory:
        """Return the factory of the networks that the same spec asks for, for images of another height and width.

        Raises:
            ValueError: If the network cannot take such images; see `network_factory`.
        """
        return network_factory(self.spec, channels=self.channels, image_size=image_size, num_classes=self.num_classes)


def network_factory(
    spec: NetworkSpec, *, channels: int, image_size: tuple[int, int], num_classes: int
) -> NetworkFactory:
    """Return the factory of the networks that `spec` asks for, after it has built one to see that it works.

    Args:
        spec: A name (see `list_networks`), the name of a classifier in `torchvision.models` (such as `"mobilenet_v2"`),
            or a callable that returns a new module from (B, C, H, W) to (B, K): a function or a class. It is called
            with those of the keywords `channels`, `num_classes` and `image_size` that it takes; torchvision's own, such
            as `torchvision.models.resnet18`, work too. If the module has no `embed`, the input of its last `nn.Linear`
            is its embedding.
        channels: Channels of an image (`int`, >= 1).
        image_size: Height and width of an image.
        num_classes: Number of logits (`int`, >= 1).

    Raises:
        ValueError: If the name or an option in it is unknown, a number is below 1, the images are too small for the
            network, the callable raises an error, returns the same module twice or modules of different shapes, or
            the network returns logits or embeddings of another shape.
        TypeError: If `spec` is neither text nor callable, or is a module, it does not make a module, or a number is not
            an integer.

    Example:
        >>> network_factory("convnet-avg-w32", channels=1, image_size=(28, 28), num_classes=10).name
        'convnet-w32'
    """
    integer("channels", channels, least=1)
    integer("num_classes", num_classes, least=1)
    integer("height", image_size[0], least=1)
    integer("width", image_size[1], least=1)
    builder = _torchvision_builder(spec) if isinstance(spec, str) else spec
    if isinstance(spec, str) and builder is None:
        name, make = _parse(spec, image_size)
        factory = NetworkFactory(name, channels, image_size, num_classes, make, spec, renews=True)
        factory.build("check")
        return factory
    check_own(builder)
    own = OwnNetwork(builder)  # type: ignore[arg-type]
    name = spec if isinstance(spec, str) else own.name
    factory = NetworkFactory(name, channels, image_size, num_classes, own, spec, named=isinstance(spec, str))
    _check_built_network(factory, own)
    return factory


def check_network(spec: NetworkSpec) -> None:
    """Check what can be known of a network before there are images: its name and options, or that it can be called.

    Raises:
        ValueError: If the name or an option in it is unknown.
        TypeError: If `spec` is neither text nor callable, or is a module.
    """
    if not isinstance(spec, str):
        check_own(spec)
    elif _torchvision_builder(spec) is None:
        _parse(spec, (32, 32))  # The size only decides which depth is the default.


def list_networks() -> list[str]:
    """Return the names of the networks, without their options.

    Options are added to a name with hyphens, in any order. `convnet` takes `-w<filters>`, `-d<blocks>`, a norm (`-in`,
    `-bn`, `-ln`, `-gn`, `-nonorm`), an activation (`-relu`, `-leakyrelu`, `-sigmoid`, `-gelu`) and a pooling (`-avg`,
    `-max`, `-nopool`); `alexnet`, `resnet18` and `vgg11` take `-in` or `-bn`. Instance norm, ReLU and average pooling
    are the defaults.

    Every classifier of `torchvision.models` can be named as well, such as `"mobilenet_v2"`; it is used as torchvision
    makes it.

    Example:
        >>> list_networks()
        ['alexnet', 'convnet', 'lenet', 'mlp', 'resnet18', 'vgg11']
    """
    return sorted(("convnet", *_PLAIN, *TORCHVISION))


def _parse(spec: str, image_size: tuple[int, int]) -> tuple[str, Callable[..., nn.Module]]:
    """Return the canonical form of a network's name, and what makes the network."""
    base, *suffixes = spec.split("-")
    names = list_networks()
    if base not in names:
        raise ValueError(
            f"unknown network {spec!r}; known: {', '.join(names)}, and the classifiers of torchvision.models, such as "
            f"mobilenet_v2{_nearest_name(spec)}"
        )
    options: dict[str, Any] = {}
    for suffix in suffixes:
        option, value = _parse_suffix(suffix, base, spec)
        if option in options:
            raise ValueError(f"network {spec!r} gives its {option} twice; give it once")
        options[option] = value
    defaults = {**_DEFAULTS, "depth": default_depth(image_size)}
    options = {option: value for option, value in options.items() if value != defaults[option]}
    numbers = [f"{option[0]}{options[option]}" for option in ("width", "depth") if option in options]
    words = [suffix for suffix, (option, value) in _SUFFIXES.items() if options.get(option) == value]
    make = ConvNet if base == "convnet" else _PLAIN.get(base) or partial(torchvision_network, base)
    return "-".join([base, *numbers, *words]), partial(make, **options)


def _nearest_name(spec: str) -> str:
    """Ask whether the network was meant whose name is closest, also without the hyphens that stand before options."""
    names = [*list_networks(), *_torchvision_names()]
    whole = spec.replace("-", "")
    return did_you_mean(whole if whole in names else spec.partition("-")[0], names)


def _parse_suffix(suffix: str, base: str, spec: str) -> tuple[str, Any]:
    """Return the option that a suffix sets, and its value."""
    if base == "convnet" and (number := re.fullmatch(r"([wd])(\d+)", suffix)):
        return {"w": "width", "d": "depth"}[number[1]], int(number[2])
    words = [] if base in _PLAIN else ["in", "bn"] if base in TORCHVISION else list(_SUFFIXES)
    if suffix not in words:
        suffixes = ["w<filters>", "d<blocks>", *words] if base == "convnet" else words
        raise ValueError(
            f"unknown option {suffix!r} in network {spec!r}; known for {base}: {', '.join(suffixes) or 'none'}"
            f"{did_you_mean(suffix, suffixes)}"
        )
    return _SUFFIXES[suffix]


def _torchvision_builder(name: str) -> Callable[..., nn.Module] | None:
    """Return the function of torchvision that makes a classifier, if its name is none of our own; else None."""
    if name.split("-")[0] in list_networks() or name not in _torchvision_names():
        return None
    from torchvision import models

    return models.get_model_builder(name)  # type: ignore[no-any-return]


def _torchvision_names() -> list[str]:
    """Return the names of the classifiers in `torchvision.models`."""
    from torchvision import models  # slow to import, and most runs need the ConvNet only

    return models.list_models(models)  # type: ignore[no-any-return]


def _check_built_network(factory: NetworkFactory, own: OwnNetwork) -> None:
    """Make two of a user's networks and run one of them on two images.

    Raises:
        ValueError: If both are the same module or differ in their shapes, if the network has no weights or fails, or if
            it returns other shapes than it should.
    """
    net, other = factory.build("check"), factory.build("check")
    call = own.call(
        {"channels": factory.channels, "num_classes": factory.num_classes, "image_size": factory.image_size}
    )
    if not any(True for _ in net.parameters()):
        raise ValueError(f"network {factory.name!r} should have weights to train; {call} returned one without any")
    if {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}:
        raise ValueError(
            f"network {factory.name!r} should be a new module with fresh weights on every call; {call} returned one "
            "with the same weights twice"
        )
    if _layout(net) != _layout(other):
        raise ValueError(
            f"network {factory.name!r} should be the same on every call but for its weights; {call} returned one with "
            "tensors of other shapes the second time"
        )
    images = torch.zeros(2, factory.channels, *factory.image_size, device="cpu")
    where = f"network {factory.name!r}, made by {call},"
    try:
        with torch.no_grad(), seeded_globals("check"):
            logits, embedding = net(images), net.embed(images)  # type: ignore[operator]
    except Exception as error:  # whatever the user's network raises
        raise ValueError(f"{where} failed on two images {tuple(images.shape)}: {error}{own.hint}") from error
    shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (logits, embedding)]
    if shapes[0] != (2, factory.num_classes) or len(shapes[1]) != 2 or shapes[1][0] != 2:
        what = f"logits (2, {factory.num_classes}); got {shapes[0]}"
        if shapes[0] == (2, factory.num_classes):
            what = f"embeddings (2, D) with embed; got {shapes[1]}"
        raise ValueError(f"{where} should turn two images into {what}")


def _layout(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a network by name."""
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
