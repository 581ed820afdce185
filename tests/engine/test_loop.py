"""The loop: what it does with losses, networks, callbacks and progress bars, and with values that are not finite."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.rng import key_seed
from hf_condense.engine import loop
from hf_condense.engine.checkpoint import FILE_NAME
from hf_condense.engine.method import Loss
from hf_condense.engine.run import Run
from hf_condense.testing import quick_method, toy_dataset
from tests.support.engine_methods import Leap, Pull, PullConfig, Stop, Watchful, condense, registered, same, stop_after

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    with registered():
        yield


def test_run_equals_a_plain_training_loop() -> None:
    """The plain loop has one group per rate, sums gradients over chunks and clamps the images."""
    runs: list[Run] = []
    small = condense(steps=3, kinds=("a",), callbacks=[lambda run, done, loss: runs.append(run)])
    run = runs[0]
    plain = Pull(PullConfig())
    run.synthetic = plain.initialise(run)
    run.synthetic.student_lr.requires_grad_()
    optimiser = plain.optimiser(run)
    for t in range(3):
        optimiser.zero_grad()
        sum(loss for loss, _ in plain.losses(run, t)).backward()
        optimiser.step()
        run.synthetic.project_()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key_seed(run.seed, "step", t))
            plain.after_update(run, t)
    torch.testing.assert_close(small.synthetic.images, run.synthetic.finished().images)
    assert float(small.synthetic.student_lr) != 0.5
    torch.testing.assert_close(small.synthetic.student_lr, run.synthetic.student_lr.detach())


def test_callbacks_get_every_step_and_its_objective() -> None:
    calls: list[tuple[int, float, float]] = []

    def first(run: Run, done: int, loss: float) -> None:
        calls.append((done, loss, float(run.synthetic.stored["images"].detach().sum())))
        torch.rand(3)  # what a callback draws should not change the run

    second: list[int] = []
    small = condense(steps=3, callbacks=[first, lambda run, done, loss: second.append(done)])
    assert [done for done, _, _ in calls] == second == [1, 2, 3]
    assert all(loss > 0 for _, loss, _ in calls)
    assert len({total for _, _, total in calls}) == 3, "each call should see the images of its step"
    assert same(small, condense(steps=3))


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_nan_raises_non_finite_loss_error_and_keeps_the_last_checkpoint(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pull, "poison", (place, 4))
    with pytest.raises(NonFiniteLossError, match=r"at step 4 .*; the checkpoint of step 3 in .* is kept"):
        condense(checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(NonFiniteLossError, match=r"at step 4 .*; the checkpoint of step 3"):
        condense(checkpoint_dir=tmp_path, checkpoint_every=500)  # the checkpoint from which the run was resumed
    with pytest.raises(NonFiniteLossError, match="no checkpoint had been written"):
        condense()
    monkeypatch.setattr(Pull, "poison", None)
    assert same(condense(checkpoint_dir=tmp_path), condense())


def test_step_that_is_not_finite_is_named_among_those_that_are_checked_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first step is checked alone, then four together, as if nobody read the values on a GPU."""
    start = loop._Optimisation.__init__
    monkeypatch.setattr(loop._Optimisation, "__init__", lambda self, *parts, check_every: start(self, *parts, 4))
    monkeypatch.setattr(Pull, "poison", ("loss", 3))
    with pytest.raises(NonFiniteLossError, match="not finite at step 3 "):
        condense()


def test_update_that_overflows_is_never_checkpointed(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="at step 0 "):
        condense("leap", pixel_range="free", checkpoint_dir=tmp_path, checkpoint_every=1)
    assert list(tmp_path.iterdir()) == []


def test_infinite_gradient_raises_although_images_are_clamped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leap, "steep", True)
    with pytest.raises(NonFiniteLossError, match=r"at step 0 \(loss 0\.0\)"):
        condense("leap", pixel_range="valid", checkpoint_dir=tmp_path, checkpoint_every=1)
    assert list(tmp_path.iterdir()) == []


def test_graph_of_a_chunk_is_freed_before_the_next_and_networks_get_no_gradients() -> None:
    Watchful.alive_counts.clear()
    Watchful.gradients.clear()
    first, second = condense("watchful", steps=1), condense("watchful", steps=2)
    assert not torch.equal(first.synthetic.images, second.synthetic.images), "the images should have moved"
    assert Watchful.alive_counts == [0, 0, 0, 0] * 3
    assert Watchful.gradients
    assert all(gradient is None for gradient in Watchful.gradients)


BARS = """
import sys
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from hf_condense.api import condense_dataset
from hf_condense.testing import toy_dataset

def condense(title, **options):
    print(title, file=sys.stderr, flush=True)
    condense_dataset(
        toy_dataset().remove_columns("note"), "dm", 1, label_column="label", network="convnet-w8-d1", compile=False,
        steps=3, batch_real=2, cache=False, **options,
    )

condense("PLAIN")
condense("WITHOUT PROGRESS", progress=False)
disable_progress_bars("hf_condense")
condense("SWITCHED OFF")
enable_progress_bars("hf_condense")
condense("SWITCHED ON")
"""


@contextmanager
def terminal(written: list[str]) -> Iterator[int]:
    """Open a terminal. When it is closed, append what was written to it to a list."""
    main, side = pty.openpty()
    fcntl.ioctl(
        side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0)
    )  # a progress bar fills the width of the terminal
    chunks: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # raised when the terminal is closed
            while chunk := os.read(main, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield side
    finally:
        os.close(side)
        reader.join(10)
        os.close(main)
        written.append(b"".join(chunks).decode())


def test_progress_bars_are_shown_on_a_terminal_and_can_be_switched_off() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    written: list[str] = []
    with terminal(written) as side:
        subprocess.run([sys.executable, "-c", BARS], env=environment, stderr=side, cwd=ROOT, check=True, timeout=120)
    plain, rest = written[0].split("WITHOUT PROGRESS")
    silent, last = rest.split("SWITCHED ON")
    for part in (plain, last):
        assert "Condensing: 100%" in part
        assert "3/3" in part
        assert "loss=" in part
        assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, .*(step/s|s/step), loss=", part), "time left and steps per second"
        assert "Decoding" in part
    assert silent.split() == ["SWITCHED", "OFF"]


def test_progress_bars_obey_the_hubs_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1", "conftest.py should set it before anything reads it"
    written: list[str] = []
    with terminal(written) as side, os.fdopen(os.dup(side), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        condense(steps=2, progress=True, cache=False)
        monkeypatch.undo()
    assert written == [""]


def test_falling_learning_rate_halves_the_second_of_two_steps() -> None:

    def images(steps: int, decay: bool) -> torch.Tensor:
        bench = quick_method("dm", steps=steps, decay=decay, momentum=0.0, pixel_range="free")
        return bench.condense(toy_dataset()).synthetic.images

    first, steady, falling = images(1, False), images(2, False), images(2, True)
    assert torch.equal(first, images(1, True))
    assert float((steady - first).abs().max()) > 1e-3
    torch.testing.assert_close(falling - first, (steady - first) / 2, atol=1e-5, rtol=1e-3)


def test_run_with_falling_rates_refuses_more_steps(tmp_path: Path) -> None:
    ds = toy_dataset()
    quick_method("dm", steps=2, decay=True).condense(ds, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"steps: 2 in the checkpoint, 4 in this run\).*pass what it has"):
        quick_method("dm", steps=4, decay=True).condense(ds, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("before", [False, True])
def test_other_options_and_not_the_steps_are_named_where_the_same_steps_were_given(
    tmp_path: Path, before: bool
) -> None:
    ds = toy_dataset()
    quick_method("dm", steps=2, decay=before).condense(ds, checkpoint_dir=tmp_path)
    named = rf"another run \(options.decay: {before} in the checkpoint, {not before} in this run\)"
    with pytest.raises(ValueError, match=named):
        quick_method("dm", steps=2, decay=not before).condense(ds, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda loss: loss, TypeError, r"should yield Loss\(loss, value\), each a tensor with one number; got Tensor"),
        (lambda loss: (loss, 1.0), TypeError, "each a tensor with one number; got tuple of Tensor, float"),
        (lambda loss: Loss(loss, 1.0), TypeError, "each a tensor with one number; got Loss of Tensor, float"),  # type: ignore[arg-type]
        (lambda loss: (loss, loss, loss), TypeError, "each a tensor with one number; got tuple"),
        (lambda loss: (loss.detach(), loss), ValueError, "has no graph that leads to what is learned"),
        (lambda loss: (loss.expand(3), loss), ValueError, r"got shapes \(3,\) and \(\)"),
    ],
)
def test_loss_of_another_kind_raises_an_error_that_names_loss(
    wrong: Callable[[torch.Tensor], object], kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pull, "losses", lambda self, run, t: iter([wrong(run.synthetic.all()[0].sum())]))
    with pytest.raises(kind, match=message):
        condense()


@pytest.mark.parametrize(
    ("nothing", "kind", "message"),
    [(iter(()), ValueError, "they yielded nothing"), (None, TypeError, "got NoneType")],
)
def test_step_without_a_loss_raises_an_error_that_names_the_method(
    nothing: object, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real rows that the set starts from would otherwise pass for learned ones."""
    monkeypatch.setattr(Pull, "losses", lambda self, run, t: nothing)
    with pytest.raises(kind, match=rf"the losses of 'pull' should yield Loss\(loss, value\).*; {message}"):
        condense()


def test_callback_that_fails_leaves_a_checkpoint_of_its_step(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        condense(steps=4, checkpoint_dir=tmp_path, checkpoint_every=100, callbacks=[stop_after(3)])
    steps: list[int] = []
    again = condense(
        steps=4, checkpoint_dir=tmp_path, checkpoint_every=100, callbacks=[lambda run, done, loss: steps.append(done)]
    )
    assert steps == [4]
    assert same(again, condense(steps=4))


def test_numbers_that_are_not_finite_are_not_saved_between_two_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = loop._Optimisation.__init__
    monkeypatch.setattr(loop._Optimisation, "__init__", lambda self, *parts, check_every: start(self, *parts, 100))
    monkeypatch.setattr(Pull, "poison", ("loss", 3))
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 3 .*; no checkpoint had been written"):
        condense(checkpoint_dir=tmp_path, checkpoint_every=4)
    assert not (tmp_path / FILE_NAME).exists()


def test_falling_rates_are_shares_of_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def watched(optimiser: torch.optim.SGD, *args: object) -> object:
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    quick_method("dm", steps=4, decay=True).condense(toy_dataset())
    assert rates == pytest.approx([rates[0] * share for share in (1, 0.75, 0.5, 0.25)])


def test_callback_that_fails_without_a_folder_of_checkpoints_raises_its_own_error() -> None:
    with pytest.raises(Stop):
        condense(steps=2, callbacks=[stop_after(1)])


def test_every_step_has_draws_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[float] = []
    losses = Pull.losses

    def drawing(method: Pull, run: Run, t: int) -> Iterator[Loss]:
        draws.append(float(torch.rand(())))
        return losses(method, run, t)

    monkeypatch.setattr(Pull, "losses", drawing)
    for _ in range(2):
        condense(steps=3)
    assert draws[:3] == draws[3:]
    assert len(set(draws)) == 3


@pytest.mark.parametrize("storage", ["pixels", "dct"])
def test_pixels_that_a_large_rate_drives_to_the_ends_are_told(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    said = "of the pixels of the set are black or white (0 or 1), where"
    quick_method("dm", steps=3, lr_img=1e5, storage=storage).condense(toy_dataset())
    assert said in caplog.text
    caplog.clear()
    quick_method("dm", steps=3, storage=storage).condense(toy_dataset())
    quick_method("random").condense(toy_dataset())
    assert said not in caplog.text


def test_pixels_far_outside_their_range_are_told(caplog: pytest.LogCaptureFixture) -> None:
    quick_method("dm", steps=3, lr_img=1e6, pixel_range="free").condense(toy_dataset())
    assert "outside [0, 1] on average; a smaller learning rate, such as lr_img" in caplog.text
