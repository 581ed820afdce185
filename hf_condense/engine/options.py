"""The options of a method: how a field is declared, and the config that checks its values."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from hf_condense.base.checks import number, one_of
from hf_condense.base.errors import did_you_mean
from hf_condense.networks.augment import Augmentation

# What other libraries call some options and arguments.
_SYNONYMS = {
    "device": "accelerator",
    "epochs": "steps",
    "images_per_class": "ipc",
    "iterations": "steps",
    "learning_rate": "lr_img",
    "lr": "lr_img",
    "model": "network",
}
ROLES = ("batch_real", "image_rate", "momentum", "stored_rate", "init", "augment")
"""Roles that an option can have for the engine; see `option`."""


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    valid: Callable[[Any], object] | None = None,
    choices: tuple[Any, ...] | None = None,
    role: str | None = None,
    tiny: Any = None,
    needs: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
    """Declare a field of a config: its default, its meaning and the values that it accepts.

    Args:
        default: The value that is used if neither the caller nor a preset gives one.
        help: One or two sentences: meaning, unit, what a larger value costs.
        ge: Smallest value allowed.
        gt: The value must be larger than this.
        le: Largest value allowed.
        lt: The value must be smaller than this.
        valid: Function that raises `ValueError` for a value that cannot be used.
        choices: The only values allowed.
        role: What the engine uses the option for, if anything: `"batch_real"` (real images per class and step, for the
            memory plan), `"image_rate"` and `"momentum"` (of the images' optimiser), `"stored_rate"` (of what is
            stored, if not None), `"init"` (what to start from; see `Method.own_starts`) or `"augment"` (families of
            augmentation, or "none", which is checked). The option `steps` needs no role.
        tiny: A value with which a run on a few toy images takes seconds, for `check_method`. Default: `default`.
        needs: Other options by name, with the values that let this one have an effect. A caller who gives it without
            them gets an error; what a preset gives is then left without effect.

    Raises:
        ValueError: If `role` is unknown.
    """
    if role is not None:
        one_of("role", role, ROLES)
    if role == "augment":
        valid = valid or Augmentation.parse
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "valid": valid, "choices": choices}
    metadata = {"help": help, **bounds, "role": role, "tiny": tiny, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


def redefined(config: type[MethodConfig], name: str, default: Any, help: str | None = None, **rules: Any) -> Any:
    """Declare a field of a base config again with another default; all else is as the base declares it.

    Args:
        config: The base.
        name: The field, which the subclass must declare under the same name and with the same type.
        default: The value that is used if neither the caller nor a preset gives one.
        help: Another help; None: that of the base.
        **rules: Other values of what `option` takes by name, such as `choices`.

    Raises:
        ValueError: If the base has no such field, or there is no such rule.

    Example:
        >>> @dataclass(frozen=True)
        ... class Base(MethodConfig):
        ...     rate: float = option(0.1, "Learning rate.", gt=0)
        >>> @dataclass(frozen=True)
        ... class Faster(Base):
        ...     rate: float = redefined(Base, "rate", 10.0)
        >>> Faster().rate, Faster.__dataclass_fields__["rate"].metadata["help"]
        (10.0, 'Learning rate.')
    """
    fields = {f.name: f for f in dataclasses.fields(config)}
    one_of("name", name, fields)
    metadata = {**fields[name].metadata, **rules}
    for rule in rules:
        one_of("rule", rule, fields[name].metadata)
    return dataclasses.field(default=default, metadata=metadata if help is None else {**metadata, "help": help})


ConfigSelf = TypeVar("ConfigSelf", bound="MethodConfig")


@dataclass(frozen=True)
class MethodConfig:
    """Base class of the options of a method. Declare each field with `option`; the constructor checks the values.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = _checked_option(f.name, getattr(self, f.name), hints[f.name], f.metadata)
            object.__setattr__(self, f.name, value)

    @classmethod
    def build(cls: type[ConfigSelf], options: Mapping[str, Any], arguments: Iterable[str] = ()) -> ConfigSelf:
        """Make a config from options by name.

        Args:
            options: The options.
            arguments: Other names that the caller may have meant, for the message.

        Raises:
            TypeError: If an option is unknown. The message gives the nearest name and lists all names.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                listing = f"options: {', '.join(names)}" if names else "this method has no options"
                hint = did_you_mean(_SYNONYMS.get(name, name), [*names, *arguments])
                raise TypeError(f"unknown option {name!r}{hint}; {listing}")
        return cls(**options)

    @classmethod
    def decided(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that a caller decides on; None leaves a value open unless it is one for that option."""
        hints = typing.get_type_hints(cls)
        names = (f.name for f in dataclasses.fields(cls) if type(None) in typing.get_args(hints[f.name]))
        may_be_none = frozenset(names) - {"steps"}
        return {name: value for name, value in values.items() if value is not None or name in may_be_none}

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Return the options with which a run on toy images takes seconds, by name."""
        return {f.name: f.metadata["tiny"] for f in dataclasses.fields(cls) if f.metadata.get("tiny") is not None}

    @classmethod
    def unmet_need(cls, name: str, options: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
        """Return what makes an option void, if anything: another option, and the values of it that would be right.

        Args:
            name: The option.
            options: The values of options by name; one that is missing has its default.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        needs: Mapping[str, tuple[Any, ...]] = fields[name].metadata.get("needs") or {}
        for other, suitable in needs.items():
            if other in fields and options.get(other, fields[other].default) not in suitable:
                choices = fields[other].metadata.get("choices") or suitable
                return other, tuple(value for value in suitable if value in choices)
        return None

    def of_role(self, role: str, default: Any = None) -> Any:
        """Return the value of the option that declares a role, or the default if no option declares it."""
        name = self.name_of_role(role)
        return default if name is None else getattr(self, name)

    @classmethod
    def name_of_role(cls, role: str) -> str | None:
        """Return the name of the option that declares a role, or None if no option declares it."""
        return next((f.name for f in reversed(dataclasses.fields(cls)) if f.metadata.get("role") == role), None)


_IN_WORDS: dict[type, str] = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}


def _checked_option(name: str, value: Any, hint: Any, rules: Mapping[str, Any]) -> Any:
    """Return one value of a config if it is of its declared type and in its range; an integer may stand for a float.

    Numbers of NumPy become Python's own, so that a recipe can be written as JSON.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    value = _plain_number(value)
    accepted = tuple(kind for kind in kinds if kind is not type(None))
    fits = type(value) in accepted or (type(value) is int and float in accepted)
    if not fits and not (isinstance(value, accepted) and not isinstance(value, bool)):
        if rules.get("choices") is not None:
            spelled = f"one of {', '.join(map(repr, rules['choices']))}"
        else:
            spelled = " or ".join(
                "None" if kind is type(None) else _IN_WORDS.get(kind, kind.__name__) for kind in kinds
            )
        if rules.get("role") == "augment":
            spelled += ", such as 'color_crop' or 'none'"
        raise TypeError(f"{name} should be {spelled}; got {value!r} ({type(value).__name__})")
    if rules.get("choices") is not None:
        one_of(name, value, rules["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} should be finite; got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        bounds = {"least": "ge", "above": "gt", "most": "le", "below": "lt"}
        number(name, value, **{bound: rules.get(rule) for bound, rule in bounds.items()})
    if rules.get("valid") is not None:
        try:
            rules["valid"](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return value


def _plain_number(value: Any) -> Any:
    """Return a NumPy scalar as Python's own number or truth value, anything else as it is."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value
