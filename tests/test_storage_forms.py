"""A third storage form is one file and one line: it goes through everything that a set goes through."""

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
from hf_condense.condensed.facts import FACTS, README, TENSORS
from hf_condense.testing import quick_method, toy_dataset
from tests.support.condensed_sets import assert_same
from tests.support.half_size import registered

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")
LEARNING = [info.name for info in list_methods() if info.kind == "synthetic"]


@pytest.fixture(autouse=True)
def _half_size() -> Iterator[None]:
    with registered():
        yield


def condense(method: str = "dm", ipc: Any = 1, **options: Any) -> CondensedDataset:
    return quick_method(method, storage="half", **options).condense(TOY, ipc)


@pytest.mark.parametrize("method", LEARNING)
def test_every_method_learns_in_the_form(method: str) -> None:
    first, last = condense(method, steps=1), condense(method, steps=3)
    assert last.synthetic.stored["small"].shape == (12, 3, 4, 4)
    assert not torch.equal(first.synthetic.stored["small"], last.synthetic.stored["small"])
    assert torch.equal(last.synthetic.stored["turns"], last.synthetic.labels), "what is no float should stay as it was"
    images, labels = last.synthetic.decoded()
    assert images.shape == (12, 3, 8, 8)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert len(last) == 12


def test_rate_of_the_images_is_scaled_by_the_form() -> None:
    runs: list[Run] = []
    small = condense(steps=1, lr_img=0.001, momentum=0.0, callbacks=[lambda run, done, loss: runs.append(run)])
    learned = runs[0].synthetic.stored["small"]
    start = runs[0].start(runs[0], "real").stored["small"]
    torch.testing.assert_close(small.synthetic.stored["small"], (start - 4 * 0.001 * learned.grad).detach())


def test_resumed_run_equals_the_straight_run(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(run: object, done: int, loss: float) -> None:
        if done == 3:
            raise Stop

    options = {"steps": 5, "soft_labels": "teacher", "teacher_updates": 2}
    with pytest.raises(Stop):
        condense(checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[stop], **options)
    resumed = condense(checkpoint_dir=tmp_path, checkpoint_every=2, **options)
    straight = condense(**options)
    for name, tensor in straight.synthetic.all().items():
        assert torch.equal(tensor, resumed.synthetic.all()[name]), name


@pytest.mark.parametrize("ipc", [2, {"cat": 1, "dog": 3, "eel": 2}])
def test_saved_set_comes_back_exactly_and_loads_without_the_library(ipc: Any, tmp_path: Path) -> None:
    small = condense(ipc=ipc, soft_labels="teacher", teacher_updates=2)
    folder = small.save_condensed(tmp_path / "sets")
    assert folder.name == ("dm_ipc2_half4" if ipc == 2 else "dm_ipc1-3_half4")
    assert_same(load_condensed(tmp_path / "sets"), small)
    facts = json.loads((folder / FACTS).read_text())
    assert (facts["format_version"], facts["recipe"]["storage"], facts["recipe"]["expand"]) == ("2", "half", 4)
    assert "factor" not in facts["recipe"], "readers of version 1 know a factor, but not this form"
    with safe_open(folder / TENSORS, framework="pt") as opened:
        assert opened.metadata() == {"hf_condense": "2"}
    plain = datasets.load_dataset(str(tmp_path / "sets"), split="train", cache_dir=str(tmp_path / "cache"))
    assert plain["label"][:] == small["label"][:]
    assert plain[5]["image"].tobytes() == small[5]["image"].tobytes()


def test_pushed_set_comes_back_exactly(hub: Any) -> None:
    small = condense()
    small.push_to_hub("alice/half")
    assert_same(load_condensed("alice/half"), small)


def test_evaluation_adds_as_many_random_rows_as_the_form_decodes_into_plain_and_in_the_form() -> None:
    table = evaluate(condense(), TOY, networks="convnet-w4-d1", recipe="dc", epochs=1, seeds=1, progress=False)
    assert [(row["set"], row["rows"]) for row in table.to_records()] == [
        ("dm_ipc1_half4", 12),
        ("random", 3),
        ("random x4", 12),
        ("random as half4", 12),
    ]


def test_card_says_how_many_rows_an_image_of_the_budget_gives(tmp_path: Path) -> None:
    condense().save_condensed(tmp_path)
    assert "1, each decoded into 4" in (tmp_path / README).read_text()


def test_preview_shows_decoded_rows() -> None:
    assert condense().preview(4).size[0] > condense().preview(1).size[0]


def test_random_state_of_the_form_can_be_noise() -> None:
    assert condense(init="noise").synthetic.stored["small"].shape == (12, 3, 4, 4)


def test_whitening_in_a_form_without_meaning_for_it_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r"storage='pixels'; got 'free' and 'half'"):
        condense("mtt", zca=True, pixel_range="free")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "half", "factor": 2}, r"factor=2 is short for storage='patches', expand=4; got storage='half'"),
        ({"storage": "half", "expand": 3}, r"expand should be 4; got 3"),
        ({"storage": "halves"}, r"storage should be one of 'pixels', 'patches', 'half'; got 'halves'; did you mean"),
        ({"expand": 4}, r"storage='pixels' decodes an image into itself, so expand should be 1; got 4"),
        ({"storage": "patches", "expand": True}, r"expand should be an integer; got True"),
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
