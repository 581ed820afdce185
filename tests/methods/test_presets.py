"""Presets of every method: they settle for any task, and their values are those that their descriptions promise."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hf_condense.condensed.decoders import decoder_class
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.settings import Settings, settle
from hf_condense.engine.task import Task
from hf_condense.methods.dc import loops

TASKS = (
    Task(1, 10, (3, 32, 32)),
    Task(10, 10, (1, 28, 28)),
    Task(100, 100, (3, 32, 32)),
    Task(10, 10, (3, 128, 128)),
)
PRESETS = [(info.name, preset) for info in list_methods() for preset in (None, *get_method(info.name).presets)]
NAMED = [(method, preset) for method, preset in PRESETS if preset is not None]


def settled(method: str, preset: str | None, task: Task) -> tuple[Settings, Any]:
    """Return the settings of a preset, and the options of the method that they make."""
    cls = get_method(method)
    settings = settle(cls, preset, {}, task)
    return settings, cls.Config.build(settings.options)


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
    text = get_method(method).presets[preset].description
    settings, config = settled(method, preset, task)
    number = r"(\d[\d,]*)"
    if found := re.match(rf"(?:.*, )?{number}(?: to {number})? steps", text):
        least, most = (int(part.replace(",", "")) for part in (found[1], found[2] or found[1]))
        assert least <= config.steps <= most
    if found := re.search(r"at width (\d+)", text):
        assert settings.network == {"32": "convnet-w32", "128": "convnet"}[found[1]]
    if "factor 2" in text:
        assert (settings.storage, settings.expand) == ("patches", 4)
    if "whole sets of pixels" in text:
        assert (settings.storage, config.batch_syn) == ("pixels", None)
    if "five per" in text:
        assert config.ipm == 5
    if "falling rates" in text:
        assert config.decay
    if "unclamped" in text:
        assert settings.pixel_range == "free"
    if "pixels stay valid" in text:
        assert settings.pixel_range == "valid"
    if found := re.match(rf"{number} networks of {number} steps", text):
        networks, steps = (int(part.replace(",", "")) for part in found.groups())
        assert (config.outer_loop, config.steps) == (steps, networks * steps)


@pytest.mark.parametrize("method", [method for method, preset in NAMED if preset == "paper"])
def test_description_of_the_papers_settings_names_the_place_of_the_paper(method: str) -> None:
    cls = get_method(method)
    text = cls.presets["paper"].description
    assert f"({cls.info.venue} {cls.info.year})" in text or method == "rded"


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
