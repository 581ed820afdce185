"""Presets of every method: they settle for any task, and their values are those that their descriptions promise."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_condense.condensed.decoders import decoder_class
from hf_condense.engine.forms import best_form
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.settings import Settings, settle
from hf_condense.engine.task import Task
from hf_condense.methods._student_presets import long_windows, paper_kind, shared_quick_values, short_run
from hf_condense.methods.dc import loops

TASKS = (
    Task(1, 10, (3, 32, 32)),
    Task(10, 10, (1, 28, 28)),
    Task(100, 100, (3, 32, 32)),
    Task(10, 10, (3, 128, 128)),
)
PRESETS = [(info.name, preset) for info in list_methods() for preset in (None, *get_method(info.name).presets)]
NAMED = [(method, preset) for method, preset in PRESETS if preset is not None]
NUMBER = r"(\d[\d,]*)"
WIDTHS = {32: "convnet-w32", 128: "convnet"}
# What a description may say, and whether the settings of the run, the options of the method and the numbers fit it.
CLAUSES: dict[str, Callable[..., bool]] = {
    rf"^(?:.*, )?{NUMBER}(?: to {NUMBER})? steps": lambda s, o, least, most=None: least <= o.steps <= (most or least),
    rf"^{NUMBER} networks of {NUMBER} steps": lambda s, o, n, each: (o.outer_loop, o.steps) == (each, n * each),
    rf"^{NUMBER} steps on {NUMBER} networks": lambda s, o, steps, n: o.outer_loop * n == steps,
    rf"at width {NUMBER}": lambda s, o, width: s.network == WIDTHS[width],
    rf"^Features of a network of width {NUMBER}": lambda s, o, width: s.network == WIDTHS[width],
    rf"(?:, |^){NUMBER} experts": lambda s, o, n: o.experts == n,
    "trained with GSAM": lambda s, o: o.flatness > 0 and o.surrogate_gap > 0,
    rf", {NUMBER} networks of {NUMBER} epochs of {NUMBER} images": lambda s, o, n, epochs, images: (
        (o.networks, o.pool_size, o.pool_updates) == ("pool", n, epochs * (images // o.batch_pool))
    ),
    rf"{NUMBER} frequencies": lambda s, o, n: o.frequencies == n,
    "factor 2": lambda s, o: (s.storage, s.expand) == ("patches", 4),
    rf"with pixels, at most {NUMBER} in a step": lambda s, o, most: (
        s.storage == "pixels" and o.batch_syn in (None, most)
    ),
    "five per": lambda s, o: o.ipm == 5,
    "falling rates": lambda s, o: o.decay,
    "unclamped": lambda s, o: s.pixel_range == "free",
    "pixels stay valid": lambda s, o: s.pixel_range == "valid",
    "real rows first": lambda s, o: o.init == "real",
    "labels of the experts": lambda s, o: (o.soft_labels, o.labels_from) == ("teacher", "experts"),
    "8 bits per channel": lambda s, o: s.store_dtype == "uint8",
    "in the middle of an empty image": lambda s, o: o.padded,
}


def settled(method: str, preset: str | None, task: Task) -> tuple[Settings, Any]:
    """Return the settings of a preset, and the options of the method that they make."""
    cls = get_method(method)
    settings = settle(cls, preset, {}, task)
    return settings, cls.Config.build(settings.options)


def promises(text: str) -> dict[str, list[int]]:
    """Return the clauses that stand in a description, each with its numbers."""
    found = {clause: re.search(clause, text) for clause in CLAUSES}
    return {
        clause: [int(number.replace(",", "")) for number in match.groups() if number]
        for clause, match in found.items()
        if match
    }


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"ipc{task.ipc}-{'x'.join(map(str, task.image_shape))}")
@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_preset_settles_and_builds_for_any_task(method: str, preset: str | None, task: Task) -> None:
    settings, config = settled(method, preset, task)
    get_method(method)(config)
    form = decoder_class(settings.storage)(task.image_shape, settings.expand)
    assert form.rows(task.ipc) == settings.expand * task.ipc


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"ipc{task.ipc}-{'x'.join(map(str, task.image_shape))}")
@pytest.mark.parametrize(("method", "preset"), NAMED)
def test_values_are_those_that_the_description_promises(method: str, preset: str, task: Task) -> None:
    promised = promises(get_method(method).presets[preset].description)
    assert promised, "no sentence of the description is understood: reword it, or teach CLAUSES to read it"
    settings, config = settled(method, preset, task)
    broken = [clause for clause, numbers in promised.items() if not CLAUSES[clause](settings, config, *numbers)]
    assert not broken


def test_every_clause_stands_in_a_description() -> None:
    """A clause that no description has any more would be checked nowhere."""
    texts = [get_method(method).presets[preset].description for method, preset in NAMED]
    assert {clause for text in texts for clause in promises(text)} == set(CLAUSES)


@pytest.mark.parametrize("method", [method for method, preset in NAMED if preset == "paper"])
def test_description_of_the_papers_settings_names_the_place_of_the_paper(method: str) -> None:
    cls = get_method(method)
    assert f"({cls.info.venue} {cls.info.year})" in cls.presets["paper"].description


GREY, COLOUR = (1, 28, 28), (3, 32, 32)
# What measured best at 1 and at 10 images per class, for some at 50, and under m3d also at 3 and 5: storage form, rows
# per image, and rows in a student step.
FORMS = [
    ("m3d", Task(1, 10, COLOUR), ("dct", 32, None)),
    ("m3d", Task(3, 10, COLOUR), ("dct", 32, None)),
    ("m3d", Task(5, 10, COLOUR), ("dct", 16, None)),
    ("m3d", Task(5, 10, GREY), ("dct", 8, None)),
    ("m3d", Task(10, 10, GREY), ("dct", 8, None)),
    ("dc", Task(5, 10, COLOUR), ("dct", 8, None)),
    ("dc", Task(1, 10, COLOUR), ("dct", 16, None)),
    ("dsa", Task(1, 10, GREY), ("dct", 8, None)),
    ("dc", Task(10, 10, GREY), ("dct", 8, None)),
    ("dc", Task(11, 10, GREY), ("pixels", 1, None)),
    ("esp", Task(1, 10, COLOUR), ("dct", 16, 40)),
    ("esp", Task(10, 10, COLOUR), ("dct", 8, 400)),
    ("esp", Task(50, 10, COLOUR), ("dct", 8, 128)),
    ("esp", Task(51, 10, COLOUR), ("pixels", 1, 128)),
    ("mtt", Task(1, 10, GREY), ("dct", 8, 40)),
    ("mtt", Task(10, 10, GREY), ("dct", 8, 100)),
    ("tesla", Task(50, 10, COLOUR), ("dct", 8, 128)),
    ("datm", Task(10, 10, COLOUR), ("pixels", 1, None)),
    ("datm", Task(50, 10, COLOUR), ("pixels", 1, 128)),
]


@pytest.mark.parametrize(("method", "task", "expected"), FORMS)
def test_quick_runs_store_the_form_that_measured_best(
    method: str, task: Task, expected: tuple[str, int, int | None]
) -> None:
    settings, config = settled(method, "quick", task)
    assert (settings.storage, settings.expand, getattr(config, "batch_syn", None)) == expected


@pytest.mark.parametrize(
    ("method", "task", "expected"),
    [
        *[("mtt", Task(1, 10, shape), (150, 10, 20, 0.05)) for shape in (COLOUR, GREY)],
        ("tesla", Task(1, 10, COLOUR), (150, 10, 20, 0.05)),
        ("esp", Task(1, 10, GREY), (1600, 10, 20, 0.05)),
        *[("datm", Task(1, 10, shape), (150, 10, 20, 0.02)) for shape in (COLOUR, GREY)],
        ("datm", Task(1, 10, (3, 12, 12)), (400, 4, 8, 0.012)),
        ("mtt", Task(1, 10, (3, 12, 12)), (400, 4, 8, 0.03)),  # pixels
        ("esp", Task(10, 10, COLOUR), (1000, 12, 24, 0.1)),
    ],
)
def test_quick_runs_of_few_images_in_frequencies_follow_long_windows(
    method: str, task: Task, expected: tuple[int, int, int, float]
) -> None:
    _, config = settled(method, "quick", task)
    assert (config.steps, config.expert_span, config.student_steps, config.lr_student) == expected
    last_start = config.max_start - 1
    assert last_start + config.expert_span <= config.snapshots - 1, "the last window ends with the last snapshot"


@pytest.mark.parametrize("method", ["mtt", "tesla", "esp", "datm"])
@pytest.mark.parametrize("preset", ["quick", "default"])
def test_student_steps_of_large_sets_take_some_of_their_rows(method: str, preset: str) -> None:
    for task, most in ((Task(50, 100, COLOUR), 500), (Task(10, 100, COLOUR), 500), (Task(50, 10, COLOUR), None)):
        expected = 128 if preset == "quick" and task.ipc > 10 else most
        assert settled(method, preset, task)[1].batch_syn == expected


def test_quick_runs_of_large_sets_keep_their_own_rate_and_hard_labels() -> None:
    for method in ("dm", "m3d", "dance", "ncfm"):
        rates = [
            get_method(method).presets["quick"].values(Task(ipc, 10, COLOUR, storage="dct", expand=8))["lr_img"]
            / get_method(method).presets["quick"].values(Task(ipc, 10, COLOUR))["lr_img"]
            for ipc in (10, 11, 50)
        ]
        assert rates == pytest.approx([4, 1, 1]), method
    for method in ("mtt", "tesla"):
        assert [settled(method, "quick", Task(ipc, 10, COLOUR))[1].lr_img for ipc in (10, 11, 50)] == [1000, 250, 250]
    labels = [settled("datm", "quick", Task(ipc, 10, COLOUR))[1].soft_labels for ipc in (3, 10, 11)]
    assert labels == ["none", "learned", "none"]


def test_papers_settings_whiten_no_images_that_are_too_large_for_it() -> None:
    assert settled("mtt", "paper", Task(1, 10, COLOUR))[1].zca
    assert not settled("mtt", "paper", Task(1, 10, (3, 40, 120)))[1].zca


def test_rates_are_those_of_the_channels_that_vary() -> None:
    def rate(std: tuple[float, float, float]) -> float:
        source = SimpleNamespace(image_shape=COLOUR, std=torch.tensor(std))
        return settled("m3d", "default", Task.of({0: 1, 1: 1}, source))[1].lr_img

    assert rate((0.2, 0.2, 1.0)) == pytest.approx(rate((0.2, 0.2, 0.2)))
    assert rate((1.0, 1.0, 1.0)) < rate((0.2, 0.2, 0.2))


ALL_FAMILIES = "color_crop_cutout_flip_scale_rotate"
COMMON = {"network": "convnet", "storage": "pixels", "expand": 1, "store_dtype": "float32"}
OF_DM = {**COMMON, "pixel_range": "free", "steps": 20_000, "batch_real": 256, "momentum": 0.5, "init": "real"}
OF_DC = {**COMMON, "pixel_range": "free", "batch_real": 256, "momentum": 0.5, "lr_img": 0.1, "lr_net": 0.01}
OF_M3D = {**COMMON, "storage": "patches", "expand": 4, "pixel_range": "valid", "steps": 10_000, "batch_syn": 200}
OF_RDED = {**COMMON, "pixel_range": "valid", "store_dtype": "uint8", "padded": True, "temperature": 20.0}
PAPERS: list[tuple[str, Task, dict[str, Any]]] = [
    # A new network, real batch and augmentation in every step; the rate grows at 100 images per class.
    ("dm", TASKS[0], {**OF_DM, "lr_img": 1.0, "ipm": 1, "augment": ALL_FAMILIES, "networks": "fresh", "draws": None}),
    ("dm", TASKS[1], {**OF_DM, "lr_img": 1.0}),
    ("dm", Task(50, 10, (3, 32, 32)), {**OF_DM, "lr_img": 1.0}),
    ("dm", TASKS[2], {**OF_DM, "lr_img": 10.0}),
    # 1,000 networks, each for as many steps as the outer loop has.
    ("dc", TASKS[0], {**OF_DC, "steps": 1000, "init": "noise", "augment": "none", "distance": "layerwise"}),
    ("dc", TASKS[1], {**OF_DC, "steps": 10_000, "outer_loop": None, "inner_loop": None, "matched": "all"}),
    ("dc", TASKS[2], {**OF_DC, "steps": 50_000}),
    ("dsa", TASKS[0], {**OF_DC, "steps": 1000, "init": "real", "augment": ALL_FAMILIES, "distance": "layerwise"}),
    ("dsa", TASKS[1], {**OF_DC, "steps": 10_000, "init": "real", "augment": ALL_FAMILIES}),
    # In pixels of [0, 1], the rate is 1 for each image of a class; a standard deviation is a quarter here.
    ("m3d", TASKS[0], {**OF_M3D, "lr_img": 16.0, "batch_real": 128, "ipm": 5, "kernel": "gaussian"}),
    ("m3d", TASKS[1], {**OF_M3D, "lr_img": 160.0, "reuse_real": False, "augment": "color_crop_cutout"}),
    # Small images are whole crops whose views are only mirrored; larger ones are mosaics of four.
    ("rded", TASKS[0], {**OF_RDED, "mosaic": 1, "view_area": 1.0, "pictures": 300, "crops": 5}),
    ("rded", Task(10, 200, (3, 64, 64)), {**OF_RDED, "mosaic": 1, "view_area": 1.0}),
    ("rded", TASKS[3], {**OF_RDED, "mosaic": None, "view_area": 0.5, "crop_area": 0.08}),
]


@pytest.mark.parametrize(("method", "task", "expected"), PAPERS)
def test_papers_settings_are_those_of_the_authors(method: str, task: Task, expected: dict[str, Any]) -> None:
    settings, config = settled(method, "paper", task)
    assert {name: getattr(settings, name, getattr(config, name, None)) for name in expected} == expected


@pytest.mark.parametrize("ipc", [1, 10, 20, 50, 100])
@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_gradients_are_matched_along_a_thousand_networks_and_by_default_a_fifth_of_them(method: str, ipc: int) -> None:
    task = Task(ipc, 10, (3, 32, 32))
    steps = {preset: settled(method, preset, task)[1].steps for preset in ("paper", "default")}
    assert steps == {"paper": 1000 * loops(ipc)[0], "default": 200 * loops(ipc)[0]}


@pytest.mark.parametrize("method", ["dm", "m3d", "dance", "ncfm"])
def test_quick_runs_in_frequencies_take_four_times_the_rate(method: str) -> None:
    for task in TASKS[:2]:
        rates = {
            storage: get_method(method)
            .Config.build(settle(get_method(method), "quick", {"storage": storage}, task).options)
            .lr_img
            for storage in ("pixels", "patches", "dct")
        }
        assert rates["dct"] == pytest.approx(4 * rates["pixels"])
        assert rates["patches"] == rates["pixels"]


@pytest.mark.parametrize("preset", ["quick", "default"])
@pytest.mark.parametrize(
    ("method", "expected"), [("dm", [1, 10, 10]), ("m3d", [16, 160, 40]), ("ncfm", [0.04, 0.04, 0.02])]
)
def test_rates_of_short_runs_follow_images_per_class_and_the_spread_of_pixels(
    method: str, expected: list[float], preset: str
) -> None:
    values = get_method(method).presets[preset].values
    rates = [values(Task(ipc, 10, COLOUR, std=std))["lr_img"] for ipc, std in ((1, 0.25), (10, 0.25), (10, 0.5))]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ipc", "expand", "experts", "snapshots", "expert_span", "max_start"),
    [(1, 1, 24, 13, 4, 8), (1, 16, 16, 25, 4, 12), (10, 1, 16, 25, 12, 8)],
)
def test_experts_and_windows_of_quick_runs_are_those_that_were_measured(
    ipc: int, expand: int, experts: int, snapshots: int, expert_span: int, max_start: int
) -> None:
    values = shared_quick_values(Task(ipc, 10, COLOUR, expand=expand))
    assert (values["snapshot_every"], values["lr_expert"], values["batch_expert"]) == (4, 0.05, 128)
    assert (values["experts"], values["snapshots"]) == (experts, snapshots)
    assert (values["expert_span"], values["max_start"]) == (expert_span, max_start)


def test_short_runs_of_many_images_have_fewer_steps_over_short_windows_at_a_larger_rate() -> None:
    expected = {"steps": 150, "expert_span": 4, "max_start": 12, "lr_img": 1e4, "lr_student": 0.03}
    assert expected.items() <= short_run(Task(10, 10, COLOUR)).items()


@pytest.mark.parametrize(("ipc", "row"), [(1, 1), (3, 1), (4, 10), (20, 10), (23, 50), (500, 50)])
def test_paper_takes_the_row_whose_ratio_is_nearest(ipc: int, row: int) -> None:
    expected = settled("mtt", "paper", Task(row, 10, COLOUR))[1]
    assert settled("mtt", "paper", Task(ipc, 10, COLOUR))[1].max_start == expected.max_start


@pytest.mark.parametrize("method", ["mtt", "tesla", "datm"])
def test_student_steps_of_a_paper_take_the_whole_set_up_to_1000_rows(method: str) -> None:
    batches = [settled(method, "paper", Task(ipc, 40, COLOUR))[1].batch_syn for ipc in (1, 25, 26, 500)]
    assert batches[:2] == [None, None]
    assert batches[2:3] == [1000]


def test_papers_students_follow_experts_as_the_authors_trained_and_labelled() -> None:
    for ipc in (1, 10, 50):
        mtt, tesla = (get_method(name).presets["paper"].values(Task(ipc, 10, (3, 32, 32))) for name in ("mtt", "tesla"))
        assert mtt["augment_expert"] == tesla["augment_expert"] == ALL_FAMILIES
        assert mtt["pixel_range"] == tesla["pixel_range"] == "free"
        assert (tesla["soft_labels"], tesla["labels_from"]) == ("teacher", "experts")
        assert "soft_labels" not in mtt


def test_best_form_changes_above_fifty_images_per_class() -> None:
    forms = [best_form(Task(ipc, 10, (3, 32, 32))) for ipc in (50, 51)]
    assert forms == [("dct", 8), ("pixels", 1)]


@pytest.mark.parametrize(
    ("method", "few", "many"), [("mtt", 800, 300), ("tesla", 800, 300), ("datm", 800, 300), ("esp", 6000, 2000)]
)
def test_default_runs_along_experts_have_twice_the_steps_of_short_ones(method: str, few: int, many: int) -> None:
    assert [settled(method, "default", Task(ipc, 10, COLOUR))[1].steps for ipc in (1, 10)] == [few, many]


def test_long_windows_are_for_frequencies_alone() -> None:
    """Neither patches nor coordinate networks were measured with them, however many rows they have."""
    for storage, expand in (("patches", 9), ("siren", 37), ("dct", 4)):
        assert long_windows(Task(1, 10, COLOUR, storage=storage, expand=expand), steps=150) == {}
    assert long_windows(Task(1, 10, COLOUR, storage="dct", expand=8), steps=150)["expert_span"] == 10


def test_kind_of_a_task_follows_the_shorter_side_and_the_classes() -> None:
    cases = ((49, (32, 96)), (50, (47, 47)), (50, (96, 48)))
    kinds = [paper_kind(Task(1, classes, (3, *size))) for classes, size in cases]
    assert kinds == ["few classes", "many classes", "large"]


def test_rates_of_images_and_students_along_experts_are_those_that_were_measured() -> None:
    tasks = (Task(1, 10, COLOUR), Task(1, 10, COLOUR, expand=16), Task(10, 10, COLOUR))
    values = [shared_quick_values(task) for task in tasks]
    assert [(each["lr_img"], each["lr_student"]) for each in values] == [(1000, 0.03), (1000, 0.03), (1000, 0.1)]
    _, config = settled("esp", "quick", Task(1, 10, (3, 12, 12)))  # pixels
    assert (config.steps, config.student_steps, config.lr_img) == (3000, 12, 1000)


def test_loops_batches_and_rates_of_short_gradient_matching_are_those_that_were_measured() -> None:
    for ipc, lengths in ((1, (1, None)), (10, (10, 5)), (50, (10, 5))):
        _, dc = settled("dc", "quick", Task(ipc, 10, COLOUR))
        assert (dc.lr_img, dc.batch_real, dc.outer_loop, dc.inner_loop) == (1.0, 64, *lengths)
    _, idc = settled("idc", "quick", Task(1, 10, COLOUR))
    assert (idc.outer_loop, idc.inner_loop, idc.batch_syn) == (40, 4, 20)
    assert settled("idc", "default", Task(1, 10, COLOUR))[1].batch_syn == 128
    assert settled("idc", "paper", Task(10, 10, GREY))[1].inner_loop == 8


def test_papers_composed_sets_have_ten_views_with_ten_logits_each() -> None:
    _, config = settled("rded", "paper", TASKS[3])
    assert (config.views, config.top_k, config.soft_labels) == (10, 10, "teacher")
