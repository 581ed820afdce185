"""Methods that train networks need two classes; the others condense one class as well."""

from __future__ import annotations

import pytest

from hf_condense import condense_dataset, list_methods
from hf_condense.testing import quick_method, toy_dataset

TRAINING = ("dc", "dsa", "mtt", "tesla", "esp", "dance", "ncfm", "datm", "idc", "rded")


@pytest.mark.parametrize("method", TRAINING)
def test_one_class_raises_value_error_before_anything_is_trained(method: str) -> None:
    with pytest.raises(ValueError, match=f"'{method}' trains networks to tell classes apart, .* one class, 'only'"):
        quick_method(method).condense(toy_dataset(("only",)), 1)


@pytest.mark.parametrize("method", [info.name for info in list_methods() if info.name not in TRAINING])
def test_one_class_is_condensed_by_methods_that_compare_images(method: str) -> None:
    assert len(quick_method(method).condense(toy_dataset(("only",)), 2)) == 2


@pytest.mark.parametrize("method", TRAINING)
def test_one_class_with_rows_among_two_names_is_condensed(method: str) -> None:
    ds = toy_dataset((0, 1), names=("cat", "dog")).filter(lambda row: row["label"] == 1)
    assert len(quick_method(method).condense(ds, 2)) == 2


@pytest.mark.parametrize("method", ["mtt", "tesla", "esp", "datm"])
def test_expert_that_does_not_move_raises_value_error(method: str) -> None:
    with pytest.raises(ValueError, match=r"expert \d does not move from snapshot \d .* larger lr_expert \(now 1e-30\)"):
        quick_method(method, lr_expert=1e-30, cache=False).condense(toy_dataset(), 1)


def test_auto_learns_large_images_of_one_class() -> None:
    ds = toy_dataset(("only",), size=66)
    small = condense_dataset(ds, ipc=1, budget=1e-3, network="convnet-w4-d1", label_column="label", progress=False)
    assert small.recipe.method == "m3d"


def test_labels_of_a_teacher_for_one_class_raise_value_error() -> None:
    with pytest.raises(ValueError, match=r"soft_labels='teacher' trains a network .* one class, 'only'; leave soft"):
        quick_method("dm", soft_labels="teacher").condense(toy_dataset(("only",)), 1)
