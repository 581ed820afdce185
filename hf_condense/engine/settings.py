"""Settle the values of one run from what the caller, a preset and the method's defaults say."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from hf_condense.base.checks import integer, listed, one_of
from hf_condense.base.errors import did_you_mean
from hf_condense.base.words import plural
from hf_condense.condensed.decoders import decoder_class
from hf_condense.condensed.decoders.patches import form_of_factor, storage_of_factor
from hf_condense.condensed.recipe_checks import PIXEL_RANGES, STORE_DTYPES
from hf_condense.engine.method import AnyMethod, Method, Selector
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkSpec, check_network
from hf_condense.source.class_source import ClassSource

logger = logging.getLogger("hf_condense")

RUN_DEFAULTS: dict[str, Any] = {"network": "convnet", "pixel_range": "valid", "store_dtype": "float32"}
_STORAGE = ("storage", "expand", "factor")  # what names a form


@dataclass(frozen=True)
class Settings:
    """The settled values of one run.

    Attributes:
        network: Network that is matched.
        storage: Storage form.
        expand: Rows that the form decodes into for each image of the budget.
        pixel_range: `"valid"` or `"free"`.
        store_dtype: Type of the stored numbers in the result: `"float32"`, `"float16"`, or `"uint8"` for images.
        options: The method's own options, as far as the caller or the preset gives them.
    """

    network: NetworkSpec
    storage: str
    expand: int
    pixel_range: str
    store_dtype: str
    options: dict[str, Any]


def settle(cls: AnyMethod, preset: str | None, given: Mapping[str, Any], task: Task) -> Settings:
    """Combine the caller's values with a preset: the caller wins over the preset, the preset over the defaults.

    Args:
        cls: The method.
        preset: Name of a preset. None stands for the preset `"default"`, if the method has one.
        given: The caller's values by name. None means that the caller left the value open, but for options of the
            method that may be None: there it is a value like any other.
        task: The facts that the preset may depend on.

    Raises:
        TypeError: If the preset is not a string.
        ValueError: If the preset is unknown, or a value is out of range or makes no sense for this kind of method.
    """
    check_preset(cls, preset)
    check_learning(cls, given)
    neutral = _neutral_values(cls)
    caller_values = cls.Config.decided({name: value for name, value in given.items() if name not in neutral})
    (storage, expand), of_preset = form_and_values(cls, preset, caller_values, task)
    values = {**RUN_DEFAULTS, **of_preset, **caller_values}
    network, pixel_range, store_dtype = (values.pop(name) for name in RUN_DEFAULTS)
    one_of("pixel_range", pixel_range, PIXEL_RANGES)
    one_of("store_dtype", store_dtype, STORE_DTYPES)
    has_bytes = decoder_class(storage).stores_images and pixel_range == "valid"
    if store_dtype == "uint8" and not has_bytes and "store_dtype" not in caller_values:
        store_dtype = RUN_DEFAULTS["store_dtype"]  # the preset's does not go with what the caller gave
        logger.warning(
            "the preset stores images in [0, 1] as 'uint8'; with storage=%r and pixel_range=%r, it stores %r, which "
            "takes more bytes",
            storage,
            pixel_range,
            store_dtype,
        )
    if store_dtype == "uint8" and not has_bytes:
        raise ValueError(
            f"store_dtype='uint8' is for images in [0, 1]; got storage={storage!r} and pixel_range={pixel_range!r}. "
            "Pass storage='pixels' or 'patches' with pixel_range='valid', or store_dtype='float16' or 'float32'"
        )
    options = {name: value for name, value in values.items() if name not in _STORAGE}
    _check_needs(cls, caller_values, options)
    _warn_of_unused_rate(cls, caller_values, options, storage)
    _warn_of_unused_momentum(cls, caller_values, storage)
    return Settings(network, storage, expand, pixel_range, store_dtype, options)


def preset_values(cls: AnyMethod, preset: str, task: Task) -> dict[str, Any]:
    """Return what a preset sets for a task if the caller says nothing else. If it names no form, that is pixels.

    Args:
        cls: The method.
        preset: Name of one of its presets.
        task: ipc, classes and image shape.

    Example:
        >>> from hf_condense.methods.dm import DistributionMatching
        >>> preset_values(DistributionMatching, "default", Task(ipc=10, num_classes=10, image_shape=(3, 32, 32)))
        {'steps': 1000, 'lr_img': 10.0}
    """
    (storage, expand), values = form_and_values(cls, preset, {}, task)
    own = {name: value for name, value in values.items() if name not in _STORAGE}
    return own if len(own) == len(values) else {**own, "storage": storage, "expand": expand}


def form_and_values(
    cls: AnyMethod, preset: str | None, caller_values: Mapping[str, Any], task: Task
) -> tuple[tuple[str, int], dict[str, Any]]:
    """Return storage form and `expand`, and the preset's values for them: rates and steps may depend on the form.

    Args:
        cls: The method.
        preset: Name of one of its presets; None stands for the preset `"default"`, if the method has one.
        caller_values: The caller's values by name; what is left open is not among them.
        task: ipc, classes and image shape.
    """
    chosen = cls.presets.get(preset or "default")
    values_of = chosen.values if chosen else lambda task: {}
    storage, expand = settled_form(caller_values, values_of(task), task)
    return (storage, expand), values_of(dataclasses.replace(task, storage=storage, expand=expand))


def check_preset(cls: AnyMethod, preset: str | None) -> None:
    """Raise unless a method has a preset of this name.

    Raises:
        TypeError: If the preset is not a string.
        ValueError: If it is unknown; the message gives the nearest name and lists all.
    """
    if preset is not None and not isinstance(preset, str):
        raise TypeError(f"preset should be a name; got {preset!r} ({type(preset).__name__})")
    if preset is not None and preset not in cls.presets:
        names = ", ".join(map(repr, cls.presets)) or "none"
        raise ValueError(
            f"{cls.info.name} has no preset {preset!r}{did_you_mean(preset, cls.presets)}; presets: {names}"
        )


def check_learning(cls: AnyMethod, given: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a method that learns nothing is given what matters only where images are learned."""
    what = "a coreset, which chooses real rows" if issubclass(cls, Selector) else "which composes its images once"
    for name, neutral_value in _neutral_values(cls).items():
        value = given.get(name)
        if value not in (None, neutral_value):
            raise ValueError(
                f"{name}={value!r} makes no sense for {cls.info.name!r}, {what} and learns nothing; leave it out"
            )


def _neutral_values(cls: AnyMethod) -> dict[str, Any]:
    """Return the settings that ask for nothing, by name, of what matters only where images are learned."""
    if issubclass(cls, Method):
        return {}
    if not issubclass(cls, Selector):
        return {"steps": None}
    images = {"storage": "pixels", "expand": 1, "factor": 1, "pixel_range": "valid", "store_dtype": "float32"}
    return {"steps": None, **images}


def _check_needs(cls: AnyMethod, caller_values: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise `ValueError` if the caller gives an option that others make void; see `needs` of `option`."""
    for field in dataclasses.fields(cls.Config):
        value = caller_values.get(field.name, field.default)
        if value == field.default or (unmet := cls.Config.unmet_need(field.name, options)) is None:
            continue
        other, right = unmet
        present = options.get(other, cls.Config.__dataclass_fields__[other].default)
        raise ValueError(
            f"{field.name}={value!r} has no effect with {other}={present!r}; it needs "
            f"{other}={' or '.join(map(repr, right))}. Pass that, or leave {field.name} out"
        )


def _warn_of_unused_rate(
    cls: AnyMethod, caller_values: Mapping[str, Any], options: Mapping[str, Any], storage: str
) -> None:
    """Log a warning if the caller gives an image rate although what is stored has a rate of its own."""
    image_rate, stored_rate = (cls.Config.name_of_role(role) for role in ("image_rate", "stored_rate"))
    if image_rate is None or stored_rate is None or caller_values.get(image_rate) is None:
        return
    if options.get(stored_rate) is not None:
        why = f"{stored_rate}={options[stored_rate]!r} is the rate of what is stored"
    elif (own := decoder_class(storage).own_rate) is not None:
        why = f"storage={storage!r} has a rate of its own, {own:g}, which {stored_rate}= changes"
    else:
        return
    logger.warning("%s=%r does not move what is stored: %s", image_rate, caller_values[image_rate], why)


def _warn_of_unused_momentum(cls: AnyMethod, caller_values: Mapping[str, Any], storage: str) -> None:
    """Log a warning if the caller gives a momentum although what is stored is learned by Adam."""
    name = cls.Config.name_of_role("momentum")
    if name is not None and caller_values.get(name) and decoder_class(storage).own_rate is not None:
        logger.warning("%s=%r has no effect: storage=%r is learned by Adam", name, caller_values[name], storage)


def settled_form(caller_values: Mapping[str, Any], preset_values: Mapping[str, Any], task: Task) -> tuple[str, int]:
    """Return storage form and `expand` as the caller says, else as the preset says, else pixels.

    Args:
        caller_values: The caller's values by name; what is left open is not among them.
        preset_values: The values of the preset, or of what stands for one.
        task: ipc and image shape.

    Raises:
        TypeError: If `expand` or `factor` is not an integer.
        ValueError: If there is no such form, or a value is out of its range, or values contradict each other.
    """
    # A caller who names a form decides it as a whole: the preset's `expand` may make no sense for that form. It makes
    # sense for the form that the preset takes anyway.
    names_form = any(name in caller_values for name in ("storage", "factor"))
    names_own = names_form and not _keeps_form(caller_values, preset_values)
    values = caller_values if names_own else {**preset_values, **caller_values}
    if not names_form and "expand" in caller_values and "factor" in values:  # the factor of the preset names its form
        values = {**values, "storage": storage_of_factor(values["factor"], task.image_shape)[0], "factor": None}
    storage, expand, factor = (values.get(name) for name in _STORAGE)
    if factor is not None:
        form = storage_of_factor(factor, task.image_shape)
        if (storage or form[0], expand or form[1]) != form:
            also = {"storage": storage, "expand": expand}
            got = ", ".join(f"{name}={value!r}" for name, value in also.items() if value is not None)
            raise ValueError(
                f"factor={factor} is short for storage={form[0]!r}, expand={form[1]}; got {got}. Pass either factor, "
                "or storage and expand"
            )
        return form
    storage = "pixels" if storage is None else storage
    expand = None if expand is None else integer("expand", expand, least=1)
    return storage, decoder_class(storage).settle_expand(expand, task.image_shape, task.ipc)


def _keeps_form(caller_values: Mapping[str, Any], preset_values: Mapping[str, Any]) -> bool:
    """Return whether a caller names the form that the preset takes anyway, and neither `expand` nor `factor`."""
    factor = preset_values.get("factor")
    of_preset = preset_values.get("storage") if factor is None else form_of_factor(factor)[0]
    return caller_values.keys() & _STORAGE == {"storage"} and caller_values["storage"] == of_preset


def check_values(given: Mapping[str, Any]) -> None:
    """Check values of the caller that are right or wrong whatever the data are; None stands for no value.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is unknown or out of its range.
    """
    for name, choices in (("pixel_range", PIXEL_RANGES), ("store_dtype", STORE_DTYPES)):
        if given.get(name) is not None:
            one_of(name, given[name], choices)
    if given.get("storage") is not None:
        decoder_class(given["storage"])
    if given.get("network") is not None:
        check_network(given["network"])
    if given.get("steps") is not None:
        integer("steps", given["steps"], least=1)


def check_ipc(n: object, name: object = None) -> None:
    """Check a number of images per class, of the class of this name or of all.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below 1.
    """
    where = "" if name is None else f" for class {name!r}"
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(
            "ipc should be an integer, or a dict with an integer for every class; "
            f"got {n!r} ({type(n).__name__}){where}"
        )
    if n < 1:
        raise ValueError(f"ipc should be at least 1; got {n}{where}")


def ipc_by_class(ipc: int | Mapping[Any, int], source: ClassSource, of_real_rows: bool = False) -> dict[int, int]:
    """Return the budget in images of every class that has rows, by class index.

    Args:
        ipc: One number, or one for every class that has rows, by class name (or original label value).
        source: The dataset's images by class.
        of_real_rows: Whether the set is made of real rows, of which a class may not have enough.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is below 1, a dict does not name each class once, an integer in it is the label of one
            class and the name of another, or a set of real rows should have more
            of them than a class has.
    """
    counts = source.counts
    amounts = _by_index(ipc, source) if isinstance(ipc, Mapping) else dict.fromkeys(counts, ipc)
    for c, n in amounts.items():
        check_ipc(n, source.class_names[c])
    small = {source.class_names[c]: (n, counts[c]) for c, n in amounts.items() if n > counts[c]}
    if small and of_real_rows:
        name, (n, rows) = next(iter(small.items()))
        others = f" ({len(small)} classes have too few)" if len(small) > 1 else ""
        advice = "ask for no more than that"
        if not isinstance(ipc, Mapping):
            advice += (
                f": ipc={min(rows for _, rows in small.values())} suits all classes; a dict, such as "
                f"{{{name!r}: {rows}, ...}} (in a terminal --ipc {name}={rows} and so on), gives each class its own"
            )
        raise ValueError(
            f"ipc={n} is more than the {rows} {plural(rows, 'row')} of class {name!r}{others}, and coresets repeat no "
            f"row; {advice}"
        )
    return {c: int(amounts[c]) for c in counts}


def _by_index(ipc: Mapping[Any, int], source: ClassSource) -> dict[int, int]:
    """Turn a dict by class name or label value into one by class index. It must name every class that has rows."""
    index: dict[Any, int] = {value: c for c, value in enumerate(source.label_values)}
    index.update({name: c for c, name in enumerate(source.class_names)})
    amounts: dict[int, int] = {}
    for name, n in ipc.items():
        if name not in index:
            raise ValueError(
                f"ipc names {name!r}, which is not a class{did_you_mean(str(name), source.class_names)}; "
                f"classes: {listed(source.class_names, quoted=False)}"
            )
        if not isinstance(name, str) and index.get(str(name), index[name]) != index[name]:
            raise ValueError(
                f"ipc names {name!r}, which is the label of class {source.class_names[index[name]]!r}, while another "
                f"class is called {str(name)!r}; give the names of classes as text"
            )
        if index[name] not in source.counts:
            raise ValueError(f"ipc names class {name!r}, which has no rows; leave it out")
        if index[name] in amounts:
            raise ValueError(f"ipc names class {source.class_names[index[name]]!r} twice, by name and by value")
        amounts[index[name]] = n
    if missing := [source.class_names[c] for c in source.counts if c not in amounts]:
        raise ValueError(f"ipc leaves out {listed(missing)}; give a number for every class that has rows")
    return amounts
