"""Every storage form goes through everything that a set goes through; a further one is one file and one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors import safe_open

from hf_condense import (
    CondensedDataset,
    CondensedFormatError,
    Run,
    condense_dataset,
    evaluate,
    list_methods,
    load_condensed,
)
from hf_condense.condensed.files.names import FACTS, README, TENSORS
from hf_condense.condensed.preview import grid
from hf_condense.engine.nearest import nearest_real
from hf_condense.engine.registry import get_method
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.condensed_sets import assert_same
from tests.support.half_size import registered

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")
LEARNING = [info.name for info in list_methods() if info.kind == "synthetic"]


# Every form with the name of what it learns, the shape of an entry of that, and the rows of a class for each image of
# its budget. Images have 3 x 8 x 8 numbers.
FORMS = {
    "half": ("small", (3, 4, 4), 4),
    "dct": ("coefficients", (12,), 16),
    "siren": ("weights", (81,), 2),
}
forms = pytest.mark.parametrize("storage", FORMS)


@pytest.fixture(autouse=True)
def _half_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the form of the tests, and make fits of networks short."""
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 40)
    with registered():
        yield


def condense(method: str = "dm", ipc: Any = 1, storage: str = "half", **options: Any) -> CondensedDataset:
    return quick_method(method, storage=storage, **options).condense(TOY, ipc)


def learned(small: CondensedDataset) -> torch.Tensor:
    """Return the tensor that a set has learned."""
    return small.synthetic.stored[FORMS[small.recipe.storage][0]]


@forms
@pytest.mark.parametrize("method", LEARNING)
def test_every_method_learns_in_the_form(method: str, storage: str) -> None:
    _, shape, rows = FORMS[storage]
    first, last = (condense(method, storage=storage, steps=steps) for steps in (1, 3))
    assert learned(last).shape == (3 * rows, *shape)
    moved = (learned(first) - learned(last)).flatten(1).abs().amax(1)
    assert float(moved.min()) > 0, "every row should move"
    for name, tensor in last.synthetic.stored.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, first.synthetic.stored[name]), "what is no float should stay as it was"
    images, labels = last.synthetic.decoded()
    assert images.shape == (3 * rows, 3, 8, 8)
    assert labels.tolist() == [0] * rows + [1] * rows + [2] * rows
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert len(last) == 3 * rows


@pytest.mark.parametrize(
    ("storage", "options", "rate"),
    [
        ("half", {"lr_img": 0.001}, 0.004),
        ("patches", {"lr_img": 0.001, "expand": 4}, 0.001),
        ("dct", {"lr_img": 0.001}, 0.016),
        ("dct", {"lr_img": 0.001, "expand": 6}, 0.006),
        ("dct", {"lr_img": 0.001, "lr_stored": 0.5}, 0.5),
        ("pixels", {"lr_img": 0.001, "lr_stored": 0.0005, "pixel_range": "free"}, 0.0005),
    ],
)
def test_first_step_has_the_rate_that_the_form_makes_of_that_of_the_images(
    storage: str, options: dict[str, Any], rate: float
) -> None:
    runs: list[Run] = []
    observe = {"steps": 1, "momentum": 0.0, "callbacks": [lambda run, done, loss: runs.append(run)]}
    condense(storage=storage, **observe, **options)
    ((name, tensor),) = runs[0].synthetic.learned().items()
    start = runs[0].start("real").stored[name]
    torch.testing.assert_close(tensor.detach(), (start - rate * tensor.grad).detach())
    assert float(tensor.grad.abs().max()) > 1e-3


@pytest.mark.parametrize(("options", "rate"), [({}, 0.001), ({"lr_img": 5.0}, 0.001), ({"lr_stored": 0.01}, 0.01)])
def test_first_step_of_networks_is_that_of_adam(options: dict[str, Any], rate: float) -> None:
    """The first step of Adam moves every weight by its rate, up or down."""
    first: list[torch.Tensor] = []

    def observe(run: Run, done: int, loss: float) -> None:
        first.append((run.synthetic.stored["weights"] - run.start("real").stored["weights"]).detach().abs())

    condense(storage="siren", steps=1, callbacks=[observe], **options)
    assert float(first[0].max()) == pytest.approx(rate, rel=1e-3)
    assert float(first[0].median()) == pytest.approx(rate, rel=1e-2)


@forms
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dm", {"soft_labels": "teacher", "augment": "none"}),
        ("dc", {"soft_labels": "learned"}),
        ("mtt", {"soft_labels": "learned", "average": 0.5}),
    ],
)
def test_resumed_run_equals_the_straight_run(
    method: str, options: dict[str, Any], storage: str, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(run: object, done: int, loss: float) -> None:
        if done == 3:
            raise Stop

    options = {"storage": storage, "steps": 5, "teacher_updates": 2, **options}
    with pytest.raises(Stop):
        condense(method, checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[stop], **options)
    resumed = condense(method, checkpoint_dir=tmp_path, checkpoint_every=2, **options)
    straight = condense(method, **options)
    assert straight.synthetic.soft_labels is not None
    for name, tensor in straight.synthetic.all().items():
        assert torch.equal(tensor, resumed.synthetic.all()[name]), name


@forms
@pytest.mark.parametrize("method", LEARNING)
def test_teacher_labels_every_decoded_row(method: str, storage: str) -> None:
    options = {"soft_labels": "teacher", "teacher_updates": 2, "steps": 2}
    if "labels_from" in get_method(method).Config.__dataclass_fields__:  # experts label the sets of datm
        options["labels_from"] = "teacher"
    small = condense(method, storage=storage, **options)
    assert small.synthetic.soft_labels.shape == (small.synthetic.num_rows, 3)
    assert small.features["soft_label"].length == 3


@pytest.mark.parametrize("method", ["dc", "mtt"])
def test_learned_labels_and_rates_of_students_move_as_far_with_networks_as_with_pixels(method: str) -> None:
    """Adam, which networks take, would move them by their rate in each step, however small the gradient is."""
    moved = {}
    for storage in ("pixels", "siren"):
        sets = [
            condense(method, storage=storage, steps=steps, soft_labels="learned", lr_label=1e-3, teacher_updates=20)
            for steps in (1, 4)
        ]
        labels = [small.synthetic.soft_labels for small in sets]
        moved[storage] = float((labels[1] - labels[0]).abs().max())
        if method == "mtt":
            rates = [float(small.synthetic.student_lr) for small in sets]
            moved[f"rate of {storage}"] = abs(rates[1] - rates[0])
    assert 0 < moved["siren"] < 10 * moved["pixels"], moved
    if method == "mtt":
        assert 0 < moved["rate of pixels"] < 10 * moved["rate of siren"], moved


@pytest.mark.parametrize("method", ["dc", "mtt"])
def test_rate_of_learned_labels_keeps_its_meaning_where_a_form_gives_more_rows(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are means over rows, so that the gradient of each row's label is smaller by their number."""
    rates: list[float | None] = []
    add = torch.optim.Optimizer.add_param_group

    def record(self: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        rates.append(group.get("lr"))
        add(self, group)

    monkeypatch.setattr(torch.optim.Optimizer, "add_param_group", record)
    labels = {"soft_labels": "learned", "lr_label": 0.37, "teacher_updates": 2}
    for storage, expand, rate in (("pixels", 1, 0.37), ("patches", 4, 4 * 0.37), ("dct", 16, 16 * 0.37)):
        rates.clear()
        condense(method, storage=storage, expand=expand, steps=1, **labels)
        assert pytest.approx(rate) in rates, storage


def test_coordinate_networks_that_take_gigabytes_to_decode_are_refused_before_they_are_learned() -> None:
    with pytest.raises(ValueError, match=r"expand=1 takes tensors of .* A larger expand takes less"):
        condense_dataset(TOY, "dm", 1, image_size=1024, storage="siren", expand=1, progress=False, cache=False)


@forms
@pytest.mark.parametrize("ipc", [2, {"cat": 1, "dog": 3, "eel": 2}])
def test_saved_set_comes_back_exactly_and_loads_without_the_library(ipc: Any, storage: str, tmp_path: Path) -> None:
    expand = FORMS[storage][2]
    small = condense(ipc=ipc, storage=storage, soft_labels="teacher", teacher_updates=2)
    counts = [small["label"][:].count(c) for c in range(3)]
    assert counts == [expand * n for n in ((2, 2, 2) if ipc == 2 else (1, 3, 2))]
    folder = small.save_condensed(tmp_path / "sets")
    assert folder.name == (f"dm_ipc2_{storage}{expand}" if ipc == 2 else f"dm_ipc1-3_{storage}{expand}")
    loaded = load_condensed(tmp_path / "sets")
    assert_same(loaded, small)
    assert torch.equal(loaded.synthetic.decoded()[0], small.synthetic.decoded()[0])
    facts = json.loads((folder / FACTS).read_text())
    assert (facts["format_version"], facts["recipe"]["storage"], facts["recipe"]["expand"]) == ("2", storage, expand)
    assert "factor" not in facts["recipe"], "readers of version 1 know a factor, but not this form"
    with safe_open(folder / TENSORS, framework="pt") as opened:
        assert opened.metadata() == {"hf_condense": "2"}
    plain = datasets.load_dataset(str(tmp_path / "sets"), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["label"][:] == small["label"][:]
    assert plain[5]["image"].tobytes() == small[5]["image"].tobytes()


@forms
def test_pushed_set_comes_back_exactly(hub: Any, storage: str) -> None:
    small = condense(storage=storage)
    small.push_to_hub(f"alice/{storage}")
    assert_same(load_condensed(f"alice/{storage}"), small)


@forms
def test_evaluation_adds_as_many_random_rows_as_the_form_decodes_into(storage: str) -> None:
    expand = FORMS[storage][2]
    table = evaluate(
        condense(storage=storage), TOY, networks="convnet-w4-d1", recipe="dc", epochs=1, seeds=1, progress=False
    )
    rows = {row["set"]: row["rows"] for row in table.to_records()}
    expected = {f"dm_ipc1_{storage}{expand}": 3 * expand, "random": 3, f"random x{expand}": min(3 * expand, 36)}
    expected[f"random as {storage}{expand}"] = 3 * expand
    assert {name: rows[name] for name in expected} == expected


@forms
def test_card_says_how_many_rows_an_image_of_the_budget_gives(storage: str, tmp_path: Path) -> None:
    condense(storage=storage).save_condensed(tmp_path)
    assert f"1, each decoded into {FORMS[storage][2]}" in (tmp_path / README).read_text()


@forms
def test_preview_shows_decoded_rows(storage: str) -> None:
    small = condense(storage=storage)
    images, labels = small.synthetic.decoded()
    assert small.preview(2) == grid(images, labels, per_class=2)
    assert small.preview(2).size[0] > small.preview(1).size[0]


@forms
def test_random_state_of_the_form_can_be_noise(storage: str) -> None:
    _, shape, rows = FORMS[storage]
    real, noise = (learned(condense(storage=storage, init=init, steps=1, lr_img=1e-9)) for init in ("real", "noise"))
    assert noise.shape == (3 * rows, *shape)
    assert not torch.allclose(noise, real, atol=0.1)
    if storage == "dct":  # 12 of the 192 coefficients of normal noise, enlarged so that pixels keep their variance
        assert float(noise.std()) == pytest.approx(4.0, rel=0.1)


@forms
def test_herded_rows_can_be_what_the_form_starts_from(storage: str) -> None:
    real, herded = (learned(condense(storage=storage, init=init, steps=1)) for init in ("real", "herding"))
    assert real.shape == herded.shape
    assert not torch.equal(real, herded)


@forms
def test_class_with_fewer_rows_than_the_form_decodes_into_repeats_them(storage: str) -> None:
    rows = FORMS[storage][2]
    few = toy_dataset((0, 1, 2), rows=1, names=("cat", "dog", "eel")).remove_columns("note")
    runs: list[Run] = []
    quick_method(
        "dm", storage=storage, init="real", steps=1, callbacks=[lambda run, done, loss: runs.append(run)]
    ).condense(few, 1)
    start = runs[0].start("real").all()[0]
    by_class = start.unflatten(0, (3, rows)).detach()
    assert by_class.shape == (3, rows, 3, 8, 8)
    copies = by_class[:, 1:] - by_class[:, :1]
    if storage != "siren":  # each network starts from its own draw
        assert float(copies.abs().amax((2, 3, 4)).min()) > 0, "equal rows would stay equal for the whole run"
        assert float(copies.square().mean().sqrt()) < 0.1


@forms
def test_free_pixels_may_leave_the_valid_range(storage: str) -> None:
    free, valid = (
        condense(storage=storage, pixel_range=kind, lr_stored=300.0).synthetic.decoded()[0]
        for kind in ("free", "valid")
    )
    assert float(free.max() - free.min()) > 1.01
    assert float(valid.min()) >= 0
    assert float(valid.max()) <= 1


def test_all_coefficients_of_real_rows_are_copies_and_a_few_are_not() -> None:
    source = load_source(TOY, cache=False, progress=False)
    copies, others = (
        condense(storage="dct", expand=expand, steps=1, lr_stored=1e-9).recipe.nearest for expand in (1, 16)
    )
    assert copies["synthetic"]["max"] < 1e-3
    assert others["synthetic"]["min"] > 10 * copies["synthetic"]["max"]
    small = condense(storage="siren", steps=1)
    assert small.recipe.nearest == nearest_real(small.synthetic.decoded()[0], source, 0)


@forms
def test_automatic_method_keeps_the_form_that_the_caller_names(storage: str) -> None:
    small = condense_dataset(TOY, "auto", 1, storage=storage, steps=1, network="convnet-w4-d1", progress=False)
    assert (small.recipe.storage, small.recipe.expand) == (storage, FORMS[storage][2])


@pytest.mark.parametrize("storage", ["pixels", "patches", *FORMS])
@pytest.mark.parametrize("method", ["dm", "mtt"])
def test_half_precision_is_what_the_set_holds(method: str, storage: str, tmp_path: Path) -> None:
    options = {"storage": storage, "steps": 2, "soft_labels": "teacher", "teacher_updates": 2}
    whole, half = (condense(method, store_dtype=dtype, **options) for dtype in ("float32", "float16"))
    for name, tensor in whole.synthetic.stored.items():
        rounded = tensor.half() if tensor.is_floating_point() else tensor
        assert half.synthetic.stored[name].dtype == rounded.dtype
        assert torch.equal(half.synthetic.stored[name], rounded)
    assert half.synthetic.soft_labels.dtype == torch.float32
    assert torch.equal(half.synthetic.soft_labels, whole.synthetic.soft_labels)
    stored = {name: t.float() if t.is_floating_point() else t for name, t in half.synthetic.stored.items()}
    of_rounded = half.synthetic.decoder.decode(stored)
    if not half.synthetic.decoder.stores_images:
        of_rounded = half.synthetic.decoder.frame.to_pixels(of_rounded)
    images = half.synthetic.decoded()[0]
    assert torch.equal(images, of_rounded)
    assert images.dtype == torch.float32
    assert (float(images.min()) >= 0, float(images.max()) <= 1) == (True, True)
    view = load_source(half, cache=False, progress=False)
    assert float((view.images.float() / 255 - images).abs().max()) <= 0.5001 / 255
    folder = half.save_condensed(tmp_path)
    assert_same(load_condensed(tmp_path), half)
    facts = json.loads((folder / FACTS).read_text())
    assert (facts["format_version"], facts["recipe"]["store_dtype"]) == ("2", "float16")
    with safe_open(folder / TENSORS, framework="pt") as opened:
        assert opened.metadata() == {"hf_condense": "2"}
    assert (folder / TENSORS).stat().st_size < whole.save_condensed(tmp_path / "whole").joinpath(TENSORS).stat().st_size


def test_finished_run_can_be_stored_again_in_half_precision(tmp_path: Path) -> None:
    steps: list[int] = []
    options = {"storage": "dct", "checkpoint_dir": tmp_path, "callbacks": [lambda run, done, loss: steps.append(done)]}
    whole, half = (condense(steps=2, store_dtype=dtype, **options) for dtype in ("float32", "float16"))
    assert steps == [1, 2]
    assert torch.equal(learned(half), learned(whole).half())


def test_numbers_too_large_for_half_precision_are_stored_in_full(caplog: pytest.LogCaptureFixture) -> None:
    options = {"storage": "dct", "pixel_range": "free", "lr_stored": 1e9, "steps": 1}
    small = condense(store_dtype="float16", **options)
    assert "the set is stored as 'float32', because coefficients has numbers up to" in caplog.text
    assert small.recipe.store_dtype == "float32"
    assert torch.equal(learned(small), learned(condense(**options)))


@pytest.mark.parametrize("storage", ["patches", *FORMS])
def test_whitening_in_a_form_without_meaning_for_it_raises_value_error(storage: str) -> None:
    with pytest.raises(ValueError, match=rf"storage='pixels'; got 'free' and '{storage}'"):
        condense("mtt", storage=storage, zca=True, pixel_range="free")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "half", "factor": 2}, r"factor=2 is short for storage='patches', expand=4; got storage='half'"),
        ({"storage": "dct", "factor": 2}, r"factor=2 is short for storage='patches', expand=4; got storage='dct'"),
        ({"storage": "half", "expand": 3}, r"expand should be 4; got 3"),
        ({"storage": "dct", "expand": 193}, r"expand should be in 1..192; got 193"),
        ({"storage": "siren", "expand": 10}, r"expand should be in 1..9; got 10"),
        ({"storage": "siren", "expand": 0}, r"expand should be at least 1; got 0"),
        (
            {"storage": "halves"},
            r"storage should be one of 'pixels', 'patches', 'dct', 'siren', 'half'; got 'halves'; did you mean",
        ),
        ({"expand": 4}, r"storage='pixels' decodes an image into itself, so expand should be 1; got 4"),
        ({"storage": "patches", "expand": True}, r"expand should be an integer; got True"),
        ({"store_dtype": "half"}, r"store_dtype should be one of 'float32', 'float16', 'uint8'; got 'half'"),
        ({"lr_stored": 0.0}, r"lr_stored should be larger than 0; got 0.0"),
    ],
)
def test_contradicting_storage_options_raise_an_error_that_names_them(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        condense_dataset(TOY, "dm", 1, network="convnet-w4-d1", steps=1, progress=False, **options)


def test_set_of_an_unknown_form_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = condense().save_condensed(tmp_path)
    facts = json.loads((folder / FACTS).read_text())
    facts["recipe"]["storage"] = "holograms"
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CondensedFormatError, match=r"storage should be one of .*; got 'holograms'"):
        load_condensed(tmp_path)


@pytest.mark.parametrize("version", ["1", "3"])
def test_tensors_of_another_version_than_the_form_has_are_refused(version: str, tmp_path: Path) -> None:
    import hashlib

    folder = condense().save_condensed(tmp_path)
    data = (folder / TENSORS).read_bytes().replace(b'"hf_condense":"2"', f'"hf_condense":"{version}"'.encode())
    (folder / TENSORS).write_bytes(data)
    facts = json.loads((folder / FACTS).read_text())
    facts["sha256"][TENSORS] = hashlib.sha256(data).hexdigest()
    (folder / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CondensedFormatError, match="format_version"):
        load_condensed(tmp_path)


@pytest.mark.parametrize("storage", ["dct", "siren"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_that_are_not_square_and_a_class_without_rows_go_through(
    storage: str, mode: str, tmp_path: Path
) -> None:
    """`expand` does not divide the numbers of an image, and the second of three classes has no rows."""
    ds = toy_dataset((0, 2), names=("cat", "dog", "eel"), mode=mode, size=9).remove_columns("note")
    options = {"image_size": (6, 9), "storage": storage, "expand": 5 if storage == "dct" else 2}
    small = quick_method("dm", **options).condense(ds, {"cat": 1, "eel": 2})
    small.save_condensed(tmp_path)
    loaded = load_condensed(tmp_path)
    assert_same(loaded, small)
    assert loaded.synthetic.decoded()[0].shape == (3 * options["expand"], 3 if mode == "RGB" else 1, 6, 9)
    table = evaluate(small, ds, networks="convnet-w4-d1", recipe="dc", epochs=1, seeds=1, progress=False)
    assert f"random as {storage}{options['expand']}" in [score.set for score in table.scores]


@forms
def test_set_that_is_taken_during_a_run_stays_as_it_was(storage: str) -> None:
    sets: list[torch.Tensor] = []
    decoded: list[torch.Tensor] = []

    def take(run: Run, done: int, loss: float) -> None:
        tensors = run.synthetic.finished()
        sets.append(tensors.stored[FORMS[storage][0]])
        decoded.append(sets[-1].clone())

    condense(storage=storage, steps=3, callbacks=[take])
    assert all(torch.equal(*pair) for pair in zip(sets, decoded, strict=True))
    assert not torch.equal(sets[0], sets[2])
