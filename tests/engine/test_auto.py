"""method="auto" chooses by a rule, says what it chose, and lets the caller win."""

import logging
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from hf_condense import api, condense_dataset
from hf_condense.base.errors import RunInterrupted
from hf_condense.engine import auto
from hf_condense.engine.auto import _Case, choose
from hf_condense.engine.build import check_request
from hf_condense.engine.checkpoint import workers_in
from hf_condense.engine.picture_teacher import TEACHER, TEACHER_SIDE
from hf_condense.engine.registry import get_method
from hf_condense.engine.task import Task
from hf_condense.testing import toy_dataset

CPU = torch.device("cpu")


def choose_for(ipc: int = 10, size: int = 32, classes: int = 10, budget: float | None = None, **given):
    return choose(Task(ipc, classes, (3, size, size)), budget, None, **{"device": CPU, "workers": 2, **given})


def test_steps_grow_with_minutes_and_cores_and_shrink_with_work() -> None:
    steps = choose_for(budget=2).values["steps"]
    assert choose_for(budget=4).values["steps"] == pytest.approx(2 * steps, rel=0.05)
    assert choose_for(budget=2, workers=4).values["steps"] == pytest.approx(2 * steps, rel=0.1)
    assert choose_for(budget=2, classes=20).values["steps"] == pytest.approx(steps / 2, rel=0.1)
    assert choose_for(budget=1e-6).values["steps"] == 10
    assert choose_for(budget=1e6).values["steps"] == 10_000


def test_pool_of_networks_is_taken_if_it_leaves_most_of_the_budget() -> None:
    assert "networks" not in choose_for(budget=5).values
    assert "random networks" in choose_for(budget=5).reason
    choice = choose_for(budget=15)
    assert (choice.values["networks"], choice.values["calibration"]) == ("pool", 0.01)
    assert "a pool of 10 trained networks" in choice.reason
    assert choose_for(budget=5, workers=8).values["networks"] == "pool"
    assert "networks" not in choose_for(budget=15, classes=1).values, "a classifier needs two classes"
    assert "networks" not in choose_for(budget=15, ipc=50, classes=100).values, "few steps would be left"
    assert "networks" not in choose_for(budget=15, given={"steps": 5}).values, "the budget does not matter"


def test_what_the_caller_says_about_the_pool_decides() -> None:
    fresh = choose_for(budget=15, given={"networks": "fresh", "calibration": None}).values
    assert not {"networks", "calibration", "pool_size"} & fresh.keys()
    assert fresh["steps"] > choose_for(budget=15).values["steps"]
    small = choose_for(budget=1, given={"calibration": 0.1}).values
    assert (small["networks"], small["calibration"]) == ("pool", 0.1)
    assert "networks" not in choose_for(budget=1, given={"calibration": 0}).values, "no calibration asks for no pool"
    without = choose_for(budget=15, given={"calibration": 0}).values
    assert (without["networks"], without["calibration"]) == ("pool", 0)
    assert without["steps"] > choose_for(budget=15).values["steps"], "without calibration a step costs less"
    for option in ({"lr_pool": 0.1}, {"augment_pool": "color"}, {"cutmix_pool": 0.5}):
        assert choose_for(budget=1, given=option).values["networks"] == "pool"
    large = choose_for(budget=15, given={"pool_size": 30})
    assert large.values["steps"] < choose_for(budget=15).values["steps"]
    assert "a pool of 30 trained networks" in large.reason


def test_pool_is_not_taken_for_a_network_with_frozen_parameters() -> None:
    for network, expected in ((frozen, None), (LinearNetwork, "pool")):
        choice = choose(Task(1, 10, (3, 32, 32)), 60, network, device=CPU, workers=2)
        assert choice.values.get("networks") == expected


@pytest.mark.parametrize("given", [{"networks": "fresh"}, {"steps": 1}, {"networks": "fresh", "steps": 1}])
def test_auto_runs_without_a_pool_if_the_caller_says_so(given: dict) -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=8).remove_columns("note")
    small = condense_dataset(
        ds, ipc=1, network="convnet-w4-d1", budget=1 if "steps" in given else 0.001, progress=False, **given
    )
    assert small.recipe.options["networks"] == "fresh"
    assert small.recipe.options["calibration"] == 0


def test_checkpoint_of_another_budget_is_refused_by_a_message_that_names_the_budget(tmp_path: Path) -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=8).remove_columns("note")
    auto = partial(
        condense_dataset,
        ds,
        ipc=1,
        network="convnet-w4-d1",
        networks="fresh",
        checkpoint_dir=tmp_path,
        progress=False,
    )
    auto(budget=0.001)
    with pytest.raises(ValueError, match=r"steps: 10 in .*'auto' chose other steps .*pass the budget="):
        auto(budget=5)
    with pytest.raises(ValueError, match=r"seed: 0 .*pass the budget= that it had, and what else it has"):
        auto(budget=5, seed=1)
    with pytest.raises(ValueError, match=r"steps: 10 in the checkpoint, 11 in this run\).*pass what it has"):
        auto(steps=11)


@pytest.mark.parametrize(
    ("given", "factor"),
    [
        # Of each class, 128 real images and 10 synthetic ones, three times, in place of a fifth of the real ones: 2.8
        # times as many, beside the fixed cost of a step.
        ({"reuse_real": False}, 2.5),
        ({"ipm": 1}, 2.5),
        ({"soft_labels": "teacher", "teacher_updates": 3000}, 1.2),
    ],
)
def test_options_that_make_a_run_dearer_leave_fewer_steps(given: dict, factor: float) -> None:
    pixels = {"storage": "pixels", "networks": "fresh"}
    plain = choose_for(budget=5, given=pixels).values["steps"]
    steps = choose_for(budget=5, given={**pixels, **given}).values["steps"]
    assert steps < plain / factor


@pytest.mark.parametrize(
    ("given", "factor"),
    [({"form": "rollout"}, 6), ({"beside": "m3d"}, 5), ({"batch_syn": None}, 1)],
)
def test_options_that_make_a_step_along_experts_dearer_leave_fewer_steps(given: dict, factor: float) -> None:
    pixels = {"storage": "pixels", "experts": 4}
    plain = choose_for(ipc=1, budget=2, candidates=("esp",), given=pixels).values["steps"]
    steps = choose_for(ipc=1, budget=2, candidates=("esp",), given={**pixels, **given}).values["steps"]
    assert steps <= plain / factor


def test_labels_of_experts_take_no_share_of_the_budget() -> None:
    pixels = {"storage": "pixels", "experts": 4, "soft_labels": "teacher"}
    steps = [
        choose_for(ipc=1, budget=2, candidates=("esp",), given={**pixels, **given}).values["steps"]
        for given in ({"labels_from": "experts"}, {"soft_labels": "none"}, {})
    ]
    assert steps[0] == steps[1] > steps[2]


@pytest.mark.parametrize("given", [{"soft_labels": "teacher"}, {"snapshot_every": None}])
def test_experts_are_not_chosen_for_labels_of_a_teacher_or_for_epochs_of_unknown_length(given: dict) -> None:
    assert choose_for(ipc=1, given={"storage": "pixels", "soft_labels": "none"}).method == "esp"
    assert choose_for(ipc=1, given={"storage": "pixels", **given}).method == "m3d"


def test_reason_of_rded_says_whether_the_most_or_the_fewest_updates_and_pictures_decide() -> None:
    for budget, words in ((1e9, "the most; 1e+09 minutes or less"), (1e-3, "the fewest; 0.001 minutes or more")):
        assert words in choose_for(size=96, budget=budget).reason
    assert "(about 15 minutes" in choose_for(size=128).reason
    assert "the most;" in choose_for(ipc=100, size=96, budget=1e9).reason
    assert "(about 1e+09 minutes" in choose_for(size=96, budget=1e9, given={"teacher_updates": 10}).reason


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("seconds", [3, 15])
def test_steps_of_tiny_images_fit_the_budget_although_each_has_a_fixed_cost(size: int, seconds: int) -> None:
    steps = choose_for(size=size, budget=seconds / 60).values["steps"]
    assert seconds / 2 < 1 + 0.02 * steps < 2 * seconds, "a step on 8x8 images takes 0.01 to 0.02 s of one core"


@pytest.mark.parametrize("size", [2, 8])
def test_pool_of_tiny_images_has_a_fixed_cost_too(size: int) -> None:
    """Its 3,000 updates take 6 s, however small the images are."""
    assert "networks" not in choose_for(size=size, budget=17 / 60, workers=64).values
    assert choose_for(size=size, budget=60 / 60, workers=64).values["networks"] == "pool"


@pytest.mark.usefixtures("one_thread")
def test_tiny_budget_is_kept_to_within_a_factor_of_two() -> None:
    ds = toy_dataset(tuple(range(10)), rows=40).remove_columns("note")
    started = time.process_time()
    condense_dataset(ds, ipc=10, budget=4 / 60, label_column="label", cache=False, progress=False)
    assert time.process_time() - started < 8, "seconds of CPU, which other work on the machine does not stretch"


@pytest.mark.parametrize(("size", "shape"), [(1, (1, 1)), ((1, 28), (1, 28))])
def test_auto_condenses_images_of_one_pixel(size: object, shape: tuple[int, int]) -> None:
    ds = toy_dataset().remove_columns("note")
    small = condense_dataset(
        ds, ipc=1, steps=1, label_column="label", image_size=size, network=LinearNetwork, progress=False
    )
    assert tuple(small.synthetic.images.shape[2:]) == shape


class LinearNetwork(torch.nn.Sequential):
    """A network for images of any size."""

    def __init__(self, channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * image_size[0] * image_size[1], num_classes))


def frozen(channels: int, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
    return LinearNetwork(channels, num_classes, image_size).requires_grad_(False)


def test_large_images_are_composed_and_small_ones_learned() -> None:
    choice = choose_for(size=224, classes=100)
    assert (choice.method, choice.preset) == ("rded", "default")
    assert "pictures are large" in choice.reason
    assert choose_for(size=64).method == "m3d"
    assert choose_for(size=224, candidates=("m3d",)).method == "m3d"


def test_teacher_and_pictures_of_composed_images_grow_with_the_budget() -> None:
    small, large = (choose_for(size=224, classes=100, budget=minutes).values for minutes in (2, 4))
    assert large["teacher_updates"] == pytest.approx(2 * small["teacher_updates"], rel=0.02)
    assert choose_for(size=224, classes=1000, budget=1).values["pictures"] == 40
    assert choose_for(size=224, budget=1e6).values["pictures"] == 300


def test_more_crops_of_a_picture_leave_fewer_pictures() -> None:
    few, many = (choose_for(size=224, classes=100, budget=2, given={"crops": n}).values["pictures"] for n in (5, 10))
    assert many == pytest.approx(few / 2, rel=0.05)


@pytest.mark.parametrize(
    ("given", "suitable"),
    [
        ({"steps": 2}, ("m3d", "esp")),
        ({"preset": "quick"}, ("m3d", "esp")),
        ({"ipm": 2}, ("m3d",)),
        ({"student_steps": 5}, ("esp",)),
    ],
)
def test_options_of_learning_are_followed_for_large_images(given: dict, suitable: tuple[str, ...]) -> None:
    chosen = check_request("auto", given.pop("preset", None), given, {"steps": given.pop("steps", None)})
    assert chosen == suitable
    assert choose_for(size=224, candidates=suitable).method == suitable[0]


def test_few_whole_colour_images_are_learned_along_experts() -> None:
    pixels = {"storage": "pixels"}
    choice = choose_for(ipc=1, budget=5, given=pixels)
    assert (choice.method, choice.preset, choice.values["storage"]) == ("esp", "quick", "pixels")
    assert "whole images (as asked for), along 24 networks in training" in choice.reason
    assert choose_for(ipc=3, budget=15, given={"factor": 1}).method == "esp"
    assert choose_for(ipc=1, budget=4, given=pixels).values["steps"] < choice.values["steps"]
    for changes in (
        {"given": {}},
        {"given": {**pixels, "steps": 1000}},
        {"given": {**pixels, "batch_real": 64}},
        {"given": {**pixels, "batch_syn": 1}},
        {"given": {**pixels, "lr_img": 20.0}},
        {"ipc": 10},
        {"budget": 1},
        {"classes": 1},
        {"size": 96, "candidates": ("m3d", "esp")},
        {"candidates": ("m3d", "rded")},
    ):
        assert choose_for(**{"ipc": 1, "budget": 5, "given": pixels, **changes}).method == "m3d", changes
    grey = choose(Task(1, 10, (1, 28, 28)), 5, None, device=CPU, workers=2, given=pixels)
    assert grey.method == "m3d"


@pytest.mark.parametrize(("sides", "method"), [((32, 64), "esp"), ((32, 96), "m3d"), ((96, 32), "m3d")])
def test_images_with_one_long_side_are_not_learned_along_experts(sides: tuple[int, int], method: str) -> None:
    options = {"device": CPU, "workers": 2, "candidates": ("m3d", "esp"), "given": {"storage": "pixels"}}
    assert choose(Task(1, 10, (3, *sides)), 60, None, **options).method == method


def test_network_with_frozen_parameters_is_not_trained_as_an_expert() -> None:
    for network, method in ((frozen, "m3d"), (LinearNetwork, "esp")):
        options = {"device": CPU, "workers": 2, "given": {"storage": "pixels"}}
        assert choose(Task(1, 10, (3, 32, 32)), 60, network, **options).method == method


def test_synthetic_rows_of_an_objective_beside_the_experts_have_a_price() -> None:
    shared = {"storage": "pixels", "experts": 4}
    alone, both = (
        choose_for(ipc=1, size=64, budget=10, candidates=("esp",), given={**shared, **given}).values["steps"]
        for given in ({}, {"beside": "dm", "batch_real": 1})
    )
    assert alone > 1.25 * both


def test_batch_of_more_rows_than_a_class_has_costs_as_much_as_all_of_them() -> None:
    whole, larger = (
        choose_for(budget=2, given={"networks": "fresh", "batch_syn": rows}).values["steps"] for rows in (None, 10_000)
    )
    assert whole == larger


def test_steps_along_experts_are_priced_as_the_preset_makes_them() -> None:
    # Of 10 images per class, a step takes four rows for each image, 400 in all; of 50, it takes 128.
    few, many = (choose_for(ipc=ipc, budget=20, candidates=("esp",)).values["steps"] for ipc in (10, 50))
    assert 2.5 * few < many < 3.5 * few
    given = {"batch_syn": 384}
    assert choose_for(ipc=50, budget=20, candidates=("esp",), given=given).values["steps"] < many / 2.5


def test_choice_of_experts_runs() -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=16).remove_columns("note")
    options = {"experts": 1, "snapshots": 4, "expert_span": 2, "max_start": 1, "student_steps": 2, "steps": 2}
    small = condense_dataset(ds, ipc=1, network="convnet-w4-d1", progress=False, cache=False, compile=False, **options)
    assert (small.recipe.method, small.recipe.preset, small.recipe.storage) == ("esp", None, "dct")


def test_large_pictures_of_one_class_are_read_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are streamed for `rded` alone, which one class rules out."""
    reads, load = [], api.load_source
    monkeypatch.setattr(api, "load_source", lambda ds, **how: reads.append(how["streams"]) or load(ds, **how))
    monkeypatch.setattr(auto, "_FEWEST_STEPS", 1)
    ds = toy_dataset((0,), names=("a",), size=66).remove_columns("note")
    off = {"progress": False, "cache": False, "compile": False}
    small = condense_dataset(ds, ipc=1, storage="pixels", budget=1e-6, network="convnet-w4-d1", **off)
    assert small.recipe.method == "m3d"
    assert reads == [True, False]
    assert small.recipe.nearest is not None, "of streamed pictures there are no distances"


def test_options_of_composing_are_followed_for_small_images() -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=16).remove_columns("note")
    small = condense_dataset(
        ds, ipc=1, mosaic=2, teacher_updates=2, views=1, network="convnet-w4-d1", progress=False, cache=False
    )
    assert (small.recipe.method, small.recipe.options["mosaic"]) == ("rded", 2)


@pytest.mark.parametrize(
    ("given", "form", "text"),
    [
        ({"storage": "siren"}, ("siren", 37), "storage 'siren' with 37 rows in the space of one image (as asked for)"),
        ({"expand": 4}, ("dct", 4), "storage 'dct' with 4 rows in the space of one image (as asked for)"),
        ({"factor": 2}, ("patches", 4), "storage 'patches' with 4 rows in the space of one image (as asked for)"),
        ({"storage": "pixels"}, ("pixels", 1), "whole images (as asked for)"),
        ({"storage": "dct"}, ("dct", 32), "storage 'dct' with 32 rows in the space of one image (it gained most"),
        ({}, ("dct", 32), "storage 'dct' with 32 rows in the space of one image (it gained most"),
    ],
)
def test_form_that_the_caller_names_is_chosen_and_told(given: dict, form: tuple[str, int], text: str) -> None:
    choice = choose_for(ipc=1, given=given)
    assert (choice.values["storage"], choice.values["expand"]) == form
    assert text in choice.reason


@pytest.mark.parametrize("given", [{"batch_real": 16}, {"ipm": 20}, {"batch_syn": 8}, {"storage": "pixels"}])
def test_options_that_make_steps_cheaper_give_more_of_them(given: dict) -> None:
    assert choose_for(ipc=1, budget=2, given=given).values["steps"] > choose_for(ipc=1, budget=2).values["steps"]


def test_embeddings_are_of_half_the_real_rows_that_the_method_takes_itself() -> None:
    values = choose_for(ipc=10, budget=2).values
    assert values["batch_real"] == 128 == get_method("m3d").Config().batch_real // 2


def test_options_of_the_caller_are_among_the_values() -> None:
    values = choose_for(given={"batch_real": 16, "ipm": 2, "steps": 3}).values
    assert (values["batch_real"], values["ipm"], values["steps"]) == (16, 2, 3)
    composed = choose_for(size=224, given={"pictures": 7, "teacher_updates": 1234})
    assert (composed.values["pictures"], composed.values["teacher_updates"]) == (7, 1234)
    assert "7 pictures per class" in composed.reason
    assert "a teacher of 1,234 updates" in composed.reason


def test_run_of_auto_resumes_on_a_machine_with_other_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = partial(condense_dataset, toy_dataset(), ipc=1, budget=0.1, label_column="label", progress=False)
    call = partial(call, checkpoint_dir=tmp_path, network="convnet-w4-d1", compile=False)

    def interrupt(run: object, done: int, loss: float) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(RunInterrupted, match="the checkpoint of step 2 of ") as caught:
        call(callbacks=[interrupt])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(RunInterrupted) as again:
        call(callbacks=[lambda run, done, loss: signal.raise_signal(signal.SIGTERM)])
    steps = [str(error.value).split(" is in ")[0].split(" of ")[-1] for error in (caught, again)]
    assert steps[0] == steps[1], "the run should have as many steps as before"
    monkeypatch.undo()
    assert workers_in(tmp_path) == (3, 1)
    assert workers_in(tmp_path / "nowhere") is None


def test_processes_share_the_work_of_a_budget() -> None:
    fresh = {"budget": 2, "given": {"networks": "fresh"}}
    alone = choose_for(**fresh).values["steps"]
    assert choose_for(**fresh, processes=5).values["steps"] == pytest.approx(5 * alone, rel=0.2)
    assert choose_for(**fresh, processes=40).values["steps"] == pytest.approx(10 * alone, rel=0.3), "10 classes"
    assert choose_for(budget=5, processes=4).values["networks"] == "pool"
    large = choose_for(size=224, classes=100, budget=1).values
    composed = choose_for(size=224, classes=100, budget=1, processes=4).values
    assert composed["teacher_updates"] == large["teacher_updates"], "one process trains the teacher"
    assert composed["pictures"] == pytest.approx(4 * large["pictures"], rel=0.1)


def test_more_processes_than_networks_do_not_train_them_faster() -> None:
    one, two, eight = (
        _Case(Task(1, 10, (3, 32, 32)), 5, "convnet-w8", 1e9, processes, {}).seconds_of_networks(2, 100, 16)
        for processes in (1, 2, 8)
    )
    assert two == eight == one / 2


def test_steps_of_the_caller_are_told_in_place_of_the_minutes() -> None:
    reason = choose_for(budget=2, given={"steps": 3}).reason
    assert "3 steps (as asked for, whatever the budget of 2 minutes)" in reason
    assert "about 2 minutes" not in reason
    choice = choose_for(budget=2, candidates=("esp",), given={"steps": 3, "experts": 7})
    assert "along 7 networks in training, 3 steps (as asked for, whatever the budget of 2 minutes)" in choice.reason
    assert choice.values["steps"] == 3


def test_teacher_of_the_caller_is_not_told_as_one_that_is_trained() -> None:
    reason = choose_for(size=224, given={"teacher": "folder"}).reason
    assert "the teacher that was passed" in reason
    assert "teacher_updates" not in choose_for(size=224, given={"teacher": "folder"}).values
    assert "updates" not in reason


def test_composing_small_images_is_not_explained_by_their_size() -> None:
    reason = choose_for(size=32, candidates=("rded",)).reason
    assert "as the options ask for" in reason
    assert "large" not in reason


def test_many_or_small_images_are_stored_whole() -> None:
    assert choose_for(ipc=10).values["storage"] == "dct"
    assert choose_for(ipc=100).values["storage"] == "pixels"
    assert choose_for(size=8).values["storage"] == "pixels"


def test_a_gpu_gets_the_wide_network() -> None:
    assert choose_for().values["network"] == "convnet-w32"
    assert choose_for(device=torch.device("cuda")).values["network"] == "convnet"
    assert choose(Task(1, 2, (1, 28, 28)), 5, "convnet-w8", device=CPU, workers=1).values["network"] == "convnet-w8"


def test_a_laptops_gpu_gets_fewer_steps_than_a_servers() -> None:
    laptop, server = (choose_for(budget=1, device=torch.device(kind)).values for kind in ("mps", "cuda"))
    assert laptop["network"] == server["network"]
    assert laptop["steps"] < server["steps"]


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_budget_out_of_range_raises_value_error(budget: float) -> None:
    with pytest.raises(ValueError, match="budget should be a positive number of minutes; got"):
        choose_for(budget=budget)


@pytest.mark.parametrize("budget", ["5", True])
def test_budget_of_another_type_raises_type_error(budget: object) -> None:
    with pytest.raises(TypeError, match="budget should be a number; got"):
        choose_for(budget=budget)


def test_caller_wins_and_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=16)
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        small = condense_dataset(
            ds, ipc=1, steps=2, batch_real=4, network="convnet-w4-d1", budget=1, progress=False, compile=False
        )
    assert (small.recipe.method, small.recipe.steps, small.recipe.storage, small.recipe.expand) == (
        "m3d",
        2,
        "dct",
        32,
    )
    assert small.recipe.options["batch_real"] == 4
    (line,) = [record.getMessage() for record in caplog.records if "auto" in record.getMessage()]
    assert line.startswith("method='auto' runs m3d, storage 'dct' with 32 rows")
    assert "1 minute)" in line


def test_run_takes_the_form_that_the_log_tells(caplog: pytest.LogCaptureFixture) -> None:
    ds = toy_dataset(names=("a", "b", "c"), size=16)
    options = {"steps": 1, "batch_real": 4, "network": "convnet-w4-d1", "progress": False, "compile": False}
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        small = condense_dataset(ds, ipc=1, storage="dct", **options)
    (line,) = [record.getMessage() for record in caplog.records if "auto" in record.getMessage()]
    assert small.recipe.expand == 32
    assert "storage 'dct' with 32 rows" in line


def test_method_of_a_preset_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    options = {"preset": "quick", "steps": 1, "network": "convnet-w4-d1", "progress": False, "compile": False}
    with caplog.at_level(logging.INFO, logger="hf_condense"):
        condense_dataset(toy_dataset(names=("a", "b", "c")), ipc=1, **options)
    assert "method='auto' runs m3d with preset='quick'" in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (1e-9, r"10 steps \(the fewest; 1e-09 minutes or more on"),
        (1e9, r"10,000 steps \(the most; less than 1e\+09 minutes on"),
    ],
)
def test_steps_that_no_budget_decides_are_told_as_such(minutes: float, text: str) -> None:
    reason = choose(Task(1, 10, (3, 32, 32)), minutes, None, device=CPU, workers=1).reason
    assert re.search(text, reason), reason


def test_pictures_that_are_scored_are_told() -> None:
    """A set of mosaics needs four crops, of as many pictures, for each of its images."""
    assert choose(Task(1000, 10, (3, 65, 65)), 15, None, device=CPU, workers=1).values["pictures"] == 4000


@pytest.mark.parametrize("given", [{"method": "dm"}, {"method": "auto", "preset": "quick"}])
def test_budget_without_auto_raises_value_error(given: dict) -> None:
    with pytest.raises(ValueError, match=r"budget is for method='auto' without a preset.*steps="):
        condense_dataset(toy_dataset(names=("a", "b", "c")), ipc=1, budget=3, progress=False, **given)


def test_experts_whose_training_takes_more_than_a_third_of_the_budget_are_not_chosen() -> None:
    """There would be time for many steps, all the same."""
    few, many = (choose_for(ipc=1, budget=30, given={"storage": "pixels", "experts": n}) for n in (24, 300))
    steps = choose_for(ipc=1, budget=30, candidates=("esp",), given={"storage": "pixels", "experts": 300}).values
    assert steps["steps"] > 500
    assert (few.method, many.method) == ("esp", "m3d")


def test_teacher_and_crops_take_their_shares_of_the_budget() -> None:
    values = choose_for(ipc=1, size=224, classes=100, budget=2).values
    case = _Case(Task(1, 100, (3, 224, 224)), 2, values["network"], 2 * 1.5e9, 1, {})
    seconds = case.seconds_of_forward_at((TEACHER_SIDE, TEACHER_SIDE))
    assert values["teacher_updates"] * 3 * TEACHER.batch_size * seconds == pytest.approx(60, rel=0.02)
    assert values["pictures"] * 100 * values["crops"] * seconds == pytest.approx(30, rel=0.1)
