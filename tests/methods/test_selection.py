"""No selector ever gives a row twice, and features that mean nothing are refused with their row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from hf_condense import CondensedDataset, MethodConfig, MethodInfo, Selector, condense_dataset, register_method
from hf_condense.engine.registry import unregister_method
from hf_condense.testing import toy_dataset

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel"), rows=6)


def with_features(values: np.ndarray) -> datasets.Dataset:
    return TOY.add_column("emb", values.tolist())


def select(method: str, ds: datasets.Dataset, ipc: int = 3) -> CondensedDataset:
    return condense_dataset(ds, method, ipc, features="emb", network="convnet-w4-d1", progress=False, cache=False)


def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(TOY), 4))


@pytest.mark.parametrize("method", ["herding", "kcenter"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200, 1e160])
def test_feature_that_is_not_usable_raises_value_error_with_its_row(method: str, value: float) -> None:
    values = embeddings()
    values[7, 2] = value
    with pytest.raises(ValueError, match=r"features of 1 rows are not finite, or too large .* first is row 7"):
        select(method, with_features(values))


@pytest.mark.parametrize("method", ["herding", "kcenter"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_rows_are_different_whatever_the_size_of_features(method: str, scale: float) -> None:
    rows = select(method, with_features(embeddings() * scale), ipc=6).recipe.rows
    assert sorted(rows) == list(range(18))


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_equal_rows_are_still_different_rows(method: str) -> None:
    assert len(set(select(method, with_features(np.ones((18, 4)))).recipe.rows)) == 9


def test_start_from_rows_with_a_bad_feature_raises_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_condense.methods.herding import Herding

    monkeypatch.setattr(Herding, "features", lambda self, run: torch.full((18, 2), torch.nan))
    with pytest.raises(ValueError, match="features of 18 rows are not finite"):
        condense_dataset(TOY, "dm", 1, init="herding", steps=1, network="convnet-w4-d1", progress=False)


class Twice(Selector[MethodConfig]):
    """Gives the first row of a class again and again."""

    info: ClassVar[MethodInfo] = MethodInfo(
        "twice", "-", "coreset", "-", "-", "-", "-", 2026, "https://example.org", "-"
    )
    Config = MethodConfig

    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, dtype=torch.int64)


@pytest.fixture
def _twice() -> Iterator[None]:
    register_method(Twice)
    yield
    unregister_method("twice")


@pytest.mark.usefixtures("_twice")
def test_selector_that_gives_a_row_twice_raises_value_error() -> None:
    options: dict[str, Any] = {"network": "convnet-w4-d1", "progress": False}
    with pytest.raises(
        ValueError, match="'twice' should select 2 different rows of class 'cat'; it selected 2, of which 1"
    ):
        condense_dataset(TOY, "twice", 2, **options)


@pytest.mark.usefixtures("_twice")
def test_selector_that_gives_no_numbers_of_rows_raises_type_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twice, "select", lambda self, features, n, generator: torch.tensor([0.5, 1.5]))
    with pytest.raises(TypeError, match=r"'twice' should select rows by their numbers.*; it returned torch.float32"):
        condense_dataset(TOY, "twice", 2, network="convnet-w4-d1", progress=False)


@pytest.mark.parametrize(("bad", "advice"), [([7], "repair these rows, or filter"), ([*range(18)], "is at fault")])
def test_advice_about_bad_features_depends_on_how_many_there_are(bad: list[int], advice: str) -> None:
    values = embeddings()
    values[bad, 0] = np.nan
    with pytest.raises(ValueError, match=advice):
        select("herding", with_features(values))
