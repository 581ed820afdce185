"""A user's own networks: which callables are accepted, how they are called, and what is said when that fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import nn
from torch.nn.parameter import is_lazy

from hf_condense.networks.architectures import TORCHVISION, like

_KEYWORDS: Final[tuple[str, ...]] = ("channels", "num_classes", "image_size")
_ADVICE: Final = "pass a function f(channels=, num_classes=, image_size=) that makes a network"


def check_own(spec: object) -> None:
    """Refuse what cannot make networks, without calling it.

    Raises:
        TypeError: If it is a module, which is one network where many are needed, or cannot be called at all.
    """
    if isinstance(spec, nn.Module):
        raise TypeError(
            f"network should make networks, but this {type(spec).__name__} is one: many with fresh weights are needed; "
            f"{_ADVICE}, or the class itself"
        )
    if not callable(spec):
        raise TypeError(f"network should be a name or a callable that returns a module; got {type(spec).__name__}")


@dataclass(frozen=True)
class OwnNetwork:
    """Make networks with a user's callable.

    It is called with those of the keywords `channels`, `num_classes` and `image_size` that it takes. Networks of
    torchvision are called with `num_classes`, and their first convolution is replaced if images have not 3 channels.

    Attributes:
        spec: The callable, as `check_own` accepts it.
    """

    spec: Callable[..., nn.Module]

    @property
    def name(self) -> str:
        """The qualified name of the callable."""
        name: str = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        return name

    def __call__(self, **facts: Any) -> nn.Module:
        """Return a new network.

        Args:
            **facts: `channels`, `num_classes` and `image_size`.

        Raises:
            TypeError: If the callable cannot be called in this way, or does not return a module.
            ValueError: If it raises an error, or weights of the module hold no values yet; the message says how it was
                called.
        """
        keywords = self._keywords(facts)
        try:
            net = self.spec(**keywords)
        except Exception as error:  # whatever the user's code raises
            raise ValueError(
                f"network {self.name!r} cannot be made: {self.call(facts)} raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(net, nn.Module):
            raise TypeError(f"network {self.name!r} should return a torch.nn.Module; got {type(net).__name__}")
        if any(is_lazy(p) or p.is_meta for p in net.parameters()):
            raise ValueError(
                f"network {self.name!r} should have weights; {self.call(facts)} returned a {type(net).__name__} with "
                "lazy layers, or with weights on the meta device: give every layer its sizes and a real device"
            )
        if self._from_torchvision:
            _adapt_channels(net, facts["channels"])
        return net

    @property
    def hint(self) -> str:
        """What may help if images are too small for a network of torchvision, to end a message with."""
        small = self._from_torchvision and self.name in TORCHVISION
        return f"; the name {self.name!r}, as text, gives a version for small images" if small else ""

    def call(self, facts: dict[str, Any]) -> str:
        """Write how the callable is called, for messages."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self._keywords(facts).items())})"

    def _keywords(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return those of the keywords that the callable takes."""
        if self._from_torchvision:
            return {"num_classes": facts["num_classes"]}
        try:
            signature = inspect.signature(self.spec)
        except (TypeError, ValueError):  # Some callables written in C have none.
            return facts
        parameters = signature.parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return facts
        named = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
        keywords = {name: facts[name] for name in _KEYWORDS if name in named}
        try:
            signature.bind(**keywords)
        except TypeError as error:
            raise TypeError(
                f"network {self.name!r} takes {signature}, and is called with those of the keywords "
                f"{', '.join(_KEYWORDS)} that it takes: {error}; wrap it in a function that takes them"
            ) from None
        return keywords

    @property
    def _function(self) -> Any:
        return self.spec.func if isinstance(self.spec, partial) else self.spec

    @property
    def _from_torchvision(self) -> bool:
        module = getattr(self._function, "__module__", None) or ""
        return module.startswith("torchvision.models")


def _adapt_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one that takes images of some channels."""
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            if conv.in_channels != channels:
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, like(conv, channels))
            return
