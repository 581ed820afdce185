"""Memory is predicted and bounded: plans obey `max_memory`; a step that does not fit is cut smaller and repeated."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_condense.engine.build
from hf_condense.base.checks import byte_count
from hf_condense.base.memory import free_memory, is_out_of_memory, limited_memory, memory_budget
from hf_condense.condensed.decoders import DECODERS, base
from hf_condense.engine.checkpoint import FILE_NAME
from hf_condense.engine.plan import Plan
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.methods import dc
from hf_condense.networks.accuracy import accuracy, images_per_test
from hf_condense.source.load import load_source
from hf_condense.testing import quick_method, toy_dataset
from tests.support.engine_methods import condense, same

CPU = torch.device("cpu")
EXPERTS = {"experts": 2, "snapshots": 3, "snapshot_every": 1, "student_steps": 3, "expert_span": 1}
METHODS: dict[str, dict[str, Any]] = {
    "dm": {"batch_real": 6, "ipm": 2},
    "dc": {"batch_real": 6, "outer_loop": 2, "inner_loop": 1},
    "esp": {**EXPERTS, "beside": "dm", "batch_real": 6},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(123, 123), ("123", 123), ("2KB", 2000), ("2 KiB", 2048), ("1.5gib", 3 * 2**29), ("4G", 4 * 10**9)],
)
def test_number_of_bytes_is_read_from_text(text: object, expected: int) -> None:
    assert byte_count("max_memory", text) == expected


@pytest.mark.parametrize("text", ["much", "4 GiBit", "-1GB", "0", 0, "GB"])
def test_what_is_no_number_of_bytes_raises_value_error(text: object) -> None:
    with pytest.raises(ValueError, match="max_memory should be "):
        condense("dm", steps=1, max_memory=text)


def test_budget_is_what_the_caller_allows() -> None:
    with limited_memory(12_345):
        assert memory_budget(CPU) == free_memory(CPU) == 12_345
        with limited_memory(None):
            assert memory_budget(CPU) == 12_345
    assert memory_budget(CPU) < free_memory(CPU)


def test_plan_follows_from_max_memory() -> None:
    assert condense("dm", steps=1, batch_real=4, max_memory=1).recipe.plan["classes_per_chunk"] == 1
    assert condense("dm", steps=1, batch_real=4, max_memory="1GiB").recipe.plan["classes_per_chunk"] == 3


def test_step_that_can_not_fit_is_named_before_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_condense"):
        condense("dm", steps=1, batch_real=4, max_memory=1)
    assert re.search(r"a step needs about \d+\.\d KiB of memory, but may use 1 B; ", caplog.text)
    assert "batch_syn" in caplog.text


class Shortage:
    """Memory that is not enough in the middle of one step. It is a callback that waits for the step before.

    Args:
        step: The step.
        enough: Function that says of a plan whether its steps fit. Default: the second try fits.
    """

    def __init__(self, step: int, enough: Callable[[Plan], bool] | None = None) -> None:
        self.step, self.enough = step, enough
        self.calls = self.failures = 0
        self.run: Run | None = None

    def __call__(self, run: Run, done: int, loss: float) -> None:
        self.run, self.calls = (run, 0) if done == self.step else (None, 0)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let rows of the set be decoded only while there is memory."""
        at = SyntheticSet.at

        def at_or_fail(synthetic: SyntheticSet, rows: torch.Tensor | None) -> Any:
            self.calls += self.run is not None
            lacking = self.failures == 0 if self.enough is None else self.run and not self.enough(self.run.plan)
            if self.calls == (2 if self.enough is None else 1) and lacking:
                self.calls, self.failures = 0, self.failures + 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return at(synthetic, rows)

        monkeypatch.setattr(SyntheticSet, "at", at_or_fail)


@pytest.mark.parametrize("method", METHODS)
def test_step_that_runs_out_of_memory_is_repeated(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one class per chunk, the second try of the step only cuts forward passes smaller."""
    options = {"steps": 5, "max_memory": 1, **METHODS[method]}
    straight = condense(method, **options)
    shortage = Shortage(3)
    shortage.install(monkeypatch)
    done: list[int] = []
    with caplog.at_level(logging.WARNING, "hf_condense"):
        small = condense(method, callbacks=[shortage, lambda run, step, loss: done.append(step)], **options)
    assert shortage.failures == 1
    assert done == [1, 2, 3, 4, 5]
    assert "step 3 does not fit into memory and is repeated" in caplog.text
    torch.testing.assert_close(small.synthetic.images, straight.synthetic.images, atol=1e-5, rtol=0)


def test_shortage_after_the_update_ends_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(dc, "train_network", fail)  # the inner loop
    saves = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    with pytest.raises(MemoryError, match=r"step 0 does not fit into memory, .* A lower max_memory"):
        condense("dc", steps=2, **METHODS["dc"], **saves)


def test_shortage_in_the_step_of_the_optimiser_ends_the_run_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.optim.Optimizer, closure: object = None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.optim.SGD, "step", fail)
    with pytest.raises(MemoryError, match=r"step 0 does not fit into memory"):
        condense("dm", steps=2, **METHODS["dm"])


def test_student_whose_step_does_not_fit_gets_fewer_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shortage = Shortage(2, enough=lambda plan: plan.classes_per_chunk == 1)
    shortage.install(monkeypatch)
    small = condense("esp", steps=4, callbacks=[shortage], **EXPERTS)
    assert shortage.failures == 2, "three classes should be halved to two and to one"
    assert (small.recipe.plan["classes_per_chunk"], len(small)) == (1, 6)


@pytest.mark.parametrize(
    ("method", "options", "advice"),
    [
        ("mtt", {}, r"Fewer student_steps, .*'tesla'"),
        (
            "esp",
            {"max_memory": 1},
            r"A lower max_memory cuts steps into smaller parts; a smaller batch_syn, network or",
        ),
    ],
)
def test_step_that_no_cut_can_make_smaller_is_not_repeated(
    method: str, options: dict[str, Any], advice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The graphs of all steps of `mtt` are kept, and a student's forward passes are not cut by the plan."""
    shortage = Shortage(2, enough=lambda plan: False)
    shortage.install(monkeypatch)
    with pytest.raises(MemoryError, match=rf"step 2 does not fit into memory, cut as Plan.*\. {advice}"):
        condense(method, steps=4, callbacks=[shortage], **EXPERTS, **options)
    assert shortage.failures == 1
    assert "is repeated" not in caplog.text


def test_smaller_plan_is_in_the_checkpoint_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 4, "batch_real": 4}
    shortage = Shortage(1, enough=lambda plan: plan.classes_per_chunk == 1)
    with monkeypatch.context() as patched:
        shortage.install(patched)
        first = condense("dm", checkpoint_dir=tmp_path, callbacks=[shortage], **options)
    assert shortage.failures == 2, "three classes should be halved to two and to one"
    assert first.recipe.plan["classes_per_chunk"] == 1
    assert condense("dm", **options).recipe.plan["classes_per_chunk"] == 3
    resumed = condense("dm", checkpoint_dir=tmp_path, **options)
    assert resumed.recipe.plan == first.recipe.plan
    assert same(resumed, first)


def test_step_that_never_fits_raises_memory_error_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage = Shortage(3, enough=lambda plan: False)
    shortage.install(monkeypatch)
    message = r"step 3 does not fit into memory, cut as Plan\(classes_per_chunk=1, images_per_forward=1.*; the "
    with pytest.raises(MemoryError, match=message + r"checkpoint of step 2 in .* is kept\. .*smaller network"):
        condense(
            "dm",
            batch_real=4,
            network="convnet-w4-d1",
            checkpoint_dir=tmp_path,
            checkpoint_every=2,
            callbacks=[shortage, lambda run, done, loss: None],
            steps=5,
        )
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_other_errors_of_a_step_are_raised_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(synthetic: SyntheticSet, rows: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(SyntheticSet, "at", fail)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        condense("dm", steps=1, batch_real=4)


def test_resumed_run_that_can_not_fit_gets_another_plan_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"batch_real": 4, "checkpoint_dir": tmp_path}
    assert condense("dm", steps=2, **options).recipe.plan["classes_per_chunk"] == 3
    with caplog.at_level(logging.WARNING, "hf_condense"):
        small = condense("dm", steps=4, max_memory=1, **options)
    assert small.recipe.plan["classes_per_chunk"] == 1
    assert "the checkpoint's plan of a step is replaced, because it needs about " in caplog.text
    straight = condense("dm", steps=4, batch_real=4)
    torch.testing.assert_close(small.synthetic.images, straight.synthetic.images, atol=1e-5, rtol=0)


def test_resumed_run_whose_plan_cannot_be_smaller_gets_no_warning_about_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"batch_real": 4, "max_memory": 1}
    condense("dm", steps=2, checkpoint_dir=tmp_path, **options)
    with caplog.at_level(logging.WARNING, "hf_condense"):
        small = condense("dm", steps=4, checkpoint_dir=tmp_path, **options)
    assert "is replaced" not in caplog.text
    assert same(small, condense("dm", steps=4, **options))


def test_compiled_run_goes_on_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"batch_real": 4, "checkpoint_dir": tmp_path, "compile": "auto"}
    monkeypatch.setattr(hf_condense.engine.build, "make_plan", lambda *args, **how: Plan(3, 64, compile=True))
    monkeypatch.setattr(torch, "compile", lambda module, **how: module)
    assert condense("dm", steps=2, **options).recipe.plan["compile"] is True
    monkeypatch.setattr(hf_condense.engine.build, "has_compiler", lambda: True)
    assert condense("dm", steps=3, **options).recipe.plan["compile"] is True
    assert "differs by rounding" not in caplog.text
    monkeypatch.setattr(hf_condense.engine.build, "has_compiler", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda module, **how: pytest.fail("there is no compiler"))
    assert condense("dm", steps=4, **options).recipe.plan["compile"] is False
    assert "g++ or Python's headers are missing here; the result differs by rounding" in caplog.text


def test_errors_about_memory_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture
def source() -> Any:
    return load_source(toy_dataset(rows=4).remove_columns("note"), label_column="label", cache=False, progress=False)


def test_images_that_are_tested_at_a_time_obey_the_budget(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3), torch.nn.Sigmoid())
    outputs = torch.arange(3)
    assert images_per_test(net, source) == len(source)
    whole = accuracy(net, source, outputs)
    with limited_memory(5 * 4 * (3 * 64 + 3) + 1):
        assert images_per_test(net, source) == 5
        assert accuracy(net, source, outputs) == whole
    with limited_memory(1):
        assert images_per_test(net, source) == 1


@pytest.mark.parametrize("form", ["pixels", "patches", "dct", "siren"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (3, 4, 5)])
def test_bytes_of_a_row_are_known_for_images_of_any_size(form: str, shape: tuple[int, int, int]) -> None:
    try:
        decoder = DECODERS[form](shape, DECODERS[form].settle_expand(None, shape, 1))
    except ValueError:
        assert form in ("patches", "siren"), "these cannot store images that small"
    else:
        assert decoder.row_bytes() >= 0


@pytest.mark.parametrize("storage", ["pixels", "patches", "dct", "siren"])
def test_rows_decoded_some_at_a_time_equal_all(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = condense("dm", steps=1, batch_real=4, storage=storage)
    decoder = small.synthetic.decoder
    stored = {name: t.double() if t.is_floating_point() else t for name, t in small.synthetic.stored.items()}
    whole = decoder.decode(stored)
    monkeypatch.setattr(base, "_DECODED_AT_ONCE", 3 * 4 * 3 * 64)
    torch.testing.assert_close(decoder.images(stored, None, len(whole)), whole, atol=1e-12, rtol=0)
    rows = torch.tensor([5, 1, 0, 4])
    torch.testing.assert_close(decoder.images(stored, rows, len(whole)), whole[rows], atol=1e-12, rtol=0)


def test_decoding_a_coordinate_network_counts_for_the_plan() -> None:
    pixels, siren = (DECODERS[name]((3, 128, 128), 1) for name in ("pixels", "siren"))
    assert siren.row_bytes() > 10 * 4 * 3 * 128 * 128 > 5 * pixels.row_bytes()


def test_plan_is_cut_smaller_where_decoding_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 1, "batch_real": 4, "max_memory": "1GiB", "storage": "patches", "expand": 4}
    assert condense("dm", **options).recipe.plan["classes_per_chunk"] == 3
    monkeypatch.setattr(DECODERS["patches"], "row_bytes", lambda self: 2**29)
    assert condense("dm", **options).recipe.plan["classes_per_chunk"] == 1


def test_start_that_does_not_fit_into_memory_says_what_needs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*args: Any) -> SyntheticSet:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Run, "start", start)
    with pytest.raises(MemoryError, match=r"the set that learning starts from does not fit .* smaller ipc, expand or"):
        condense("dm")


def test_set_that_is_larger_than_readers_accept_raises_plain_value_error() -> None:
    with pytest.raises(ValueError, match=r"readers would refuse the set: ipc 1000000000.*smaller ipc") as caught:
        quick_method("dm").condense(toy_dataset(), 10**9)
    assert type(caught.value) is ValueError
