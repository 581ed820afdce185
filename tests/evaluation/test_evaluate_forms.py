"""A set that decodes into more rows than it stores is compared with real rows in the same storage form."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset, Features
from torch import Tensor

from hf_condense import CondensedDataset, condense_dataset, load_condensed
from hf_condense.condensed.decoders import Frame, Origin, decoder_class
from hf_condense.condensed.decoders.siren import Siren
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source
from tests.support.short_evaluations import Training, relabelled, rows_of, run, synthetic, watch_trainings

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = [("dct", 3), ("patches", 4), ("siren", 3)]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    return watch_trainings(monkeypatch)


def start(ds: Dataset, storage: str, expand: int, ipc: Any = 1, **options: Any) -> CondensedDataset:
    """Return a set that has hardly moved from the real rows that it starts from."""
    values = {"lr_img": 1e-30, "batch_real": 2, "network": "convnet-w4-d1", "augment": "none", "progress": False}
    values |= {"lr_stored": 1e-30} if storage == "siren" else {}
    return condense_dataset(ds, "dm", ipc, storage=storage, expand=expand, steps=1, **{**values, **options})


def stored_and_decoded(data: TrainingSet, storage: str, expand: int, source: ClassSource) -> Tensor:
    """Return real rows after they were stored in a form: normalised, (n, C, H, W)."""
    form = decoder_class(storage)(source.image_shape, expand, Frame(source.mean, source.std))
    return form.decode(form.start(data.images, data.labels, Origin(source.batches, torch.Generator())))


def pictures(data: TrainingSet) -> list[tuple[int, bytes]]:
    """Return the labels and images of some rows in an order that does not depend on theirs."""
    return sorted((int(c), image.numpy().tobytes()) for c, image in zip(data.labels, data.images, strict=True))


@pytest.mark.parametrize(("storage", "expand"), FORMS)
def test_real_rows_in_the_same_form_stand_in_the_table(toy: Dataset, storage: str, expand: int) -> None:
    small = start(toy, storage, expand)
    scores = rows_of(run(small, toy, seeds=2, epochs=1))
    assert {name: (score.rows, score.n) for name, score in scores.items()} == {
        small.recipe.config_name: (3 * expand, 2),
        "random": (3, 2),
        f"random x{expand}": (3 * expand, 2),
        f"random as {storage}{expand}": (3 * expand, 2),
    }


@pytest.mark.parametrize("gray", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize(("storage", "expand"), [("dct", 3), ("patches", 4)])
def test_baseline_is_the_same_draw_stored_and_decoded(
    request: pytest.FixtureRequest, trainings: list[Training], storage: str, expand: int, gray: bool
) -> None:
    toy = request.getfixturevalue("toy_gray" if gray else "toy")
    run(start(toy, storage, expand), toy, seeds=2, epochs=1)
    plain, stored = trainings[4:6], trainings[6:8]
    assert not torch.equal(stored[0].data.images, stored[1].data.images), "two seeds, two draws"
    source = load_source(toy, cache=False, progress=False)
    for one, other in zip(plain, stored, strict=True):
        assert other.data.labels.tolist() == one.data.labels.tolist() == sorted(one.data.labels.tolist())
        expected = stored_and_decoded(one.data, storage, expand, source)
        torch.testing.assert_close(other.data.images, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(other.data.images, one.data.images, atol=0.01)


def test_networks_of_a_coordinate_form_are_fitted_to_the_draw_of_each_seed(
    toy: Dataset, trainings: list[Training]
) -> None:
    run(start(toy, "siren", 3), toy, seeds=2, epochs=1)
    plain, stored = trainings[4:6], trainings[6:8]
    assert not torch.equal(stored[0].data.images, stored[1].data.images)
    for one, other in zip(plain, stored, strict=True):
        other_draw = plain[0] if one is plain[1] else plain[1]
        error, elsewhere = (float((other.data.images - t.data.images).square().mean()) for t in (one, other_draw))
        assert 0.001 < error < elsewhere


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
@pytest.mark.parametrize(("storage", "expand"), [("dct", 12), ("patches", 4)])
def test_baseline_of_all_rows_is_what_a_run_starts_from(
    toy: Dataset, trainings: list[Training], storage: str, expand: int, store_dtype: str
) -> None:
    # Each class has as many rows as the set decodes into, so that both draws have the same rows, in another order.
    ds = toy.select(range(3 * expand))
    run(start(ds, storage, expand, store_dtype=store_dtype), ds, seeds=1, epochs=1)
    own, baseline = trainings[0].data, trainings[3].data
    assert own.labels.tolist() == baseline.labels.tolist()
    images = pictures(own)
    assert images == pictures(baseline), "equal to the last bit"
    assert len(set(images)) == 3 * expand


def test_a_single_class_with_few_rows_is_told_in_the_singular(toy: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    few = toy.filter(lambda row, i: row["label"] != 0 or i < 9, with_indices=True)
    run(start(few, "dct", 8), toy, seeds=1, epochs=1)
    assert "1 of 3 classes has too few real rows for a baseline" in caplog.text


def test_classes_with_few_rows_repeat_them(
    toy: Dataset, trainings: list[Training], caplog: pytest.LogCaptureFixture
) -> None:
    few = toy.select(range(9))  # three rows of each class
    small = start(few, "dct", 8)
    scores = rows_of(run(small, toy, seeds=1, epochs=1))
    told = [
        text
        for text in caplog.messages
        if "3 of 3 classes have too few real rows for a baseline of random rows (8" in text
    ]
    assert len(told) == 1
    assert {name: score.rows for name, score in scores.items()} == {
        "dm_ipc1_dct8": 24,
        "random": 3,
        "random x8": 9,
        "random as dct8": 24,
    }
    data = trainings[3].data
    assert Counter(data.labels.tolist()) == {0: 8, 1: 8, 2: 8}
    assert torch.equal(data.images[0:3], data.images[3:6])
    assert torch.equal(data.images[0:2], data.images[6:8])


def test_budgets_and_classes_are_matched_by_name(toy: Dataset, trainings: list[Training]) -> None:
    small = start(toy, "dct", 3, ipc={"ball": 1, "cross": 3, "stripes": 2})
    turned = relabelled(toy, ["stripes", "none", "cross", "ball"])
    run(small, toy, seeds=1, epochs=1)
    run(small, toy, source=turned, seeds=1, epochs=1)
    straight, other = trainings[3].data, trainings[7].data
    assert Counter(straight.labels.tolist()) == {0: 3, 1: 9, 2: 6}
    assert torch.equal(straight.labels, other.labels)
    assert torch.equal(straight.images, other.images)


def test_baseline_takes_nothing_from_the_learned_numbers(toy: Dataset, trainings: list[Training]) -> None:
    small = start(toy, "dct", 3)
    run(small, toy, seeds=1, epochs=1)
    small.synthetic.stored["coefficients"].zero_()
    small.synthetic.stored["places"].copy_(torch.arange(64))
    run(small, toy, seeds=1, epochs=1)
    assert torch.equal(trainings[3].data.images, trainings[7].data.images)
    assert not torch.equal(trainings[0].data.images, trainings[4].data.images)


def test_rows_are_fitted_once_for_all_kinds_of_networks(
    toy: Dataset, trainings: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, fits, original = start(toy, "siren", 3), [], Siren.start
    monkeypatch.setattr(Siren, "start", lambda *args: fits.append(args) or original(*args))
    run(small, toy, seeds=2, epochs=1, networks=["convnet-w4-d1", "convnet-w8-d1"], cache=False)
    assert len(fits) == 2, "one for every seed"
    assert torch.equal(trainings[6].data.images, trainings[14].data.images)


def test_loaded_set_gets_the_baseline_from_the_source_that_is_passed(toy: Dataset, tmp_path: Any) -> None:
    small = start(toy, "dct", 3, pixel_range="free")
    small.save_condensed(tmp_path)
    before = rows_of(run(small, toy, seeds=2))["random as dct3"]
    after = rows_of(run(load_condensed(tmp_path), toy, source=toy, seeds=2))["random as dct3"]
    assert before.accuracies == after.accuracies


def test_sets_that_decode_into_themselves_have_no_such_baseline(toy: Dataset, small: CondensedDataset) -> None:
    pixels = start(toy, "pixels", 1)
    assert list(rows_of(run(pixels, toy, seeds=1, epochs=1))) == ["dm_ipc1", "random"]
    assert list(rows_of(run(small, toy, seeds=1, epochs=1))) == ["random_ipc2", "random"]
    assert list(rows_of(run(toy, toy, source=toy, seeds=1, epochs=1))) == ["train", "random"]


def test_baseline_of_a_set_without_limits_is_not_clipped(toy: Dataset, trainings: list[Training]) -> None:
    pictures = [picture.point(lambda value: 255 * (value > 127)) for picture in toy["image"][:]]  # any form overshoots
    features = Features({name: toy.features[name] for name in ("image", "label")})
    ds = Dataset.from_dict({"image": pictures, "label": toy["label"][:]}, features=features)
    run(start(ds, "dct", 3, pixel_range="free"), ds, seeds=1, epochs=1)
    source = load_source(ds, cache=False, progress=False)
    pixels = Frame(source.mean, source.std, clip=False).to_pixels(trainings[3].data.images)
    assert float(pixels.min()) < -0.01
    assert float(pixels.max()) > 1.01


def test_baseline_of_a_whitened_set_is_stored_in_whitened_space(toy: Dataset, trainings: list[Training]) -> None:
    whitening = {"zca_matrix": 2 * torch.eye(3 * 8 * 8), "zca_mean": torch.full((3 * 8 * 8,), 0.25)}
    run(synthetic(toy, factor=2, recipe_changes={"pixel_range": "free"}, **whitening), toy, seeds=1, epochs=1)
    plain, stored = (training.data for training in trainings[2:4])
    form = decoder_class("patches")((3, 8, 8), 4, Frame(torch.zeros(3), torch.ones(3), clip=False))
    rows = form.start(plain.images, plain.labels, Origin(load_source(toy).batches, torch.Generator()))
    torch.testing.assert_close(stored.images, form.decode(rows), rtol=1e-4, atol=1e-4)
