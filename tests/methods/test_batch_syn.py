"""Mini-batches of decoded rows: rows take turns, whatever else a step works on, and targets go with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_condense import CondensedDataset, Run, list_methods
from hf_condense.engine import build
from hf_condense.engine.registry import get_method
from hf_condense.methods._siamese import SiameseMethod
from hf_condense.methods.dm import DistributionMatching
from hf_condense.testing import quick_method, toy_dataset

TOY = toy_dataset((0, 1, 2), names=("cat", "dog", "eel"))
SIAMESE = [info.name for info in list_methods() if issubclass(get_method(info.name), SiameseMethod)]
BATCHED = [info.name for info in list_methods() if "batch_syn" in get_method(info.name).Config.__dataclass_fields__]
IPC = {"cat": 1, "dog": 3, "eel": 2}  # 4, 12 and 8 rows of patches


LOOPS = {"outer_loop": 3, "inner_loop": 1}  # of methods that have them


def condense(method: str, ipc: Any = 2, **options: Any) -> CondensedDataset:
    loops = LOOPS if method in ("dc", "dsa") else {}
    return quick_method(method, **loops, **options).condense(TOY, ipc)


def run_of(ipc: Any, **options: Any) -> Run:
    """Return a run whose synthetic set has been made."""
    runs: list[Run] = []
    condense("dm", ipc, steps=1, callbacks=[lambda run, done, loss: runs.append(run)], **options)
    return runs[0]


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(IPC, factor=2)


def drawn(run: Run, batch_syn: int | None, classes: tuple[int, ...], draw: int) -> list[int] | None:
    """Return the numbers of the rows of a draw."""
    method = DistributionMatching(DistributionMatching.Config(batch_syn=batch_syn))
    numbers = method.row_numbers(run, classes, draw)
    return None if numbers is None else numbers.tolist()


@given(batch_syn=st.integers(1, 12), c=st.integers(0, 2), permutation=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_rows_of_a_class_take_turns(run: Run, batch_syn: int, c: int, permutation: int) -> None:
    rows = run.synthetic.rows[c]
    size = min(batch_syn, len(rows))
    draws = len(rows) // size
    turns = [drawn(run, batch_syn, (c,), draw) for draw in range(permutation * draws, (permutation + 1) * draws)]
    assert [len(turn) for turn in turns] == [size] * draws
    seen = Counter(row for turn in turns for row in turn)
    assert set(seen.values()) == {1}, "no row should be drawn twice by a permutation"
    assert seen.keys() <= {*rows}
    if len(rows) % size == 0:
        assert seen.keys() == {*rows}, "every row should be drawn once"


def test_rows_that_a_permutation_leaves_over_change(run: Run) -> None:
    """Of 12 rows, draws of 5 leave two over; in the long run, all are drawn equally often."""
    counts = Counter(row for draw in range(600) for row in drawn(run, 5, (1,), draw))
    assert counts.keys() == {*run.synthetic.rows[1]}
    assert min(counts.values()) > 0.9 * max(counts.values())


def test_permutations_differ(run: Run) -> None:
    orders = {tuple(row for draw in range(3 * p, 3 * p + 3) for row in drawn(run, 4, (1,), draw)) for p in range(20)}
    assert len(orders) == 20


def test_draw_of_a_class_does_not_depend_on_the_others(run: Run) -> None:
    other = run_of({"cat": 2, "dog": 3, "eel": 1}, factor=2)
    for draw in range(6):
        alone = [drawn(run, 3, (c,), draw) for c in (0, 1, 2)]
        assert drawn(run, 3, (2, 0, 1), draw) == [*alone[2], *alone[0], *alone[1]]
        assert drawn(run, 3, (0, 1, 2), draw) == [*alone[0], *alone[1], *alone[2]]
        first, other_first = run.synthetic.rows[1][0], other.synthetic.rows[1][0]
        assert [n - first for n in alone[1]] == [n - other_first for n in drawn(other, 3, (1,), draw)]


def test_whole_set_is_drawn_without_numbers(run: Run) -> None:
    """Numbers would cost a copy of all rows."""
    assert drawn(run, None, (0, 1, 2), 0) is None
    assert drawn(run, 12, (0, 1, 2), 0) is None
    assert drawn(run, 11, (0, 1, 2), 0) is not None
    assert drawn(run, None, (1,), 3) == run.synthetic.rows[1]
    assert drawn(run, 12, (2, 1), 3) == run.synthetic.rows[2] + run.synthetic.rows[1]


def assert_equal(first: CondensedDataset, second: CondensedDataset) -> None:
    tensors = [small.synthetic.all() for small in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


@pytest.mark.parametrize("method", BATCHED)
def test_batch_of_all_rows_or_more_equals_none(method: str) -> None:
    everything = 24 if method not in SIAMESE else 12  # trajectory methods draw from the whole set, the others by class
    whole, exact, larger, smaller = (
        condense(method, IPC, factor=2, batch_syn=n) for n in (None, everything, everything + 5, 3)
    )
    assert_equal(whole, exact)
    assert_equal(whole, larger)
    assert not torch.equal(whole.synthetic.images, smaller.synthetic.images)


@pytest.mark.parametrize("method", BATCHED)
def test_result_does_not_depend_on_the_chunks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []
    for memory in (2**40, 1):
        monkeypatch.setattr(build, "memory_budget", lambda device, memory=memory: memory)
        sets.append(condense(method, IPC, factor=2, batch_syn=3, lr_img=30.0))
    assert [small.recipe.plan["classes_per_chunk"] for small in sets] == [3, 1]
    torch.testing.assert_close(sets[0].synthetic.images, sets[1].synthetic.images, atol=2e-5, rtol=0)


@pytest.mark.parametrize("storage", ["pixels", "dct", "siren"])
@pytest.mark.parametrize("method", BATCHED)
def test_resumed_run_equals_the_straight_run(
    method: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(run: Run, done: int, loss: float) -> None:
        if done == 3:
            raise Stop

    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 20)
    options = {"storage": storage, "batch_syn": 2, "steps": 6}
    saving = {"checkpoint_dir": tmp_path}
    with pytest.raises(Stop):
        condense(method, 3, callbacks=[stop], **saving, **options)
    steps: list[int] = []
    resumed = condense(method, 3, callbacks=[lambda run, done, loss: steps.append(done)], **saving, **options)
    assert steps == [4, 5, 6]
    assert_equal(condense(method, 3, **options), resumed)


@pytest.mark.parametrize("soft_labels", ["none", "learned"])
@pytest.mark.parametrize("class_gradients", ["loop", "batched"])
def test_targets_belong_to_the_drawn_rows(soft_labels: str, class_gradients: str) -> None:
    """Only the drawn rows and their labels get a gradient, whether gradients of classes are computed one by one."""
    checked: list[int] = []

    def check(run: Run, done: int, loss: float) -> None:
        expected = torch.zeros(len(run.synthetic.labels), dtype=torch.bool)
        expected[drawn(run, 2, run.classes, done - 1)] = True
        tensors = [run.synthetic.stored["images"]]
        tensors += [run.synthetic.soft_labels] if soft_labels == "learned" else []
        for tensor in tensors:
            assert torch.equal(tensor.grad.flatten(1).abs().amax(1) > 0, expected)
        checked.append(done)

    options: dict[str, Any] = {"batch_syn": 2, "soft_labels": soft_labels, "class_gradients": class_gradients}
    options |= {"teacher_updates": 2} if soft_labels == "learned" else {}
    condense("dc", 5, steps=3, callbacks=[check], **options)
    assert checked == [1, 2, 3]


@pytest.mark.parametrize("storage", ["pixels", "dct", "siren"])
@pytest.mark.parametrize("method", SIAMESE)
def test_gradient_reaches_only_the_drawn_rows(method: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_condense.condensed.decoders.siren._FIT_STEPS", 20)
    reached: list[int] = []

    def check(run: Run, done: int, loss: float) -> None:
        (tensor,) = run.synthetic.learned().values()
        rows = (tensor.grad.flatten(1).abs().amax(1) > 0).nonzero()[:, 0].tolist()
        assert rows == sorted(drawn(run, 2, run.classes, done - 1))
        reached.extend(rows)

    condense(method, 3, storage=storage, batch_syn=2, steps=3, callbacks=[check])
    assert len(set(reached)) > 2 * 3, "other steps should draw other rows"


def test_batch_of_no_rows_raises_value_error() -> None:
    with pytest.raises(ValueError, match="batch_syn should be at least 1; got 0"):
        condense("dm", batch_syn=0)
