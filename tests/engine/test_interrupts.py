"""A run that a signal interrupts finishes its step, writes a checkpoint, and says how to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hf_condense.base.errors import RunInterrupted
from hf_condense.base.interrupts import Interrupts
from hf_condense.engine.checkpoint import FILE_NAME
from hf_condense.engine.run import Run
from tests.support.engine_methods import Pull, condense, registered, same

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """Give every test the handlers that a Python program starts with, and check that it leaves them so."""
    for number, handler in DEFAULTS.items():
        signal.signal(number, handler)
    yield
    assert {number: signal.getsignal(number) for number in DEFAULTS} == DEFAULTS


def raising(number: int, at: int) -> Callable[[Run, int, float], None]:
    """Return a callback that sends this process a signal after some steps."""
    return lambda run, done, loss: signal.raise_signal(number) if done == at else None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_a_step_leaves_a_checkpoint_of_that_step(number: signal.Signals, tmp_path: Path) -> None:
    done: list[int] = []
    callbacks = [raising(number, 4), lambda run, step, loss: done.append(step)]
    folder = re.escape(str(tmp_path))
    expected = rf"interrupted by {number.name}; the checkpoint of step 4 of 6 is in {folder}\. To go on from there, "
    with pytest.raises(RunInterrupted, match=expected) as caught:
        condense(checkpoint_dir=tmp_path, callbacks=callbacks)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.signal == number
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    resumed = condense(checkpoint_dir=tmp_path, callbacks=callbacks[1:])
    assert done == [1, 2, 3, 4, 5, 6]
    assert same(resumed, condense())


def test_signal_without_a_checkpoint_folder_says_what_is_lost() -> None:
    with pytest.raises(
        RunInterrupted, match=r"the 2 steps done so far are lost, because .* With checkpoint_dir=, a run goes"
    ):
        condense(callbacks=[raising(signal.SIGTERM, 2)])


def linear(channels: int, num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size[0] * image_size[1], num_classes))


def test_signal_before_the_first_step_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Pull, run: Run) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(Pull, "prepare", interrupted)
    with pytest.raises(RunInterrupted, match=r"SIGTERM; images decoded and networks .* are in the cache; the same run"):
        condense()
    with pytest.raises(RunInterrupted, match="SIGTERM; nothing was kept, because the cache is off"):
        condense(cache=False)
    with pytest.raises(RunInterrupted, match="SIGTERM; decoded images are in the cache, but nothing of networks"):
        condense(network=linear)


def test_signal_that_waits_for_the_end_of_a_step_is_told_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def interrupt(run: Run, done: int, loss: float) -> None:
        signal.raise_signal(signal.SIGINT)
        told.append(capfd.readouterr().err)

    for folder, ending in ((None, "first;"), (tmp_path, "first, and its checkpoint written;")):
        with pytest.raises(RunInterrupted):
            condense(checkpoint_dir=folder, callbacks=[interrupt])
        assert f"SIGINT: this step is finished {ending} a second signal ends the run at once" in told.pop()


def test_signal_before_a_resumed_run_goes_on_names_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condense(steps=2, checkpoint_dir=tmp_path)
    monkeypatch.setattr(Pull, "prepare", lambda self, run: signal.raise_signal(signal.SIGINT))
    with pytest.raises(RunInterrupted, match="SIGINT; the checkpoint of step 2 of 4 is in "):
        condense(steps=4, checkpoint_dir=tmp_path)


def test_signal_after_the_last_step_names_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Pull, "finish", lambda self, run: signal.raise_signal(signal.SIGINT))
        with pytest.raises(RunInterrupted, match="the checkpoint of step 6 of 6 is in "):
            condense(checkpoint_dir=tmp_path)
    assert same(condense(checkpoint_dir=tmp_path), condense())


def test_handlers_of_the_program_itself_are_kept(tmp_path: Path) -> None:
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        small = condense(callbacks=[raising(signal.SIGTERM, 2)])
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert received == [signal.SIGTERM]
    assert same(small, condense())


def test_run_in_another_thread_sets_no_handlers() -> None:
    handlers: list[Any] = []
    results: list[Any] = []

    def note(run: Run, done: int, loss: float) -> None:
        handlers.append({number: signal.getsignal(number) for number in DEFAULTS})

    thread = threading.Thread(target=lambda: results.append(condense(callbacks=[note])))
    thread.start()
    thread.join(120)
    assert handlers == [DEFAULTS] * 6
    assert same(results[0], condense())


def test_signal_that_a_launcher_repeats_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Interrupts() as interrupts:
        block = interrupts.postponed()
        block.__enter__()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.signal == signal.SIGINT
        with pytest.raises(RunInterrupted, match="interrupted by SIGINT"):
            block.__exit__(None, None, None)


TWICE = """
import os, signal, sys
from hf_condense.base.interrupts import Interrupts
with Interrupts() as interrupts, interrupts.postponed():
    os.kill(os.getpid(), signal.SIGTERM)
    print("the first signal waits", flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    print("the second signal waits too", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    command = [sys.executable, "-c", TWICE, str(int(number))]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert process.stdout == "the first signal waits\n"
    assert process.returncode == -number, process.stderr
