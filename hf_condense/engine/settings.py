"""From what the caller, a preset and a method's defaults say to the values of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from hf_condense.base.checks import integer, one_of
from hf_condense.base.errors import did_you_mean
from hf_condense.condensed.decoders import decoder_class
from hf_condense.condensed.decoders.patches import storage_of_factor
from hf_condense.engine.method import AnyMethod, Method, Selector
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkSpec
from hf_condense.source.class_source import ClassSource

RUN_DEFAULTS: dict[str, Any] = {"network": "convnet", "pixel_range": "valid"}
_STORAGE = ("storage", "expand", "factor")


@dataclass(frozen=True)
class Settings:
    """The values of one run, settled.

    Attributes:
        network: Network that is matched.
        storage: Storage form.
        expand: Rows that it decodes into for each image of the budget.
        pixel_range: `"valid"` or `"free"`.
        options: The method's own options, those that differ from its defaults.
    """

    network: NetworkSpec
    storage: str
    expand: int
    pixel_range: str
    options: dict[str, Any]


def settle(cls: AnyMethod, preset: str | None, given: Mapping[str, Any], task: Task) -> Settings:
    """Combine what was given with a preset: the caller wins over the preset, the preset over the defaults.

    Args:
        cls: The method.
        preset: Name of a preset, or None for the preset `"default"` if the method has one.
        given: Values by name; None means that the caller left it open.
        task: What the preset may depend on.

    Raises:
        TypeError: If the preset is no text.
        ValueError: If the preset is unknown, a value is out of range, or makes no sense for a coreset.
    """
    check_preset(cls, preset)
    asked = {name: value for name, value in given.items() if value is not None}
    if not issubclass(cls, Method):
        _refuse_what_is_not_learned(cls, asked)
    default = cls.presets.get(preset or "default")
    suggested = default.values(task) if default else {}
    storage, expand = _storage_form(asked, suggested, task.image_shape)
    values = {**RUN_DEFAULTS, **suggested, **asked}
    network, pixel_range = (values.pop(name) for name in RUN_DEFAULTS)
    one_of("pixel_range", pixel_range, ("valid", "free"))
    options = {name: value for name, value in values.items() if name not in _STORAGE}
    return Settings(network, storage, expand, pixel_range, options)


def check_preset(cls: AnyMethod, preset: str | None) -> None:
    """Raise unless a method has a preset of this name.

    Raises:
        TypeError: If the preset is no text.
        ValueError: If it is unknown; the message gives the nearest name and lists all.
    """
    if preset is not None and not isinstance(preset, str):
        raise TypeError(f"preset should be a name; got {preset!r} ({type(preset).__name__})")
    if preset is not None and preset not in cls.presets:
        listed = ", ".join(map(repr, cls.presets)) or "none"
        raise ValueError(
            f"{cls.info.name} has no preset {preset!r}{did_you_mean(preset, cls.presets)}; presets: {listed}"
        )


def _refuse_what_is_not_learned(cls: AnyMethod, asked: dict[str, Any]) -> None:
    """Raise for values that only mean something where images are learned, and drop those that say nothing."""
    meaningless: dict[str, Any] = {"steps": None}
    if issubclass(cls, Selector):
        meaningless |= {"storage": "pixels", "expand": 1, "factor": 1, "pixel_range": "valid"}
        what = "a coreset, which chooses real rows and learns nothing"
    else:
        what = "which puts its images together at once and learns nothing"
    for name, harmless in meaningless.items():
        value = asked.pop(name, None)
        if value not in (None, harmless):
            raise ValueError(f"{name}={value!r} makes no sense for {cls.info.name!r}, {what}; leave it out")


def _storage_form(
    asked: Mapping[str, Any], suggested: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> tuple[str, int]:
    """Return storage form and `expand`: what the caller says of them, else what the preset says, else pixels."""
    said = asked if any(name in asked for name in ("storage", "factor")) else {**suggested, **asked}
    storage, expand, factor = (said.get(name) for name in _STORAGE)
    if factor is not None:
        form = storage_of_factor(factor, image_shape)
        if (storage or form[0], expand or form[1]) != form:
            raise ValueError(
                f"factor={factor} is short for storage={form[0]!r}, expand={form[1]}; got storage={storage!r}, "
                f"expand={expand!r}. Give either factor or the other two"
            )
        return form
    storage = "pixels" if storage is None else storage
    expand = None if expand is None else integer("expand", expand, least=1)
    return storage, decoder_class(storage).settle_expand(expand, image_shape)


def class_amounts(ipc: int | Mapping[Any, int], source: ClassSource) -> dict[int, int]:
    """Return the stored images for every class that has rows, by class index.

    Args:
        ipc: One number, or one for every class that has rows, by class name (or original label value).
        source: The dataset's images by class.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1 or above the rows of its class, or a dict does not name each class once.
    """
    counts = source.counts
    named = _by_index(ipc, source) if isinstance(ipc, Mapping) else dict.fromkeys(counts, ipc)
    for c, n in named.items():
        name = source.class_names[c]
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise TypeError(
                "ipc should be an integer, or a dict with an integer for every class; "
                f"got {n!r} ({type(n).__name__}) for class {name!r}"
            )
        if n < 1:
            raise ValueError(f"ipc should be at least 1; got {n} for class {name!r}")
        if n > counts[c]:
            raise ValueError(f"ipc={n} is more than the {counts[c]} rows of class {name!r}; ask for no more than that")
    return {c: int(named[c]) for c in counts}


def _by_index(ipc: Mapping[Any, int], source: ClassSource) -> dict[int, int]:
    """Turn a dict by class name or label value into one by class index that names every class with rows."""
    index: dict[Any, int] = {value: c for c, value in enumerate(source.label_values)}
    index.update({name: c for c, name in enumerate(source.class_names)})
    found: dict[int, int] = {}
    for name, n in ipc.items():
        if name not in index:
            raise ValueError(
                f"ipc names {name!r}, which is no class{did_you_mean(str(name), source.class_names)}; "
                f"classes: {', '.join(source.class_names)}"
            )
        if index[name] not in source.counts:
            raise ValueError(f"ipc names class {name!r}, which has no rows; leave it out")
        if index[name] in found:
            raise ValueError(f"ipc names class {source.class_names[index[name]]!r} twice, by name and by value")
        found[index[name]] = n
    if missing := [source.class_names[c] for c in source.counts if c not in found]:
        raise ValueError(f"ipc leaves out {', '.join(map(repr, missing))}; give a number for every class that has rows")
    return found
