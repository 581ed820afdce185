"""The caller wins over the preset, and the preset over the defaults; budgets by class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from hf_condense.api import condense_dataset
from hf_condense.cli import main
from hf_condense.condensed.recipe_checks import PIXEL_RANGES, STORE_DTYPES
from hf_condense.engine.method import Method, Preset
from hf_condense.engine.registry import get_method, list_methods, register_method, unregister_method
from hf_condense.engine.settings import Settings, ipc_by_class, preset_values, settle
from hf_condense.engine.task import Task
from hf_condense.methods.dm import DistributionMatching
from hf_condense.methods.random import RandomRows
from hf_condense.source.class_source import ClassSource
from hf_condense.testing import toy_dataset
from tests.support.picture_sets import read

TASK = Task(ipc=2, num_classes=3, image_shape=(3, 8, 8))


@dataclass(frozen=True)
class Values:
    """The values of a preset."""

    fixed: dict[str, Any]

    def __call__(self, task: Task) -> dict[str, Any]:
        return {**self.fixed, "batch_real": 10 * task.ipc}


class WithPresets(DistributionMatching):
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("Used unless another preset is named.", Values({"steps": 7, "factor": 2})),
        "loose": Preset("All kinds of options.", Values({"network": "convnet-w16", "pixel_range": "free", "steps": 5})),
    }


def settled(cls: type[Method[Any]], preset: str | None = None, **given: Any) -> Settings:
    return settle(cls, preset, given, TASK)


def test_values_left_open_take_the_defaults() -> None:
    assert settled(DistributionMatching) == Settings(
        "convnet", "pixels", 1, "valid", "float32", {"steps": 1000, "lr_img": 2.0}
    )
    open_values = {"network": None, "factor": None, "pixel_range": None, "steps": None, "lr_img": None}
    assert settled(DistributionMatching, **open_values) == settled(DistributionMatching)


def test_preset_wins_over_the_defaults() -> None:
    assert settled(WithPresets, "loose") == Settings(
        "convnet-w16", "pixels", 1, "free", "float32", {"steps": 5, "batch_real": 20}
    )


def test_default_preset_is_used_unless_another_is_named() -> None:
    assert settled(WithPresets) == Settings("convnet", "patches", 4, "valid", "float32", {"steps": 7, "batch_real": 20})


def test_caller_wins_over_the_preset() -> None:
    settings = settled(WithPresets, "loose", network="convnet-w8", pixel_range="valid", steps=1, lr_img=3.0, factor=2)
    assert settings == Settings(
        "convnet-w8", "patches", 4, "valid", "float32", {"steps": 1, "batch_real": 20, "lr_img": 3.0}
    )


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"storage": "dct"}, ("dct", 16)),
        ({"storage": "dct", "expand": 5}, ("dct", 5)),
        ({"storage": "siren"}, ("siren", 2)),
        ({"storage": "pixels"}, ("pixels", 1)),
        ({"factor": 1}, ("pixels", 1)),
        ({"expand": 9}, ("patches", 9)),  # of the form that the preset's factor stands for
    ],
)
def test_form_that_the_caller_names_wins_as_a_whole(given: dict[str, Any], form: tuple[str, int]) -> None:
    settings = settled(WithPresets, **given)
    assert (settings.storage, settings.expand) == form


@pytest.mark.parametrize(
    ("values", "storage", "form"),
    [
        ({"storage": "dct", "expand": 32}, "dct", ("dct", 32)),
        ({"storage": "dct", "expand": 32}, "siren", ("siren", 2)),
        ({"factor": 3}, "patches", ("patches", 9)),
        ({"factor": 3}, "pixels", ("pixels", 1)),
    ],
)
def test_form_of_the_preset_keeps_its_expand_if_the_caller_names_it_too(
    values: dict[str, Any], storage: str, form: tuple[str, int]
) -> None:
    class Expanding(DistributionMatching):
        presets: ClassVar[dict[str, Preset]] = {"default": Preset("Several rows.", Values(values))}

    settings = settled(Expanding, storage=storage)
    assert (settings.storage, settings.expand) == form


def test_none_replaces_a_value_of_the_preset_where_the_option_may_be_none() -> None:
    class Cut(DistributionMatching):
        presets: ClassVar[dict[str, Preset]] = {"default": Preset("Some rows.", Values({"batch_syn": 4, "ipm": 2}))}

    assert settled(Cut).options == {"batch_real": 20, "batch_syn": 4, "ipm": 2}
    assert settled(Cut, batch_syn=None, ipm=None, steps=None).options == {"batch_real": 20, "batch_syn": None, "ipm": 2}
    assert settled(Cut, storage=None, network=None).storage == "pixels"


def test_store_dtype_of_the_caller_wins_over_the_preset() -> None:
    class Half(DistributionMatching):
        presets: ClassVar[dict[str, Preset]] = {"default": Preset("Half.", Values({"store_dtype": "float16"}))}

    assert settled(Half).store_dtype == "float16"
    assert settled(Half, store_dtype="float32").store_dtype == "float32"
    with pytest.raises(ValueError, match=r"store_dtype should be one of 'float32', 'float16', 'uint8'; got 'float64'"):
        settled(Half, store_dtype="float64")


@pytest.mark.parametrize(
    ("method", "preset", "given", "message"),
    [
        ("dm", None, {"early_teacher": True}, r"early_teacher=True has no effect with soft_labels='none'; it needs .*"),
        (
            "datm",
            "quick",
            {"early_teacher": True, "soft_labels": "learned"},
            r"early_teacher=True has no effect with labels_from='experts'; it needs labels_from='teacher'\. Pass that",
        ),
        (
            "mtt",
            None,
            {"labels_from": "experts"},
            r"labels_from='experts' has .* with soft_labels='none'; it needs soft_labels='teacher' or 'learned'\. Pass",
        ),
        ("m3d", None, {"weight_decay": 0.1}, r"weight_decay=0.1 has no effect with optimiser='form'; .*='adamw'\."),
        ("dm", None, {"pool_size": 3}, r"pool_size=3 has no effect with networks='fresh'; it needs networks='pool'\."),
        ("ncfm", None, {"lr_pool": 1.0, "networks": "fresh"}, r"lr_pool=1.0 has no effect with networks='fresh'"),
        ("m3d", None, {"frequencies": 9}, r"frequencies=9 has .* kernel='gaussian'; .* kernel='characteristic'\."),
        ("ncfm", None, {"scales": "2", "kernel": "linear"}, r"scales='2' has no effect with kernel='linear'"),
        ("dc", None, {"temperature": 2.0}, r"temperature=2.0 has no effect with soft_labels='none'"),
        (
            "dm",
            None,
            {"teacher_updates": 9},
            r"has no effect with soft_labels='none'; it needs soft_labels='teacher'\.",
        ),
        (
            "mtt",
            None,
            {"lr_label": 9.0, "soft_labels": "teacher"},
            r"lr_label=9.0 has .*; it needs soft_labels='learned'",
        ),
        ("esp", None, {"beside_weight": 2.0}, r"has no effect with beside='none'; it needs beside='dm' or 'm3d'\."),
        ("esp", None, {"batch_real": 9}, r"batch_real=9 has no effect with beside='none'; it needs beside="),
        (
            "esp",
            None,
            {"teacher_updates": 9, "soft_labels": "teacher", "labels_from": "experts"},
            r"teacher_updates=9 has no effect with labels_from='experts'; it needs labels_from='teacher'\.",
        ),
        (
            "rded",
            None,
            {"views": 3, "soft_labels": "none"},
            r"views=3 has .* soft_labels='none'; it needs soft_labels=",
        ),
        ("rded", None, {"teacher": "folder", "teacher_size": 9}, r"teacher_size=9 has .*; it needs teacher=None\."),
        ("ncfm", None, {"momentum": 0.9}, r"momentum=0.9 has no effect with optimiser='adamw'; .* leave momentum out"),
    ],
)
def test_option_of_the_caller_without_effect_raises_value_error(
    method: str, preset: str | None, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settle(get_method(method), preset, given, TASK)


@pytest.mark.parametrize(
    ("method", "preset", "given"),
    [
        ("dm", None, {"early_teacher": False, "weight_decay": 0.0}),
        ("dm", None, {"early_teacher": True, "soft_labels": "teacher"}),
        ("datm", "quick", {"soft_labels": "learned", "early_teacher": True, "labels_from": "teacher"}),
        ("datm", "quick", {"soft_labels": "none"}),  # its experts' labels are those of the preset
        ("m3d", None, {"weight_decay": 0.1, "optimiser": "adamw"}),
        ("ncfm", "paper", {"optimiser": "form"}),  # its weight decay too
        ("dance", None, {"pool_size": 3}),
        ("m3d", None, {"frequencies": 9, "kernel": "characteristic"}),
        ("esp", None, {"beside_weight": 2.0, "batch_real": 9, "beside": "m3d"}),
        ("mtt", None, {"momentum": 0.9}),  # a method without another optimiser
    ],
)
def test_option_with_an_effect_or_from_a_preset_is_taken(
    method: str, preset: str | None, given: dict[str, Any]
) -> None:
    assert given.items() <= settle(get_method(method), preset, given, TASK).options.items()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"lr_img": 5.0}, None),
        ({"lr_stored": 5.0}, None),
        ({"storage": "siren"}, None),
        ({"storage": "dct", "lr_img": 5.0}, None),
        ({"storage": "siren", "lr_img": 5.0}, "storage='siren' has a rate of its own, 0.001, which lr_stored= changes"),
        ({"lr_stored": 1.0, "lr_img": 5.0}, "lr_stored=1.0 is the rate of what is stored"),
    ],
)
def test_image_rate_of_the_caller_that_moves_nothing_is_told(
    given: dict[str, Any], why: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    settle(get_method("dm"), "quick", given, Task(ipc=2, num_classes=3, image_shape=(3, 16, 16)))
    expected = [] if why is None else [f"lr_img=5.0 does not move what is stored: {why}"]
    assert [record.getMessage() for record in caplog.records] == expected


@pytest.mark.parametrize("storage", ["pixels", "siren"])
def test_momentum_of_the_caller_that_moves_nothing_is_told(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    given = {"storage": storage, "momentum": 0.9}
    settle(get_method("dc"), "quick", given, Task(ipc=2, num_classes=3, image_shape=(3, 16, 16)))
    told = "momentum=0.9 has no effect: storage='siren' is learned by Adam"
    assert [record.getMessage() for record in caplog.records] == ([told] if storage == "siren" else [])


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize(
    ("given", "store_dtype", "told"),
    [
        ({}, "uint8", False),
        ({"storage": "dct"}, "float32", False),  # the preset has no bytes for this form
        ({"pixel_range": "free"}, "float32", True),
        ({"pixel_range": "free", "store_dtype": "float16"}, "float16", False),
    ],
)
def test_bytes_of_the_preset_that_do_not_hold_the_images_are_told(
    preset: str | None, given: dict[str, Any], store_dtype: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settle(get_method("rded"), preset, given, Task(ipc=2, num_classes=3, image_shape=(3, 16, 16)))
    assert settings.store_dtype == store_dtype
    message = (
        "the preset stores images in [0, 1] as 'uint8'; with storage='pixels' and pixel_range='free', it stores "
        "'float32', which takes more bytes"
    )
    assert [record.getMessage() for record in caplog.records] == [message] * told


def test_coreset_given_store_dtype_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"store_dtype.*'float16'.*a coreset"):
        settle(RandomRows, None, {"store_dtype": "float16"}, TASK)


@pytest.mark.parametrize(
    "given", [{"factor": 1}, {"pixel_range": "valid"}, {"factor": 1, "steps": None}, {"store_dtype": "float32"}]
)
def test_coreset_accepts_neutral_values(given: dict[str, Any]) -> None:
    assert settle(RandomRows, None, given, TASK) == Settings("convnet", "pixels", 1, "valid", "float32", {})


def test_recipe_holds_values_by_precedence() -> None:
    register_method(WithPresets, "with_presets")
    try:
        small = condense_dataset(
            toy_dataset(names=("a", "b", "c")),
            "with_presets",
            1,
            preset="loose",
            network="convnet-w8",
            steps=1,
            compile=False,
            progress=False,
        )
    finally:
        unregister_method("with_presets")
    recipe = small.recipe
    assert (recipe.method, recipe.preset) == ("with_presets", "loose")
    assert (recipe.network, recipe.steps) == ("convnet-w8", 1)  # from the call
    assert (recipe.pixel_range, recipe.options["batch_real"]) == ("free", 10)  # from the preset
    assert (recipe.storage, recipe.options["momentum"]) == ("pixels", 0.5)  # from the defaults


@pytest.fixture(scope="module")
def source() -> ClassSource:
    """Classes "a" and "c" with 12 rows each; "b" has none."""
    ds = toy_dataset(names=("a", "b", "c"))
    return read(ds.filter(lambda label: label != 1, input_columns="label"))


def test_one_number_applies_to_every_class_with_rows(source: ClassSource) -> None:
    assert ipc_by_class(12, source) == {0: 12, 2: 12}


@pytest.mark.parametrize("ipc", [{"c": 3, "a": 1}, {2: 3, "a": 1}, {0: 1, 2: 3}])
def test_numbers_by_name_or_value_are_returned_in_class_order(source: ClassSource, ipc: dict[Any, int]) -> None:
    assert list(ipc_by_class(ipc, source).items()) == [(0, 1), (2, 3)]


def test_integer_that_may_stand_for_two_classes_is_refused() -> None:
    source = read(toy_dataset(names=("2", "0", "cat")))
    with pytest.raises(ValueError, match=r"ipc names 0, which is the label of class '2', while another class is .*'0'"):
        ipc_by_class({0: 1, 1: 2, 2: 3}, source)
    assert ipc_by_class({"0": 1, "2": 2, "cat": 3}, source) == {1: 1, 0: 2, 2: 3}
    assert ipc_by_class({0: 1, 1: 2, 2: 3}, read(toy_dataset(names=("0", "1", "2")))) == {0: 1, 1: 2, 2: 3}


def test_classes_with_too_few_rows_are_counted_and_ways_out_are_named(source: ClassSource) -> None:
    with pytest.raises(
        ValueError,
        match=r"ipc=99 is more than the \d+ rows of class 'a' \(2 classes have too few\), and coresets repeat no row;",
    ) as caught:
        ipc_by_class(99, source, of_real_rows=True)
    least = min(source.counts.values())
    assert f"ipc={least} suits all classes; a dict, such as {{'a': " in str(caught.value)
    with pytest.raises(ValueError, match=r"rows of class 'a', and coresets .*; ask for no more than that$"):
        ipc_by_class({"a": 99, "c": 1}, source, of_real_rows=True)


def test_learned_sets_may_have_more_images_than_a_class_has_rows(source: ClassSource) -> None:
    assert ipc_by_class({"a": 99, "c": 1}, source) == {0: 99, 2: 1}


@pytest.mark.parametrize(("option", "choices"), [("pixel_range", PIXEL_RANGES), ("store_dtype", STORE_DTYPES)])
def test_command_line_repeats_the_choices_that_it_cannot_import_in_time(option: str, choices: tuple[str, ...]) -> None:
    (parameter,) = (parameter for parameter in main.commands["run"].params if parameter.name == option)
    assert tuple(parameter.type.choices) == choices


@pytest.mark.parametrize("name", [info.name for info in list_methods()])
def test_values_of_presets_are_those_of_a_run(name: str) -> None:
    cls = get_method(name)
    for preset, shape in itertools.product(cls.presets, [(3, 32, 32), (1, 8, 8)]):
        task = Task(ipc=2, num_classes=3, image_shape=shape)
        values = preset_values(cls, preset, task)
        run = settle(cls, preset, {}, task)
        of_run = {**run.options, "storage": run.storage, "expand": run.expand, "network": run.network}
        of_run |= {"pixel_range": run.pixel_range, "store_dtype": run.store_dtype}
        assert of_run | values == of_run


def test_values_of_a_preset_name_its_form() -> None:
    task = Task(ipc=1, num_classes=10, image_shape=(3, 32, 32))
    assert preset_values(get_method("dm"), "quick", task) == {
        "steps": 1000,
        "ipm": 5,
        "decay": True,
        "network": "convnet-w32",
        "lr_img": 4.0,
        "storage": "dct",
        "expand": 32,
    }
    of_factor = preset_values(get_method("idc"), "default", task)
    assert (of_factor["storage"], of_factor["expand"], "factor" in of_factor) == ("patches", 4, False)
