"""What happens in one of several processes (gloo, on CPUs) happens to all: sets are equal, waits are long, errors end
every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_condense.base import processes
from hf_condense.base.processes import get_accelerator, main_first, together
from hf_condense.engine.checkpoint import FILE_NAME
from tests.support.process_worker import NAMES, condense

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests processes on CPUs, but there is a CUDA device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what two processes have seen in every case."""
    folder = tmp_path_factory.mktemp("cases")
    condense(steps=2, checkpoint_dir=folder / "of one process")
    command = [sys.executable, "-m", "tests.support.process_worker", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return folder


@pytest.fixture
def seen(folder: Path) -> dict[str, list[Any]]:
    """Return what both processes have seen, by case."""
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {name: [result[name] for result in results] for name in NAMES}


def test_frozen_weights_stay_where_processes_share_a_batch(seen: dict[str, list[Any]]) -> None:
    for moved, difference in seen["frozen"]:
        assert moved == [False, False]
        assert difference < 1e-6


def test_processes_hold_one_set_although_their_features_differ(seen: dict[str, list[Any]]) -> None:
    first, second = seen["drift"]
    assert first == second
    assert len(first[1]) == 2


@pytest.mark.parametrize("case", ["slow_decoding", "slow_callback"])
def test_wait_for_a_slow_process_outlasts_the_groups_timeout(case: str, seen: dict[str, list[Any]]) -> None:
    assert seen[case] in ([3, 3], [6, 6])


def test_missing_experts_are_shared_out_by_what_is_missing(seen: dict[str, list[Any]]) -> None:
    assert seen["slow_experts"] == [["0000"], ["0002"]]


def test_failure_in_one_process_raises_the_same_error_in_all(seen: dict[str, list[Any]]) -> None:
    assert seen["failing_read"] == ["ValueError: row 3 cannot be decoded"] * 2
    assert seen["failing_other_read"] == ["OSError: this disk is gone"] * 2
    assert seen["failing_checkpoint"] == ["ValueError: no such type"] * 2
    assert seen["failing_callback"] == ["RuntimeError: Unsendable: no more", "Unsendable: no more"]


def test_signal_to_one_process_ends_all_after_the_same_step(seen: dict[str, list[Any]], folder: Path) -> None:
    (first_steps, first_error), (second_steps, second_error) = seen["interrupted"]
    assert first_steps == second_steps
    assert first_steps[-1] in (2, 3)
    checkpoint = f"the checkpoint of step {first_steps[-1]} of 4 is in {folder / 'interrupted'}"
    assert first_error.startswith(f"RunInterrupted: interrupted by a signal to another process; {checkpoint}")
    assert second_error.startswith(f"RunInterrupted: interrupted by SIGTERM; {checkpoint}")
    assert [file.name for file in (folder / "interrupted").iterdir()] == [FILE_NAME]


def test_shortage_of_memory_in_one_process_cuts_the_step_of_all(seen: dict[str, list[Any]]) -> None:
    straight = condense(batch_real=8)
    assert straight.recipe.plan["classes_per_chunk"] == 3
    for images, plan in seen["shortage"]:
        torch.testing.assert_close(torch.tensor(images), straight.synthetic.images, atol=1e-5, rtol=0)
        assert plan["classes_per_chunk"] == 1, "half of the plan of two processes"
    for error in seen["shortage_in_exchange"]:
        assert error.startswith("MemoryError: step 0 does not fit into memory"), error


def test_main_process_alone_writes_a_set_that_all_save(seen: dict[str, list[Any]], folder: Path) -> None:
    target = str(folder / "sets" / "random_ipc1")
    assert seen["saving"] == [[5, target, "random"], [0, target, "random"]]


def test_run_goes_on_with_another_number_of_processes(seen: dict[str, list[Any]], folder: Path) -> None:
    straight = condense(steps=6).synthetic.images
    for images, plan in seen["resumed"]:
        torch.testing.assert_close(torch.tensor(images), straight, atol=1e-5, rtol=0)
        assert plan["classes_per_chunk"] == 2, "the plan should be that of two processes"
    resumed = condense(steps=6, checkpoint_dir=folder / "of one process").synthetic.images
    torch.testing.assert_close(resumed, straight, atol=1e-5, rtol=0)
    resumed = condense(checkpoint_dir=folder / "interrupted").synthetic.images
    torch.testing.assert_close(resumed, condense().synthetic.images, atol=1e-5, rtol=0)


def test_checkpoint_that_the_main_process_alone_sees_is_that_of_all(seen: dict[str, list[Any]]) -> None:
    straight = condense().synthetic.images
    for images, steps in seen["resumed_without_a_common_disk"]:
        assert steps == [3, 4]
        torch.testing.assert_close(torch.tensor(images), straight, atol=1e-5, rtol=0)
    first, second = seen["foreign_checkpoint"]
    assert first == second
    assert first.startswith("ValueError: ")
    assert "seed: 0 in the checkpoint, 3 in this run" in first


def test_death_of_one_process_ends_the_others(folder: Path) -> None:
    assert "exit code 3" in (folder / "death.txt").read_text()


@pytest.mark.parametrize("plugin", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_plugin_that_splits_models_raises_runtime_error(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import DistributedType

    accelerator = get_accelerator()
    monkeypatch.setitem(type(accelerator.state)._shared_state, "distributed_type", DistributedType(plugin))
    with pytest.raises(RuntimeError, match=rf"set up for {plugin}, which splits .* Launch plain processes"):
        get_accelerator(accelerator)


def test_single_process_calls_once_and_raises_its_own_error() -> None:
    calls: list[int] = []
    accelerator = get_accelerator()
    assert main_first(accelerator, lambda: calls.append(1)) is None
    assert together(accelerator, lambda: len(calls)) == [1]
    with pytest.raises(ZeroDivisionError):
        together(accelerator, lambda: 1 / 0)


class Two(Exception):
    """An exception that can be pickled, but not made again from what pickle keeps of it."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_exception_that_another_process_could_not_make_again_is_replaced() -> None:
    failure = processes._Outcome(failure=Two("disk", "full")).portable().failure
    assert type(failure) is RuntimeError
    assert str(failure) == "Two: disk full"
    kept = OSError("disk full")
    assert processes._Outcome(failure=kept).portable().failure is kept


def test_numbered_jobs_are_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "together", lambda accelerator, work: [work()])
    ranks = [SimpleNamespace(process_index=rank, num_processes=2) for rank in (0, 1)]
    shares = [processes.shared_out(rank, 5, lambda numbers: dict.fromkeys(numbers, "done")) for rank in ranks]
    assert [list(share) for share in shares] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("is_main", [True, False])
def test_main_process_works_before_the_others(is_main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(processes, "from_main", lambda _, work: (is_main and work(), events.append("the main one has")))
    monkeypatch.setattr(processes, "together", lambda _, work: (work(), events.append("all have")))
    assert processes.main_first(SimpleNamespace(num_processes=2), lambda: events.append("works")) is None
    first = ["works", "the main one has"] if is_main else ["the main one has", "works"]
    assert events == [*first, "all have"]
