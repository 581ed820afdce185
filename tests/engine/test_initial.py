"""What a run starts from: if a class has too few rows, copies of them differ a little from the rows and each other."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor

from hf_condense import condense_dataset, register_method
from hf_condense.base.spread import repeated
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders.dct import Dct
from hf_condense.engine import selecting
from hf_condense.engine.registry import unregister_method
from hf_condense.engine.run import Run
from hf_condense.methods._features import features_of
from hf_condense.methods.herding import herding
from hf_condense.methods.kcenter import k_center
from hf_condense.methods.random import RandomRows
from hf_condense.testing import toy_dataset
from tests.support.engine_methods import condense

COPIES = torch.tensor([False, False, False, True] * 3)  # of three rows per class, in a set that decodes into four


def start_run(rows: int = 3, mode: str = "RGB", **options: Any) -> Run:
    """Return a run of three classes whose set decodes into four rows of each."""
    runs: list[Run] = []
    form = {"storage": "dct", "expand": 2}
    callback = [lambda run, done, loss: runs.append(run)]
    condense("dm", ds=toy_dataset(rows=rows, mode=mode), steps=1, batch_real=3, callbacks=callback, **form, **options)
    return runs[0]


def coefficients(run: Run) -> torch.Tensor:
    return run.start("real").stored["coefficients"].detach()


def test_copies_differ_from_their_rows_and_first_occurrences_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run()
    started = coefficients(run)
    monkeypatch.setattr(Dct, "starts_apart", True)
    exact = coefficients(run)
    assert torch.equal(exact[COPIES], exact.unflatten(0, (3, 4))[:, 0]), "the fourth row should be the first again"
    assert torch.equal(started[~COPIES], exact[~COPIES])
    change = (started - exact)[COPIES]
    assert float(change.abs().amax(1).min()) > 0
    assert float(change.square().mean().sqrt()) < 0.15, "a tenth of the standard deviation of a pixel"


def test_feature_that_is_not_finite_is_named_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are checked part by part, and the message counts over all parts."""
    monkeypatch.setattr(selecting, "_CHECKED_ROWS", 4)
    ds = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
    column = [[float(i), 1.0] for i in range(len(ds))]
    column[5], column[-1] = [torch.inf, 1.0], [1e300, 1.0]
    with pytest.raises(ValueError, match=r"features of 2 rows are not finite, .* the first is row 5: "):
        condense_dataset(ds.add_column("vector", column), "kcenter", 2, label_column="label", features="vector")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("vectors", r"the dataset has no column 'vectors'; columns: image, label, text, ragged"),
        ("text", r"column 'text' should hold vectors of equal length"),
        ("ragged", r"column 'ragged' should hold vectors of equal length"),
    ],
)
def test_column_that_cannot_be_features_is_explained(features: str, message: str) -> None:
    ds = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
    ds = ds.add_column("text", ["a"] * len(ds)).add_column("ragged", [[1.0] * (1 + i % 2) for i in range(len(ds))])
    with pytest.raises(ValueError, match=message):
        condense_dataset(ds, "herding", 2, features=features, cache=False, progress=False)


def test_start_is_from_the_rows_that_the_named_coreset_method_chooses() -> None:
    """Choose by hand, by the features of a coreset method without options."""
    runs: list[Run] = []
    ds = toy_dataset(rows=20)
    condense("dm", ds=ds, steps=1, callbacks=[lambda run, done, loss: runs.append(run)])
    (run,) = runs
    features = features_of(run, "network", 500, 64)
    starts = []
    for init, rule in (("herding", herding), ("kcenter", k_center)):
        positions = [run.source.positions(c) for c in run.classes]
        chosen = [rule(features[list(of_class)], 2) + of_class.start for of_class in positions]
        starts.append(run.start(init).stored["images"].detach())
        torch.testing.assert_close(starts[-1], run.source.at(torch.cat(chosen)))
    assert not torch.equal(*starts)


def test_noise_of_copies_depends_on_the_seed_and_the_class_alone() -> None:
    first, again, other = start_run(), start_run(), start_run(seed=1)
    assert torch.equal(coefficients(first), coefficients(again))
    positions = torch.tensor([0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6])
    starts = [run.start(positions).stored["coefficients"] for run in (first, other)]
    assert torch.equal(starts[0][~COPIES], starts[1][~COPIES])
    assert bool((starts[0][COPIES] != starts[1][COPIES]).any(1).all())


def test_copies_stay_within_the_valid_range(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(mode="1")
    starts: list[torch.Tensor] = []
    start = Dct.start

    def spy(form: Dct, real: torch.Tensor, *others: Any) -> dict[str, torch.Tensor]:
        starts.append(real)
        return start(form, real, *others)

    monkeypatch.setattr(Dct, "start", spy)
    run.start("real")
    black, white = (float(run.decoder.frame.value(pixel)) for pixel in (0, 1))
    assert float(starts[0].min()) >= black - 1e-6
    assert float(starts[0].max()) <= white + 1e-6
    inside = (starts[0][COPIES] > black + 1e-3) & (starts[0][COPIES] < white - 1e-3)
    assert 0 < float(inside.float().mean()) < 1, "noise should leave some pixels black or white"


def test_one_warning_names_classes_with_too_few_rows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_condense"):
        start_run()
    (message,) = [record.getMessage() for record in caplog.records if "copies" in record.getMessage()]
    assert "fewer real rows than the set starts from: '0' has 3 for 4, '1' has 3 for 4, '2' has 3 for 4" in message
    assert "a smaller expand or ipc" in message
    caplog.clear()
    start_run(rows=4)
    assert "copies" not in caplog.text
    with caplog.at_level(logging.WARNING, "hf_condense"):
        condense("dm", ds=toy_dataset(rows=1), steps=1, batch_real=1)
    assert "; with a smaller ipc each real row is used at most once" in caplog.text


@pytest.mark.parametrize("row", [-1, 12])
def test_rows_of_another_class_raise_value_error(row: int) -> None:
    class Beyond(RandomRows):
        def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
            return torch.tensor([row])

    register_method(Beyond, "beyond")
    try:
        with pytest.raises(ValueError, match=rf"rows in 0\.\.11 of class '0'; it selected {row}\.\.{row}"):
            condense_dataset(toy_dataset(), "beyond", 1, label_column="label", progress=False)
    finally:
        unregister_method("beyond")


@pytest.mark.parametrize("split", ["train", "extra"])
def test_one_split_of_a_dict_is_condensed_and_the_others_pass_through(toy: Dataset, split: str) -> None:
    splits = DatasetDict(train=toy, test=toy.select(range(6)), extra=toy)
    result = condense_dataset(splits, "random", 1, split=split, progress=False)
    assert type(result) is DatasetDict
    assert list(result) == ["train", "test", "extra"]
    assert type(result[split]) is CondensedDataset
    assert len(result[split]) == 3
    assert all(result[name] is splits[name] for name in splits if name != split)
    assert type(splits[split]) is Dataset


def test_numbers_are_repeated_up_to_a_length() -> None:
    numbers = torch.tensor([3, 1, 4])
    assert [repeated(numbers, n).tolist() for n in (0, 2, 3, 7)] == [
        [],
        [3, 1],
        [3, 1, 4],
        [3, 1, 4, 3, 1, 4, 3],
    ]


def test_classes_begin_with_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    condense("dm", ds=toy_dataset(), steps=1, batch_real=3, callbacks=[lambda run, done, loss: runs.append(run)])
    noise = runs[0].start("noise").stored["images"].detach().unflatten(0, (3, -1))
    assert not torch.allclose(noise[0], noise[1])
    run = start_run(pixel_range="free")
    starts: list[torch.Tensor] = []
    start = Dct.start
    monkeypatch.setattr(Dct, "start", lambda form, real, *rest: starts.append(real) or start(form, real, *rest))
    run.start(torch.tensor([0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6]))
    of_copies = starts[0][3::4] - starts[0][::4]
    assert float(of_copies.abs().amax((1, 2, 3)).min()) > 0
    assert not torch.allclose(of_copies[0], of_copies[1], atol=1e-3)


def test_noise_begins_within_the_valid_range() -> None:
    runs: list[Run] = []
    callbacks = [lambda run, done, loss: runs.append(run)]
    condense("dm", ds=toy_dataset(), steps=1, batch_real=3, factor=2, callbacks=callbacks)
    noise = runs[0].start("noise").stored["images"].detach()
    assert torch.equal(runs[0].decoder.frame.clip_images(noise), noise)


def test_noise_of_copies_has_a_tenth_of_the_spread_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run(pixel_range="free")
    starts: list[torch.Tensor] = []
    start = Dct.start
    monkeypatch.setattr(Dct, "start", lambda form, real, *rest: starts.append(real) or start(form, real, *rest))
    run.start(torch.tensor([0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6]))
    assert float((starts[0][3::4] - starts[0][::4]).std()) == pytest.approx(0.1, rel=0.1)
