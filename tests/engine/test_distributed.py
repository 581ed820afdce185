"""One and two processes (gloo, on CPUs) give the same images; every process returns them; only the main one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_condense import CondensedDataset
from hf_condense.base.processes import get_accelerator
from hf_condense.engine.checkpoint import FILE_NAME
from hf_condense.engine.run import Run
from tests.support.distributed_worker import FORMS, SCENARIOS, SHARED_INNER_LOOPS, run_scenario

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests processes on CPUs, but there is a CUDA device")


def launch(case: str, folder: Path) -> None:
    """Run the worker in two processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "tests.support.distributed_worker",
        case,
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results of two processes for every scenario."""
    folder = tmp_path_factory.mktemp("two processes")
    launch("condense", folder)
    return folder


def tensors(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def images(folder: Path, name: str, rank: int) -> torch.Tensor:
    return tensors(folder, name, rank)["images"]


def facts(folder: Path, name: str, rank: int) -> dict[str, Any]:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@cache
def alone(name: str) -> tuple[CondensedDataset, list[float]]:
    """Run a scenario in this process; return also by how much each learned tensor moves after the first update."""
    states: list[list[torch.Tensor]] = []

    def observe(run: Run, done: int, loss: float) -> None:
        states.append([tensor.detach().clone() for tensor in run.synthetic.learned().values()])

    callbacks = {} if name == "composed" else {"callbacks": [observe]}
    small = run_scenario(name, **callbacks)
    moves = [] if not states else zip(states[0], states[-1], strict=True)
    return small, [float((last - first).abs().max()) for first, last in moves]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_agree_with_one(name: str, folder: Path) -> None:
    small, _ = alone(name)
    assert small.recipe.runtime["num_processes"] == 1
    assert facts(folder, name, 0)["recipe"]["runtime"]["num_processes"] == 2
    of_two_processes = tensors(folder, name, 0)
    for stored_name, tensor in small.synthetic.stored.items():
        torch.testing.assert_close(of_two_processes.pop(stored_name), tensor, atol=2e-5, rtol=0)
    # Soft labels are logits, which can be above ten, so these tensors get a relative tolerance as well.
    others = {"labels": small.synthetic.labels, **small.synthetic.optional()}
    torch.testing.assert_close(of_two_processes, others, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "composed"])
def test_learned_tensors_move_by_more_than_the_processes_may_differ(name: str) -> None:
    assert min(alone(name)[1]) > 1e-3


@pytest.mark.parametrize("name", SHARED_INNER_LOOPS)
def test_processes_share_the_batches_of_the_inner_loop(name: str, folder: Path) -> None:
    shared = [int((folder / f"{name}-{rank}.txt").read_text()) for rank in (0, 1)]
    assert shared[0] == shared[1] > 0


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_process_returns_the_same_set(name: str, folder: Path) -> None:
    torch.testing.assert_close(tensors(folder, name, 0), tensors(folder, name, 1), atol=0, rtol=0)
    first, second = facts(folder, name, 0), facts(folder, name, 1)
    assert first["process"] != second["process"]
    assert first["rows"] == second["rows"]
    for key in ("runtime", "created_at"):
        first["recipe"].pop(key), second["recipe"].pop(key)
    assert first["recipe"] == second["recipe"]


def test_chunks_share_the_classes_between_processes(folder: Path) -> None:
    chunks = {name: facts(folder, name, 0)["recipe"]["plan"].get("classes_per_chunk") for name in SCENARIOS}
    assert {chunks.pop(name) for name in FORMS} == {1}
    assert {chunks.pop(name) for name in SHARED_INNER_LOOPS} == {3}
    assert chunks == {
        "even": 2,
        "uneven": 3,
        "one class per chunk": 1,
        "memory differs": 1,
        "more processes than chunks": 3,
        "dropout": 1,
        "dropout in gradients": 1,
        "inner loop with batch norm": 3,
        "patches": 2,
        "gradients": 3,
        "learned labels": 2,
        "moments": 3,
        "frequencies": 3,
        "networks": 1,
        "networks and learned labels": 1,
        "frequencies and batches of rows": 3,
        "gradients of batches of rows": 1,
        "a pool": 3,
        "characteristic functions": 1,
        "a pool with more processes than chunks": 3,
        "labels and starts of experts": 2,
        "training on real rows": 3,
        "early teacher": 2,
        "composed": None,
        "another storage form": 3,
        "trajectories": 3,
        "truncated trajectories": 1,
        "a subspace": 3,
        "a subspace, one class per chunk": 1,
        "a point": 3,
        "a rollout": 2,
        "trajectories, labels and whitening": 2,
        "mtt with more processes than chunks": 3,
        "tesla with more processes than chunks": 3,
        "esp with more processes than chunks": 3,
    }


def test_resumed_run_of_two_processes_equals_an_uninterrupted_one(folder: Path) -> None:
    assert torch.equal(images(folder, "resumed", 0), images(folder, "uneven", 0))
    assert torch.equal(images(folder, "resumed", 1), images(folder, "uneven", 0))


def test_only_the_main_process_writes(folder: Path) -> None:
    assert [file.name for file in (folder / "checkpoints of process 0").iterdir()] == [FILE_NAME]
    assert not (folder / "checkpoints of process 1").exists()


def test_nan_on_one_process_ends_all_processes(folder: Path) -> None:
    for rank in (0, 1):
        assert "not finite at step 2" in (folder / f"spoilt-{rank}.txt").read_text()


def test_recording_that_fails_on_one_process_ends_all_processes(folder: Path) -> None:
    diverging, disk_full = (
        [(folder / f"{name}-{rank}.txt").read_text() for rank in (0, 1)] for name in ("NonFiniteLossError", "OSError")
    )
    assert diverging == ["NonFiniteLossError: the weights of an expert of process 1 are not finite"] * 2
    assert disk_full == ["OSError: disk full"] * 2


def test_processes_that_do_not_know_of_each_other_raise_runtime_error(tmp_path: Path) -> None:
    launch("separate", tmp_path)
    for file in ("joined-0", "joined-1", "given-0", "given-1"):
        message = (tmp_path / f"{file}.txt").read_text()
        if message == "no error; 2 processes":
            continue  # with an older Accelerate, the processes find each other
        assert "2 processes were launched, but Accelerate sees 1" in message
        assert "Accelerator(cpu=True)" in message


def test_precision_that_needs_scaled_losses_raises_runtime_error() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(RuntimeError, match=r"fp16.* scaled.*; use 'bf16' or 'no'"):
            get_accelerator(Accelerator(cpu=True, mixed_precision="fp16"))
        with pytest.raises(RuntimeError, match="fp16"):
            get_accelerator()  # takes the existing one
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert get_accelerator().mixed_precision == "no"
