"""A run is reported to Accelerate's trackers: scalars, pictures, its recipe; and a profile says where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker, on_main_process

from hf_condense.engine.profiling import StepProfile
from tests.support.engine_methods import Stop, condense, same, stop_after

SETTINGS: dict[str, Any] = {"steps": 4, "batch_real": 4}


class Notebook(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}
        self.scalars: dict[int, dict[str, float]] = {}
        self.pictures: dict[int, np.ndarray] = {}
        self.finished = 0

    @property
    def tracker(self) -> dict[int, dict[str, float]]:
        return self.scalars

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.facts = values

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        self.scalars[step] = values

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.pictures[step] = values["images"]

    @on_main_process
    def finish(self) -> None:
        self.finished += 1


def test_tracker_gets_scalars_pictures_and_the_recipe() -> None:
    notebook, losses = Notebook(), []
    note = [lambda run, done, loss: losses.append(loss)]
    small = condense("dm", log_with=notebook, callbacks=note, checkpoint_every=3, **SETTINGS)
    assert [notebook.scalars[step]["loss"] for step in (1, 2, 3, 4)] == losses
    assert all(notebook.scalars[step]["steps_per_second"] > 0 for step in (2, 3, 4))
    assert sorted(notebook.pictures) == [1, 3, 4]
    assert all(picture.dtype == np.uint8 and picture.ndim == 4 for picture in notebook.pictures.values())
    assert notebook.pictures[1].std() > 0
    assert not np.array_equal(notebook.pictures[1], notebook.pictures[4])
    assert notebook.facts["method"] == "dm"
    assert notebook.finished == 1
    assert same(small, condense("dm", **SETTINGS))


def test_tracker_is_finished_although_the_run_fails() -> None:
    notebook = Notebook()
    with pytest.raises(Stop):
        condense("dm", log_with=[notebook], callbacks=[stop_after(2)], **SETTINGS)
    assert notebook.finished == 1


def test_set_is_not_lost_to_a_tracker_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Notebook):
        def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
            raise ConnectionError("nobody listens")

    small = condense("dm", log_with=Broken(), **SETTINGS)
    assert same(small, condense("dm", **SETTINGS))
    assert [record.getMessage() for record in caplog.records] == [
        "a tracker could not take the report of step 1: nobody listens"
    ]


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    condense("dm", log_with="tensorboard", logging_dir=tmp_path, **SETTINGS)
    events = reader.EventAccumulator(str(tmp_path / "hf_condense"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("images")] == [1, 4]
    assert events.Images("images")[0].width > 8


@pytest.mark.parametrize(
    ("log_with", "message"),
    [
        ("tensorbord", "'tensorbord', which Accelerate does not know"),
        (["comet_ml", "tensorbord"], "'tensorbord', which Accelerate does not know"),
        ("comet_ml", "'comet_ml', whose package is not installed"),
    ],
)
def test_tracker_that_is_not_there_raises_value_error(log_with: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"log_with names {message}"):
        condense("dm", log_with=log_with, **SETTINGS)


def test_profile_names_the_parts_of_a_run_and_the_operations_of_a_step(capfd: pytest.CaptureFixture[str]) -> None:
    profile = StepProfile()
    condense("dm", callbacks=[profile], **SETTINGS)
    assert capfd.readouterr() == ("", "")  # torch's profiler would speak of CUDA
    torch.linalg.eigvalsh(torch.eye(400))  # longer than the steps, but not one of them
    report = profile.report()
    assert "eigh" not in report
    assert "until the first step is done" in report
    assert "3 more steps, " in report
    assert "aten::" in report
    shares = [int(line.split()[-1].rstrip("%")) for line in report.splitlines() if line.endswith("%")]
    assert shares == sorted(shares, reverse=True)
    assert 30 < sum(shares) <= 102


def test_profile_of_a_method_without_steps_says_so() -> None:
    profile = StepProfile()
    condense("random", callbacks=[profile])
    assert "This method has no steps." in profile.report()


class Torn(Notebook):
    """A tracker whose connection is lost at the end."""

    name = "torn"

    def finish(self) -> None:
        raise ConnectionError("no network")


def test_tracker_that_cannot_finish_loses_no_set(caplog: pytest.LogCaptureFixture) -> None:
    assert len(condense("dm", log_with=Torn(), **SETTINGS))
    assert "the tracker 'torn' could not finish: no network" in caplog.text
