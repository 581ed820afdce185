"""Methods by name: built-in, registered, and installed by other packages."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from hf_condense.api import condense_dataset
from hf_condense.engine.method import Loss, Method, MethodInfo, Preset, Selector
from hf_condense.engine.options import MethodConfig, option
from hf_condense.engine.registry import (
    BUILT_IN,
    canonical_name,
    get_method,
    list_methods,
    register_method,
    unregister_method,
)
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.kcenter import KCenter
from hf_condense.methods.random import RandomRows
from hf_condense.testing import check_method, toy_dataset

INFO = MethodInfo(
    name="first",
    title="First rows",
    kind="coreset",
    summary="Takes the first rows.",
    paper="None",
    authors="Nobody",
    venue="Nowhere",
    year=1999,
    link="https://example.org",
    cost="none",
    aliases=("leading", "head"),
)


@dataclass(frozen=True)
class NoOptions(MethodConfig):
    """No options."""


TOY = toy_dataset(names=("cat", "dog", "eel"))


class FirstRows(Selector[NoOptions]):
    info: ClassVar[MethodInfo] = INFO
    Config = NoOptions

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return torch.arange(n)


@dataclass(frozen=True)
class MeanPixelsConfig(MethodConfig):
    """Options of matching mean pixels."""

    steps: int = option(10, "Updates of the images.", ge=1)
    lr_img: float = option(0.1, "Learning rate of the images.", gt=0, role="image_rate")
    batch_real: int = option(8, "Real images per class and step.", ge=1)


class MeanPixels(Method[MeanPixelsConfig]):
    info: ClassVar[MethodInfo] = dataclasses.replace(INFO, name="mean_pixels", kind="synthetic", aliases=())
    Config = MeanPixelsConfig

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        for classes in run.chunks():
            real = run.real_batch(classes, self.config.batch_real, t).mean(1)  # (k, C, H, W)
            images, labels = run.synthetic.of(classes)
            synthetic = torch.stack([images[labels == c].mean(0) for c in classes])
            loss = (synthetic - real).square().sum()
            yield loss, loss.detach()


@pytest.fixture(autouse=True)
def _unregister_methods() -> Iterator[None]:
    yield
    for info in list_methods():
        if info.name not in BUILT_IN:
            unregister_method(info.name)


def names(pattern: str | None = None) -> list[str]:
    return [info.name for info in list_methods(pattern)]


def test_built_in_methods_are_listed_coresets_first() -> None:
    assert set(names()) == set(BUILT_IN)
    kinds = [info.kind for info in list_methods()]
    assert kinds == sorted(kinds, key=lambda kind: kind != "coreset")
    assert names("r*") == ["random", "rded"]
    assert names("[mr]*") == ["random", "mtt", "m3d", "rded"]
    assert names("x*") == []


def test_every_name_gives_its_method() -> None:
    for info in list_methods():
        assert get_method(info.name).info == info
        assert canonical_name(get_method(info.name)) == info.name
    assert get_method("dm") is DistributionMatching
    assert get_method("echo") is get_method("m3d")


def test_method_is_available_until_it_is_unregistered() -> None:
    assert register_method(FirstRows) is FirstRows
    assert get_method("first") is get_method("head") is get_method("leading") is FirstRows
    assert names("first") == ["first"]
    register_method(FirstRows)  # a second time, as when a notebook cell is run twice
    unregister_method("first")
    with pytest.raises(ValueError, match="no method is named 'first'"):
        get_method("first")
    with pytest.raises(ValueError, match="'first' was not registered; registered: none"):
        unregister_method("first")


def test_method_registered_under_another_name_is_called_by_it() -> None:
    register_method(FirstRows, "mine")
    assert canonical_name(FirstRows) == "mine"
    assert [info.title for info in list_methods("mine")] == ["First rows"]
    small = condense_dataset(toy_dataset(names=("a", "b", "c")), "head", 1, progress=False)
    assert small.recipe.method == "mine"


@pytest.mark.parametrize("name", ["random", "dm", "auto"])
def test_name_in_use_raises_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"named '{name}' exists already; names and aliases in use: .*kcenter"):
        register_method(FirstRows, name)
    with pytest.raises(ValueError, match="'dm' was not registered"):
        unregister_method("dm")


def test_another_class_of_the_same_name_raises_value_error() -> None:
    register_method(FirstRows)
    with pytest.raises(ValueError, match="'first' exists already"):
        register_method(type("Other", (FirstRows,), {}))


@pytest.mark.parametrize("name", ["data_free", "my_test", "a" * 60])
def test_name_after_which_no_set_can_be_named_raises_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a method begins those of its sets: config name"):
        register_method(FirstRows, name)
    assert name not in [info.name for info in list_methods()]


@pytest.mark.parametrize("name", ["First", "first-rows", "1st", "a b", "../x"])
def test_name_with_other_characters_raises_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="lower case letters, digits and _; got"):
        register_method(FirstRows, name)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (FirstRows(NoOptions()), "takes a subclass of Method, Composer or Selector; got"),
        (dict, "takes a subclass of Method, Composer or Selector; got"),
        (type("NoInfo", (RandomRows,), {"info": None}), "NoInfo.info should be .* of kind 'coreset'; got None"),
        (type("Odd", (RandomRows,), {"info": MeanPixels.info}), "Odd.info should be .* of kind 'coreset'"),
        (type("NoConfig", (RandomRows,), {"Config": dict}), "NoConfig.Config should be a dataclass"),
        (type("Empty", (Method,), {"info": MeanPixels.info, "Config": NoOptions}), "Empty should define losses"),
        (type("Void", (Selector,), {"info": INFO, "Config": NoOptions}), "Void should define select"),
    ],
)
def test_class_that_is_not_a_method_raises_type_error(cls: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register_method(cls, "mine")


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"year": "2026"}, r"year of the MethodInfo 'mean_pixels' should be of type int; got '2026' \(str\)"),
        ({"summary": None}, r"summary of the MethodInfo 'mean_pixels' should be of type str; got None"),
        ({"aliases": "mean"}, r"aliases of the MethodInfo 'mean_pixels' should be of type tuple; got 'mean' \(str\)"),
    ],
)
def test_fact_of_another_type_is_refused_before_it_breaks_the_list_of_methods(fact: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dataclasses.replace(MeanPixels.info, name="mean_pixels", **fact)


def install(folder: Path, entries: str, module: str) -> None:
    """Put a package with entry points into a folder, as pip would."""
    about = folder / "other_methods-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-methods\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[hf_condense.methods]\n{entries}")
    (folder / "other_methods.py").write_text(module)


def test_installed_methods_are_available_and_broken_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        tmp_path,
        "installed = other_methods:Installed\nlost = other_methods:Lost\nodd = other_methods:ODD\n"
        "away = nowhere_at_all:X\nrandom = other_methods:Installed\n",
        "from hf_condense.methods.random import RandomRows\nclass Installed(RandomRows): pass\nODD = 5\n",
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with caplog.at_level(logging.WARNING, "hf_condense"):
            assert set(names()) == {*BUILT_IN, "installed"}
        for broken in ("lost", "odd", "away"):
            assert f"the method '{broken}' of another package cannot be loaded" in caplog.text
        assert get_method("installed").__name__ == "Installed"
        assert get_method("random") is RandomRows  # built-in names win
        register_method(FirstRows)
        assert get_method("head") is FirstRows  # an alias is found beside broken packages
        with pytest.raises(ValueError, match=r"named 'instaled'; did you mean 'installed'\?"):
            get_method("instaled")
        with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
            get_method("away")
        with pytest.raises(
            TypeError, match="entry point 'odd' leads to 5, which is not a Method, Composer or Selector"
        ):
            get_method("odd")
        with pytest.raises(ValueError, match="'installed' exists already"):
            register_method(FirstRows, "installed")
    assert "installed" not in names()


@pytest.mark.parametrize("cls", [FirstRows, MeanPixels])
def test_third_party_methods_keep_the_laws(cls: Any) -> None:
    register_method(cls)
    check_method(cls.info.name)


def test_broken_law_raises_assertion_error_that_names_it() -> None:
    class Undocumented(FirstRows):
        info: ClassVar[MethodInfo] = dataclasses.replace(INFO, link="")

    register_method(Undocumented)
    with pytest.raises(AssertionError, match="declared: The method describes itself"):
        check_method("first")


def test_config_without_the_decorator_raises_type_error_that_names_its_options() -> None:
    class Bare(MethodConfig):
        steps: int = option(3, "Updates.")

    class Careless(MeanPixels):
        Config = Bare

    with pytest.raises(TypeError, match=r"declares steps but is not a dataclass .* decorate it with @dataclass"):
        register_method(Careless)


def test_method_without_steps_raises_type_error() -> None:
    class Endless(MeanPixels):
        Config = NoOptions

    with pytest.raises(TypeError, match=r"Endless\.Config should have an option 'steps'"):
        register_method(Endless)


def test_kind_of_another_base_class_raises_type_error_that_names_the_base_classes() -> None:
    class Confused(MeanPixels):
        info: ClassVar[MethodInfo] = INFO

    with pytest.raises(TypeError, match=r"as the class extends Method; got kind 'coreset'.* Selector for 'coreset'"):
        register_method(Confused)


def test_auto_raises_value_error_that_says_what_it_is() -> None:
    with pytest.raises(ValueError, match="'auto' is not a method; condense_dataset"):
        get_method("auto")


@pytest.mark.parametrize("alias", ["echo", "k_center"])
def test_alias_in_use_raises_value_error(alias: str) -> None:
    with pytest.raises(ValueError, match=f"named '{alias}' exists already"):
        register_method(FirstRows, alias)
    assert get_method("echo") is get_method("m3d")


def test_aliases_of_a_base_class_stay_those_of_the_base() -> None:
    class Nearer(KCenter):
        info: ClassVar[MethodInfo] = dataclasses.replace(KCenter.info, name="nearer")

    register_method(Nearer)
    register_method(KCenter, "another")
    try:
        assert get_method("k_center") is KCenter
    finally:
        unregister_method("nearer")
        unregister_method("another")


@pytest.mark.parametrize("alias", ["dm", "echo", "auto"])
def test_method_that_claims_an_alias_in_use_is_refused(alias: str) -> None:
    class Claiming(FirstRows):
        info: ClassVar[MethodInfo] = dataclasses.replace(FirstRows.info, name="claiming", aliases=(alias,))

    with pytest.raises(ValueError, match=f"named '{alias}' exists already"):
        register_method(Claiming)


def test_package_may_register_the_class_of_its_own_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = (
        "from hf_condense import register_method\n"
        "from hf_condense.methods.random import RandomRows\n"
        "class Both(RandomRows): pass\n"
        "register_method(Both, 'both')\n"
    )
    install(tmp_path, "both = both_ways:Both\n", "")
    (tmp_path / "both_ways.py").write_text(module)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with caplog.at_level(logging.WARNING, "hf_condense"):
            assert get_method("both").__name__ == "Both"
    assert not caplog.records
    unregister_method("both")


@dataclass(frozen=True)
class BlankConfig(MeanPixelsConfig):
    """Options with starts of their own."""

    init: str = option("black", "What to start from.", role="init")


class FromBlank(MeanPixels):
    info: ClassVar[MethodInfo] = dataclasses.replace(MeanPixels.info, name="from_blank")
    Config = BlankConfig
    own_starts: ClassVar[tuple[str, ...]] = ("white",)
    presets: ClassVar[dict[str, Preset]] = {"wrong": Preset("Noise.", lambda task: {"init": "noize"})}

    def prepare(self, run: Run) -> None:
        assert self.config.init != "noize", "what a preset names is checked before hours of preparation"

    def initialise(self, run: Run) -> SyntheticSet:
        return run.start("real" if self.config.init in ("black", "white") else self.config.init)


def test_method_may_start_from_what_it_declares_and_from_its_default() -> None:
    register_method(FromBlank)
    options = {"network": "convnet-w4-d1", "steps": 1, "progress": False, "cache": False}
    for init in ({}, {"init": "black"}, {"init": "white"}, {"init": "herding"}):
        assert len(condense_dataset(TOY, "from_blank", 1, **options, **init)) == 3
    for wrong in ({"init": "noize"}, {"preset": "wrong"}):
        with pytest.raises(ValueError, match=r"init should be one of 'white', 'real', 'noise', .*did you mean 'noise'"):
            condense_dataset(TOY, "from_blank", 1, **options, **wrong)


def test_start_that_declares_its_choices_is_checked_by_them() -> None:
    @dataclass(frozen=True)
    class ChosenConfig(MeanPixelsConfig):
        begin: str = option("a", "What to start from.", role="init", choices=("a", "b"))

    class Chosen(FromBlank):
        info: ClassVar[MethodInfo] = dataclasses.replace(MeanPixels.info, name="chosen")
        Config = ChosenConfig

        def prepare(self, run: Run) -> None: ...

        def initialise(self, run: Run) -> SyntheticSet:
            return run.start("real")

    register_method(Chosen)
    options = {"network": "convnet-w4-d1", "steps": 1, "progress": False, "cache": False}
    assert len(condense_dataset(TOY, "chosen", 1, begin="b", **options)) == 3
