"""Find the class of a method by its name. A method is imported when it is first used."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import logging
import re
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeGuard

from hf_condense.base.errors import did_you_mean
from hf_condense.condensed.files.names import check_name
from hf_condense.engine.method import AnyMethod, Composer, Method, MethodInfo, Selector
from hf_condense.engine.options import MethodConfig

logger = logging.getLogger("hf_condense")

ENTRY_POINT_GROUP = "hf_condense.methods"
_AUTO = "auto"  # stands for a choice by rule (`engine.auto`), so no method can have this name
_KINDS: dict[type[Any], str] = {Method: "synthetic", Composer: "composed", Selector: "coreset"}

BUILT_IN = {
    "random": "hf_condense.methods.random:RandomRows",
    "herding": "hf_condense.methods.herding:Herding",
    "kcenter": "hf_condense.methods.kcenter:KCenter",
    "dc": "hf_condense.methods.dc:GradientMatching",
    "dsa": "hf_condense.methods.dsa:SiameseGradientMatching",
    "dm": "hf_condense.methods.dm:DistributionMatching",
    "m3d": "hf_condense.methods.m3d:KernelMoments",
    "mtt": "hf_condense.methods.mtt:TrajectoryMatching",
    "tesla": "hf_condense.methods.tesla:ConstantMemoryMatching",
    "esp": "hf_condense.methods.esp:SubspaceProjection",
    "dance": "hf_condense.methods.dance:DualViewAlignment",
    "ncfm": "hf_condense.methods.ncfm:CharacteristicMatching",
    "datm": "hf_condense.methods.datm:DifficultyAlignedMatching",
    "rded": "hf_condense.methods.rded:RealisticDistillation",
    "idc": "hf_condense.methods.idc:MultiFormationMatching",
}

_registered: dict[str, AnyMethod] = {}


def register_method(cls: AnyMethod, name: str | None = None) -> AnyMethod:
    """Make a method available by name. This function can be used as a decorator.

    An installed package can add methods without being imported, through the entry-point group `hf_condense.methods`.

    Args:
        cls: A subclass of `Method`, `Composer` or `Selector` with `info` and `Config`.
        name: Name to use; default: `cls.info.name`.

    Returns:
        `cls`, unchanged.

    Raises:
        TypeError: If `cls` is not a method, or does not declare or define what a method must.
        ValueError: If the name is in use, not made of lower case letters, digits and `_`, or such that sets cannot be
            named after it.
    """
    if not _is_method(cls):
        raise TypeError(f"register_method takes a subclass of Method, Composer or Selector; got {cls!r}")
    _check_declared(cls)
    name = name or cls.info.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"a method's name is made of lower case letters, digits and _; got {name!r}")
    try:
        check_name(f"{name}_ipc1")  # the sets of the method are named so
    except ValueError as error:
        raise ValueError(f"the name of a method begins those of its sets: {error}") from None
    if _registered.get(name) is cls:
        return cls
    own = f"{cls.__module__}:{cls.__qualname__}"  # a package may name its class as an entry point, and register it, too
    others = {known: target for known, target in _names().items() if getattr(target, "value", None) != own}
    # Entry points are not imported for their aliases: this may be called while one of them is imported.
    classes = [_load(known, target) for known, target in others.items() if not isinstance(target, EntryPoint)]
    names = {_AUTO, *others, *(alias for other in classes for alias in other.info.aliases)}
    inherited = {alias for base in cls.__mro__[1:] for alias in getattr(vars(base).get("info"), "aliases", ())}
    aliases = {*cls.info.aliases} - inherited if name == cls.info.name else set()
    if taken := [claimed for claimed in (name, *sorted(aliases)) if claimed in names]:
        raise ValueError(
            f"a method named {taken[0]!r} exists already; names and aliases in use: {', '.join(sorted(names))}"
        )
    _registered[name] = cls
    return cls


def unregister_method(name: str) -> None:
    """Remove a method that `register_method` added. Built-in methods cannot be removed.

    Raises:
        ValueError: If no method was registered under this name.
    """
    if name not in _registered:
        raise ValueError(f"{name!r} was not registered; registered: {', '.join(_registered) or 'none'}")
    del _registered[name]


def get_method(name: str) -> AnyMethod:
    """Return the class behind a name or an alias.

    Raises:
        TypeError: If `name` is not a string.
        ValueError: If there is no such method. The message gives the nearest name and lists all names.
    """
    if not isinstance(name, str):
        count = " (the number of images per class is ipc=)" if isinstance(name, int) else ""
        raise TypeError(
            f"method should be a name; got {name!r}{count}. For a class of your own, call register_method first"
        )
    targets = _names()
    if name in targets:
        return _load(name, targets[name])
    for info in list_methods():
        if name in info.aliases:
            return _load(info.name, targets[info.name])
    if name == _AUTO:
        raise ValueError(
            "'auto' is not a method; condense_dataset(ds, 'auto') picks one. The methods are "
            f"{', '.join(sorted(targets))}"
        )
    names = [_AUTO, *sorted(targets)]
    raise ValueError(f"no method is named {name!r}{did_you_mean(name, names)}; methods: {', '.join(names)}")


def canonical_name(cls: AnyMethod) -> str:
    """Return the name under which a class was registered, else the one it declares."""
    return next((name for name, registered in _registered.items() if registered is cls), cls.info.name)


def list_methods(pattern: str | None = None) -> list[MethodInfo]:
    """List the available methods: built-in, registered and installed ones.

    Args:
        pattern: Shell pattern that names must match, for example `"*m*"`; default: all.

    Returns:
        A `MethodInfo` for each method; coresets come first, then the order is by year.
    """
    infos = []
    for name, target in _names().items():
        try:
            infos.append(dataclasses.replace(_load(name, target).info, name=name))
        except Exception as error:
            if not isinstance(target, EntryPoint):
                raise
            logger.warning("the method %r of another package cannot be loaded: %s", name, error)
    matching = [info for info in infos if pattern is None or fnmatch.fnmatch(info.name, pattern)]
    return sorted(matching, key=lambda info: (info.kind != "coreset", info.year, info.name))


def _names() -> dict[str, str | EntryPoint | AnyMethod]:
    """Return a class, an entry point or an import path for every name; built-in names win."""
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**installed, **_registered, **BUILT_IN}


def _load(name: str, target: str | EntryPoint | AnyMethod) -> AnyMethod:
    if isinstance(target, type):
        return target
    if isinstance(target, EntryPoint):
        loaded: Any = target.load()
        if not _is_method(loaded):
            raise TypeError(
                f"the entry point {name!r} leads to {loaded!r}, which is not a Method, Composer or Selector"
            )
        _check_declared(loaded)
        return loaded
    module, _, attribute = target.partition(":")
    cls: AnyMethod = getattr(importlib.import_module(module), attribute)
    return cls


def _is_method(value: object) -> TypeGuard[AnyMethod]:
    return isinstance(value, type) and issubclass(value, tuple(_KINDS))


def _check_declared(cls: AnyMethod) -> None:
    """Raise `TypeError` unless a class declares and defines what a method must."""
    info = getattr(cls, "info", None)
    base, kind = next(item for item in _KINDS.items() if issubclass(cls, item[0]))
    if not isinstance(info, MethodInfo):
        raise TypeError(f"{cls.__name__}.info should be a MethodInfo of kind {kind!r}; got {info!r}")
    if info.kind != kind:
        bases = ", ".join(f"{known.__name__} for {name!r}" for known, name in _KINDS.items())
        raise TypeError(
            f"{cls.__name__}.info should be a MethodInfo of kind {kind!r}, as the class extends "
            f"{base.__name__}; got kind {info.kind!r}. "
            f"The base classes are {bases}"
        )
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise TypeError(f"{cls.__name__} should define {', '.join(missing)}")
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig) and dataclasses.is_dataclass(config)):
        raise TypeError(f"{cls.__name__}.Config should be a dataclass that extends MethodConfig; got {config!r:.80}")
    names = {f.name for f in dataclasses.fields(config)}
    if undecorated := [name for name in vars(config).get("__annotations__", {}) if name not in names]:
        raise TypeError(
            f"{cls.__name__}.Config declares {', '.join(undecorated)} but is not a dataclass of its own; decorate it "
            "with @dataclass(frozen=True)"
        )
    if kind == "synthetic" and "steps" not in names:
        raise TypeError(f"{cls.__name__}.Config should have an option 'steps', the updates of the images")
