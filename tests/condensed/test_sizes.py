"""What a set takes is counted in full: the parts add up to the file, and each is what its tensors take."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hf_condense.base.errors import CondensedFormatError
from hf_condense.condensed.card.render import render
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.names import TENSORS
from hf_condense.condensed.files.packing import pack
from hf_condense.condensed.files.sizes import Sizes
from tests.support.card_sets import facts_of
from tests.support.condensed_sets import formed_set, make_coreset, make_set, real_rows

IPC = {"cat": 1, "dog": 3}
SETS: dict[str, Callable[[], CondensedDataset]] = {
    "pixels": make_set,
    "pixels of one class": lambda: make_set(ipc={"dog": 3}),
    "coreset": make_coreset,
    "patches with soft labels": lambda: make_set(factor=2, soft=True, ipc=IPC),
    "learned rate": lambda: make_set(student=True, soft=True),
    "whitening": lambda: make_set(zca=True),
    "labels called as soft labels are": lambda: make_set(label_column="soft_label"),
    "dct": lambda: formed_set("dct", 3),
    "dct in half precision": lambda: formed_set("dct", 16, ipc=IPC, soft=True, store_dtype="float16"),
    "siren": lambda: formed_set("siren"),
    "siren of one row": lambda: formed_set("siren", 1, ipc=1),
}


@pytest.mark.parametrize("name", SETS)
def test_parts_are_what_the_tensors_take_and_add_up_to_the_file(name: str) -> None:
    small = SETS[name]()
    files, facts = pack(small.parts)
    sizes, tensors = Sizes.of(facts), small.synthetic

    def taken(names: object) -> int:
        chosen = [tensor for name, tensor in tensors.all().items() if name in names]
        return sum(tensor.numel() * tensor.element_size() for tensor in chosen)

    floats = [name for name, tensor in tensors.stored.items() if tensor.is_floating_point()]
    assert sizes.stored == sum(tensors.stored[name].numel() for name in floats)
    assert sizes.stored_bytes == taken(floats)
    assert sizes.integer_bytes == taken({*tensors.stored, "labels"} - {*floats})
    assert sizes.soft_label_bytes == taken(["soft_labels"])
    assert sizes.whitening_bytes == taken(["zca_matrix", "zca_mean"])
    header = 8 + int.from_bytes(files[TENSORS][:8], "little")
    assert sizes.header_bytes == header + taken(["student_lr"])
    assert sizes.tensor_bytes == len(files[TENSORS])
    assert sizes.rows == len(small)


@pytest.mark.parametrize(
    ("small", "images"),
    [
        (make_set(), 4),
        (make_set(ipc=IPC, factor=2), 4),
        (formed_set("dct", 16, ipc=IPC), 4),
        (formed_set("siren", ipc=1), 2),
    ],
)
def test_budget_is_that_of_the_images_whatever_is_stored(small: CondensedDataset, images: int) -> None:
    sizes = Sizes.of(facts_of(small))
    assert sizes.budget == images * 3 * 8 * 8
    assert 0.8 * sizes.budget < sizes.stored <= sizes.budget


def test_half_precision_halves_the_floats_and_nothing_else() -> None:
    full, half = (Sizes.of(facts_of(formed_set("dct", 3, store_dtype=kind))) for kind in ("float32", "float16"))
    assert (half.stored, 2 * half.stored_bytes) == (full.stored, full.stored_bytes)
    assert half.integer_bytes == full.integer_bytes > 0


def test_share_of_the_source_is_left_out_where_it_is_unknown_or_above_one() -> None:
    known = Sizes.of(facts_of(make_set()))
    assert known.source_bytes == 100 * 3 * 8 * 8
    assert known.share_of_source(1920) == "1,920 B (1/10)"
    assert known.share_of_source(50_000) == "50,000 B"
    assert Sizes.of(facts_of(make_set(source={}))).share_of_source(10) == "10 B"


def test_file_too_small_for_its_tensors_raises_format_error() -> None:
    small = make_set()
    with pytest.raises(ValueError, match="tensor_bytes should be at least 3,104, which the tensors take; got 3,103"):
        Sizes.of(facts_of(small, tensor_bytes=3103))
    with pytest.raises(CondensedFormatError, match="dm_ipc2"):
        render({"dm_ipc2": facts_of(small, tensor_bytes=3103)})
    assert Sizes.of(facts_of(small, tensor_bytes=3104)).header_bytes == 0


def test_column_of_a_coreset_that_is_called_as_soft_labels_are_takes_no_bytes_of_the_tensors() -> None:
    ds = real_rows()
    facts = facts_of(make_coreset(ds.add_column("soft_label", [[0.5, 0.5]] * len(ds))))
    assert Sizes.of(facts).soft_label_bytes == 0
