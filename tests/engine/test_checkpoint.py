"""A run that is interrupted, killed or out of disk space resumes from a whole checkpoint, bit for bit."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hf_condense.base.errors import NonFiniteLossError, RunInterrupted
from hf_condense.engine.checkpoint import FILE_NAME, Checkpoint, read_checkpoint, workers_in
from hf_condense.engine.plan import Plan
from hf_condense.engine.run import Run
from hf_condense.testing import quick_method, toy_dataset
from tests.support.engine_methods import Stop, condense, registered, same, stop_after

ROOT = Path(__file__).resolve().parents[2]
PLAN = Plan(2, 64, False)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with registered():
        yield


@given(cut=st.integers(1, 6), every=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_run_stopped_at_any_step_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, cut: int, every: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(Stop):
        condense(checkpoint_dir=folder, checkpoint_every=every, callbacks=[stop_after(cut)])
    assert same(condense(checkpoint_dir=folder, checkpoint_every=every), condense())


def test_finished_run_is_resumed_with_more_steps(tmp_path: Path) -> None:
    done: list[int] = []
    condense(steps=3, checkpoint_dir=tmp_path, checkpoint_every=2)
    longer = condense(steps=5, checkpoint_dir=tmp_path, callbacks=[lambda run, step, loss: done.append(step)])
    assert done == [4, 5]
    assert same(longer, condense(steps=5))
    assert same(condense(steps=5, checkpoint_dir=tmp_path, callbacks=[stop_after(5)]), longer), "no step is left to do"


def test_fewer_steps_than_the_checkpoint_raise_value_error(tmp_path: Path) -> None:
    condense(steps=3, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint in .* is at step 3, beyond steps=2; .*remove the file"):
        condense(steps=2, checkpoint_dir=tmp_path)


def test_checkpoint_of_another_run_is_refused_with_every_difference(tmp_path: Path) -> None:
    condense("dm", steps=2, batch_real=4, lr_img=1.0, checkpoint_dir=tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(ValueError, match="belongs to another run") as caught:
        condense("dm", steps=2, batch_real=4, lr_img=0.25, seed=3, network="convnet-w4-d1", checkpoint_dir=tmp_path)
    message = str(caught.value)
    assert "seed: 0 in the checkpoint, 3 in this run" in message
    assert "options.lr_img: 1.0 in the checkpoint, 0.25 in this run" in message
    assert "network: 'convnet" in message
    assert "batch_real" not in message, "equal options should not be named"
    assert "pass another checkpoint_dir" in message
    with pytest.raises(ValueError, match=r"method: 'dm' in the checkpoint, 'pull' in this run") as caught:
        condense(checkpoint_dir=tmp_path)
    assert "options." not in str(caught.value), "those of another method differ as a matter of course"
    with pytest.raises(ValueError, match=r"another run \(another dataset, or other rows of it"):
        condense("dm", ds=toy_dataset(rows=11), steps=2, batch_real=4, checkpoint_dir=tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "empty", "another format", "a changed tensor", "a changed fact"])
def test_damaged_checkpoint_raises_value_error_and_is_left_alone(damage: str, tmp_path: Path) -> None:
    condense(steps=1, checkpoint_dir=tmp_path)
    file = tmp_path / FILE_NAME
    whole = file.read_bytes()
    content = {
        "truncated": whole[:-100],
        "empty": b"",
        "another format": b"{}" * 50,
        "a changed tensor": whole[:-1] + bytes([whole[-1] ^ 0x55]),
        "a changed fact": whole.replace(rb"\"step\": 1", rb"\"step\": 0"),
    }[damage]
    assert content != whole
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors cannot be read as a checkpoint .*remove it to start"
    ):
        condense(steps=1, checkpoint_dir=tmp_path)
    assert file.read_bytes() == content


def test_plan_of_the_checkpoint_wins_over_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as tight:
        tight.setattr("hf_condense.engine.build.memory_budget", lambda device: 1)
        first = condense(steps=2, checkpoint_dir=tmp_path)
        straight = condense(steps=4)
    assert first.recipe.plan["classes_per_chunk"] == 1
    resumed = condense(steps=4, checkpoint_dir=tmp_path)
    assert resumed.recipe.plan == first.recipe.plan
    assert condense(steps=4).recipe.plan["classes_per_chunk"] == 3
    assert same(resumed, straight)


def checkpoint(step: int, values: int = 10) -> Checkpoint:
    return Checkpoint(step, {"seed": 0}, PLAN, {"synthetic.images": torch.full((values,), float(step))})


def test_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "nowhere", {}) is None
    written = Checkpoint(
        7,
        {"seed": 0, "mean": [0.1, 1 / 3], "kinds": ("a",)},
        PLAN,
        {"synthetic.images": torch.rand(2, 3), "method.a.b": torch.tensor(3), "optimiser.0.step": torch.tensor(7.0)},
    )
    written.write(tmp_path / "new" / "folder")
    loaded = read_checkpoint(tmp_path / "new" / "folder", written.identity)
    assert loaded is not None
    assert (loaded.step, loaded.plan) == (7, PLAN)
    assert loaded.group("method").keys() == {"a.b"}
    for name, tensor in written.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].dtype == tensor.dtype


def test_failed_write_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """The failure is real: the process may not write a file of that size."""
    checkpoint(1).write(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint(2, values=10_000).write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert read_checkpoint(tmp_path, {"seed": 0}).step == 1


def refuse_to_sync(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_set_is_not_lost_to_a_disk_that_is_full_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", refuse_to_sync)
    small = condense(checkpoint_dir=tmp_path)
    monkeypatch.undo()
    assert same(small, condense())
    assert not list(tmp_path.iterdir())
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the checkpoint of step 6 was not written, and the run goes on: no space left while")
    assert "choose another place" in message
    assert "cache" not in message


def test_set_is_not_lost_to_a_checkpoint_that_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(checkpoint: Checkpoint, folder: Path) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr(Checkpoint, "write", out_of_memory)
    small = condense(checkpoint_dir=tmp_path)
    monkeypatch.undo()
    assert same(small, condense())
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "the checkpoint of step 6 was not written, and the run goes on: no memory left"


@pytest.mark.parametrize(
    ("every", "message"), [(2, "the checkpoint of step 2 in .* is kept"), (3, "no checkpoint had been written")]
)
def test_message_of_a_run_that_fails_names_a_checkpoint_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, message: str
) -> None:
    def fill_the_disk_and_spoil_the_set(run: Run, done: int, loss: float) -> None:
        if done == 3:
            monkeypatch.setattr(os, "fsync", refuse_to_sync)
        if done == 5:
            next(iter(run.synthetic.parameters().values())).data.fill_(math.nan)

    with pytest.raises(NonFiniteLossError, match=message):
        condense(checkpoint_dir=tmp_path, checkpoint_every=every, callbacks=[fill_the_disk_and_spoil_the_set])


def test_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[int] = []

    def watch(run: Run, done: int, loss: float) -> None:
        if done > 2:
            kept.append(read_tree(tmp_path).step)
        if done == 4:
            monkeypatch.setattr(os, "fsync", refuse_to_sync)
        if done == 5:
            monkeypatch.undo()

    small = condense(checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[watch])
    assert same(small, condense())
    assert kept == [2, 2, 2, 2], "the checkpoint of step 2 should be whole"
    assert read_tree(tmp_path).step == 6
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the checkpoint of step 4 was not written, and the run goes on: no space left while")
    assert "what was there before is whole" in message


def test_interruption_of_a_run_on_a_full_disk_says_that_its_checkpoint_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_and_stop(run: Run, done: int, loss: float) -> None:
        if done == 3:
            monkeypatch.setattr(os, "fsync", refuse_to_sync)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunInterrupted, match="the checkpoint of step 3 of 6 could not be written"):
        condense(checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[fill_and_stop])
    monkeypatch.undo()
    done: list[int] = []
    resumed = condense(checkpoint_dir=tmp_path, callbacks=[lambda run, step, loss: done.append(step)])
    assert done == [3, 4, 5, 6], "the checkpoint of step 2 should be whole"
    assert same(resumed, condense())


def test_checkpoint_that_another_run_wrote_meanwhile_is_not_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run_another(run: Run, done: int, loss: float, folder: Path = tmp_path) -> None:
        if done == 1:
            condense(seed=7, steps=1, checkpoint_dir=folder)

    small = condense(steps=4, checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[run_another])
    assert same(small, condense(steps=4))
    assert caplog.text.count("another run has written its checkpoint to") == 2
    assert "seed: 7 in the checkpoint, 0 in this run" in caplog.text

    def run_another_and_stop(run: Run, done: int, loss: float) -> None:
        run_another(run, done, loss, tmp_path / "other")
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunInterrupted, match="the checkpoint of step 1 of 4 could not be written"):
        condense(steps=4, checkpoint_dir=tmp_path / "other", callbacks=[run_another_and_stop])
    done: list[int] = []
    condense(seed=7, steps=2, checkpoint_dir=tmp_path, callbacks=[lambda run, step, loss: done.append(step)])
    assert done == [2], "the other run should go on from its own checkpoint"


def test_resumed_run_counts_the_seconds_of_earlier_calls(tmp_path: Path) -> None:
    first = condense(steps=2, checkpoint_dir=tmp_path).recipe.runtime["seconds"]
    found = read_tree(tmp_path)
    assert 0 < found.seconds <= first + 0.1  # of the recipe, the seconds are rounded
    replace(found, seconds=1000.0).write(tmp_path)
    assert condense(steps=3, checkpoint_dir=tmp_path).recipe.runtime["seconds"] >= 1000
    assert read_tree(tmp_path).seconds > 1000


def test_checkpoint_that_cannot_be_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(1).write(tmp_path)

    def refuse(path: Path, *options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot be read or written .* ask its owner for access") as caught:
        read_checkpoint(tmp_path, {"seed": 0})
    assert "remove" not in str(caught.value)


def test_choice_about_compiling_holds_for_the_rest_of_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    condense("dm", steps=1, batch_real=4, checkpoint_dir=tmp_path, compile=False)
    found = read_tree(tmp_path)
    replace(found, plan=replace(found.plan, compile=True)).write(tmp_path)
    resumed = condense("dm", steps=2, batch_real=4, checkpoint_dir=tmp_path, compile=False)
    assert not resumed.recipe.plan["compile"]
    assert "compile=False is not what the run had before" in caplog.text


def read_tree(folder: Path) -> Checkpoint:
    """Return the checkpoint of a folder, of whatever run it is."""
    with safe_open(folder / FILE_NAME, framework="pt") as opened:
        identity = json.loads(opened.metadata()["hf_condense_checkpoint"])["identity"]
    found = read_checkpoint(folder, identity)
    assert found is not None
    return found


KILLED = """
import os, signal, sys
import torch
from tests.support.engine_methods import condense

moment, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
now = False

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_instead_of(function):
    return lambda *args: kill() if now else function(*args)

def callback(run, done, loss):
    global now
    now = done >= int(moment[-1])
    if now and moment.startswith("step"):
        kill()

if moment.startswith("writing"):
    os.fsync = kill_instead_of(os.fsync)
if moment.startswith("renaming"):
    os.replace = kill_instead_of(os.replace)
condense("dm", steps=8, batch_real=4, checkpoint_dir=folder, checkpoint_every=1, callbacks=[callback])
"""


def test_run_that_is_killed_three_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Kill -9 hits in the middle of a step, while a checkpoint is written, and before the file is renamed."""
    for moment, last in (("step 2", 1), ("writing 4", 3), ("renaming 6", 5)):
        command = [sys.executable, "-c", KILLED, moment, str(tmp_path), str(torch.get_num_threads())]
        killed = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with safe_open(tmp_path / FILE_NAME, framework="pt") as opened:
            assert json.loads(opened.metadata()["hf_condense_checkpoint"])["step"] == last, f"killed at {moment}"
        leftovers = [file for file in tmp_path.iterdir() if file.name != FILE_NAME]
        assert len(leftovers) == (moment != "step 2"), (
            "one temporary file should be left of this kill, and none of earlier ones"
        )
    done: list[int] = []
    options = {"steps": 8, "batch_real": 4, "checkpoint_every": 1}
    resumed = condense("dm", checkpoint_dir=tmp_path, callbacks=[lambda run, step, loss: done.append(step)], **options)
    assert done == [6, 7, 8]
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert same(resumed, condense("dm", **options))


def test_checkpoint_of_another_network_of_the_callers_own_is_refused(tmp_path: Path) -> None:
    def network(width: int, layer: Callable[[], torch.nn.Module] = torch.nn.LeakyReLU):
        def make(channels: int, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Module:
            inputs = channels * image_size[0] * image_size[1]
            return torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(inputs, width), layer(), torch.nn.Linear(width, num_classes)
            )

        return make

    condense(network=network(4), checkpoint_dir=tmp_path, steps=2)
    condense(network=network(4), checkpoint_dir=tmp_path, steps=3)
    for other in (network(5), network(4, torch.nn.Tanh), network(4, partial(torch.nn.LeakyReLU, 0.9))):
        with pytest.raises(ValueError, match=r"network_structure: '.* parameters, .*' in the checkpoint"):
            condense(network=other, checkpoint_dir=tmp_path, steps=3)


def test_folder_that_cannot_be_written_raises_os_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    steps: list[int] = []
    note = [lambda run, done, loss: steps.append(done)]
    message = r"file is a file, and a folder is needed; choose another place"
    with pytest.raises(OSError, match=message):
        quick_method("dm", checkpoint_dir=tmp_path / "file", callbacks=note).condense(toy_dataset())
    assert not steps
    with pytest.raises(OSError, match=message):  # although the dataset has no such column
        quick_method("dm", checkpoint_dir=tmp_path / "file", image_column="picture").condense(toy_dataset())


@pytest.mark.parametrize("inside", [False, True])
def test_folder_of_sets_is_no_place_for_a_checkpoint(inside: bool, tmp_path: Path) -> None:
    condense(steps=1).save_condensed(tmp_path, "mine")
    with pytest.raises(
        FileExistsError, match=r"holds condensed sets; pass a folder of its own, such as '.*checkpoint'"
    ):
        condense(checkpoint_dir=tmp_path / "mine" if inside else tmp_path)


def test_other_rows_are_named_and_not_the_numbers_that_follow_from_them(tmp_path: Path) -> None:
    condense("dm", steps=1, batch_real=4, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another run \(another dataset, or other rows of it\)\. To go on"):
        condense("dm", ds=toy_dataset(rows=11), steps=1, batch_real=4, checkpoint_dir=tmp_path)


def test_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(1).write(tmp_path)

    def refuse(*args: object, **options: object) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr("hf_condense.engine.checkpoint.safe_open", refuse)
    with pytest.raises(MemoryError, match="no memory left"):
        read_checkpoint(tmp_path, {"seed": 0})


def test_checkpoint_of_a_resumed_run_has_the_values_of_all_steps(tmp_path: Path) -> None:
    values: list[float] = []
    for steps in (2, 5):
        condense(steps=steps, checkpoint_dir=tmp_path, callbacks=[lambda run, done, loss: values.append(loss)])
    assert read_tree(tmp_path).group("history")["values"].tolist() == values
    assert len(values) == 5


def test_tensors_in_any_layout_are_written(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    Checkpoint(1, {"seed": 0}, PLAN, {"method.turned": turned, "method.again": turned}).write(tmp_path)
    found = read_checkpoint(tmp_path, {"seed": 0})
    assert found is not None
    assert torch.equal(found.group("method")["turned"], turned)
    assert torch.equal(found.group("method")["again"], turned)


def test_workers_of_a_checkpoint_are_read_in_their_order(tmp_path: Path) -> None:
    replace(checkpoint(1), workers=(3, 2)).write(tmp_path)
    found = read_checkpoint(tmp_path, {"seed": 0})
    assert found is not None
    assert found.workers == workers_in(tmp_path) == (3, 2)
    assert workers_in(tmp_path / "nowhere") is None
