"""Sets are saved, loaded, shown and combined alike whatever state the caller's torch is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_condense import CondensedDataset, TrainingViews, combine_condensed, load_condensed
from tests.condensed.test_views import viewed_set
from tests.support.condensed_sets import assert_same, files_below, formed_set, make_coreset, make_set
from tests.support.torch_states import STATES, in_state

OTHERS = {"seed": 1, "source": {"name": "other"}, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.1, 0.2]}
SETS: dict[str, Callable[[], CondensedDataset]] = {
    "pixels": lambda: make_set(soft=True, student=True, zca=True, temperature=4.0),
    "patches": lambda: make_set(factor=2),
    "dct": lambda: formed_set("dct", 4),
    "siren": lambda: formed_set("siren", 1),
    "views": viewed_set,
    "coreset": make_coreset,
}
PAIRS: dict[str, Callable[[], list[CondensedDataset]]] = {
    "pixels": lambda: [make_set(soft=True, temperature=4.0), make_set(soft=True, temperature=4.0, **OTHERS)],
    "dct": lambda: [formed_set("dct", 4), formed_set("dct", 4, class_names=["eel", "cod"], **OTHERS)],
    "views": lambda: [viewed_set(), viewed_set(**OTHERS)],
    "coreset": lambda: [make_coreset(), make_coreset(**OTHERS)],
}


@pytest.fixture(scope="module")
def made() -> dict[str, CondensedDataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 3)
        return {kind: make() for kind, make in SETS.items()}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", SETS)
def test_state_of_torch_changes_no_byte_of_a_file_and_no_bit_of_a_loaded_set(
    kind: str, state: str, made: dict[str, CondensedDataset], tmp_path: Path
) -> None:
    small = made[kind]
    small.save_condensed(tmp_path / "plain")
    with in_state(state):
        small.save_condensed(tmp_path / "other")
        loaded = load_condensed(tmp_path / "other")
    assert files_below(tmp_path / "other") == files_below(tmp_path / "plain")
    assert_same(loaded, small)
    assert torch.equal(loaded.synthetic.decoded()[0], small.synthetic.decoded()[0])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", SETS)
def test_state_of_torch_changes_no_pixel_that_is_decoded_or_shown(
    kind: str, state: str, made: dict[str, CondensedDataset]
) -> None:
    tensors, rows = made[kind].synthetic, torch.tensor([1, 2])

    def seen() -> tuple[list[torch.Tensor], bytes]:
        images = [*tensors.decoded(), *tensors.decoded(rows), *tensors.chunks()]
        return images, made[kind].preview(per_class=2).tobytes()

    images, picture = seen()
    with in_state(state):
        others, shown = seen()
    for image, other in zip(images, others, strict=True):
        assert image.dtype == other.dtype
        assert torch.equal(image, other)
    assert shown == picture


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", PAIRS)
def test_state_of_torch_changes_no_bit_of_a_combined_set(kind: str, state: str) -> None:
    sets = PAIRS[kind]()
    expected = combine_condensed(sets)
    with in_state(state):
        both = combine_condensed(sets)
    assert_same(both, expected)
    assert torch.equal(both.synthetic.decoded()[0], expected.synthetic.decoded()[0])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["patches", "dct", "views"])
def test_state_of_torch_changes_no_number_that_is_trained_on(
    kind: str, state: str, made: dict[str, CondensedDataset]
) -> None:
    def batch() -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(0)  # of the views
        return TrainingViews(made[kind]).__getitems__([0, 2, 3])

    expected = batch()
    with in_state(state):
        items = batch()
    for item, other in zip(items, expected, strict=True):
        for name, tensor in other.items():
            assert item[name].dtype == tensor.dtype
            assert torch.equal(item[name], tensor)
