"""Numbers of NumPy are taken wherever Python's own are, and leave no trace in the recipe."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from hf_condense import condense_dataset
from hf_condense.testing import toy_dataset

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel")).remove_columns("note")
USUAL: dict[str, Any] = {"network": "convnet-w4-d1", "progress": False, "compile": False, "steps": 2, "batch_real": 4}


@pytest.mark.parametrize(
    "given",
    [
        {"ipc": np.int64(2)},
        {"ipc": dict(zip(("cat", "dog", "eel"), np.unique([0, 0, 1, 1, 2, 2], return_counts=True)[1], strict=True))},
        {"seed": np.uint8(3)},
        {"steps": np.int32(2)},
        {"factor": np.int64(2)},
        {"storage": "patches", "expand": np.int64(4)},
        {"image_size": np.int64(8)},
        {"image_size": (np.int64(8), np.int16(8))},
        {"batch_real": np.int64(4)},
        {"checkpoint_every": np.int64(5)},
        {"lr_img": np.float32(0.5)},
        {"lr_img": np.float64(0.5), "momentum": np.float16(0.5)},
        {"decay": np.bool_(True)},
    ],
    ids=str,
)
def test_numpy_scalar_gives_the_set_that_the_python_number_gives(given: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(given, default=lambda number: number.item()))
    made, expected = (condense_dataset(TOY, "dm", **{"ipc": 2, **USUAL, **options}) for options in (given, plain))
    assert torch.equal(made.synthetic.images, expected.synthetic.images)
    assert json.dumps(made.recipe.options) == json.dumps(expected.recipe.options)
    assert json.dumps(made.recipe.ipc) == json.dumps(expected.recipe.ipc)


@pytest.mark.parametrize(
    "given",
    [
        {"ipc": np.bool_(True)},
        {"ipc": np.float64(2)},
        {"seed": True},
        {"steps": np.float32(2)},
        {"lr_img": np.bool_(1)},
    ],
    ids=str,
)
def test_truth_value_or_fraction_in_place_of_an_integer_raises_type_error(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(given))):
        condense_dataset(TOY, "dm", **{"ipc": 2, **USUAL, **given})


def test_numpy_minutes_are_a_budget() -> None:
    small = condense_dataset(
        TOY, ipc=1, budget=np.float32(1), network="convnet-w4-d1", steps=1, batch_real=4, progress=False
    )
    assert small.recipe.method == "m3d"
