"""Runs that are killed at random moments and run again: `python -m tests.support.kills <kills> <folder> [<seed>]`.

Each kill is one line on stdout, as JSON: the method, the signal, the step of the checkpoint that the killed run left
(null: none), and whether the run that went on from there gave the bits of a run that nobody killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_condense.api import condense_dataset
from hf_condense.base.errors import RunInterrupted
from hf_condense.engine.checkpoint import FILE_NAME
from hf_condense.testing import toy_dataset

DS = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPERTS = {"experts": 3, "snapshots": 4, "snapshot_every": 2, "student_steps": 4, "expert_span": 2}
POOL = {"pool_size": 3, "pool_updates": 6, "draws": 3, "frequencies": 16}
METHODS: dict[str, dict[str, Any]] = {
    "dm": {"steps": 60, "batch_real": 6, "ipm": 3},
    "dc": {"steps": 20, "batch_real": 6, "outer_loop": 4, "inner_loop": 1},
    "esp": {"steps": 40, "average": 0.5, "soft_labels": "learned", "teacher_updates": 5, **EXPERTS},
    "ncfm": {"steps": 40, "batch_real": 6, "soft_labels": "teacher", "teacher_updates": 5, **POOL},
}


def run(method: str, folder: Path) -> None:
    """Condense with a cache and a checkpoint of its own in a folder, and write the result there."""
    datasets.config.HF_CACHE_HOME = str(folder / "cache")
    small: Any = condense_dataset(
        DS,
        method,
        2,
        label_column="label",
        network="convnet-w8-d1",
        compile=False,
        progress=False,
        checkpoint_dir=folder / "checkpoint",
        checkpoint_every=3,
        **METHODS[method],
    )
    save_file(small.synthetic.all(), folder / "result.safetensors")


def fork(method: str, folder: Path) -> int:
    """Start a run in a process of its own, which has imported everything already, and return the process's number."""
    folder.mkdir(parents=True, exist_ok=True)
    if process := os.fork():
        return process
    code = 1
    try:
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        run(method, folder)
        code = 0
    except RunInterrupted as error:
        code = 128 + (error.signal or 0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """Wait for a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def checkpoint_step(folder: Path) -> int | None:
    """Return the step of the checkpoint in a folder, or None without one."""
    file = folder / "checkpoint" / FILE_NAME
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        step: int = json.loads(opened.metadata()["hf_condense_checkpoint"])["step"]
    return step


def kill(method: str, number: signal.Signals, in_steps: bool, after: float, folder: Path) -> dict[str, Any] | None:
    """Kill a run and let it go on.

    Args:
        method: The method.
        number: The signal.
        in_steps: Whether to wait for the first checkpoint, so that the signal hits steps or checkpoints.
        after: Seconds after that, or after the start.
        folder: Folder of the run.

    Returns:
        What became of it, or None if the run was over before.
    """
    shutil.rmtree(folder, ignore_errors=True)
    process = fork(method, folder)
    while in_steps and checkpoint_step(folder) is None and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.002)
    time.sleep(after)
    os.kill(process, number)
    code = wait(process)
    if code == 0:
        return None
    seen = {"method": method, "signal": number.name, "code": code, "checkpoint": checkpoint_step(folder)}
    again = wait(fork(method, folder))
    files = sorted(file.name for file in (folder / "checkpoint").iterdir())
    return {**seen, "again": again, "files": files}


def same(first: Path, second: Path) -> bool:
    """Return whether two results have the same bits."""
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def main(kills: int, folder: Path, seed: int) -> None:
    """Kill runs of all methods in turn, each with its signal and at its moment."""
    torch.set_num_threads(1)
    draw, seconds = random.Random(seed), {}
    names = list(METHODS)[:kills]
    for method in names:
        started = time.perf_counter()
        assert wait(fork(method, folder / "straight" / method)) == 0, f"{method} failed"
        seconds[method] = time.perf_counter() - started
    done = 0
    while done < kills:
        method, number = names[done % len(names)], SIGNALS[(done + done // len(names)) % len(SIGNALS)]
        # Of two kills, one hits what comes before the steps, and one the steps.
        in_steps = bool(done // len(names) % 2)
        after = draw.uniform(0, seconds[method] / 4 if in_steps else seconds[method])
        seen = kill(method, number, in_steps, after, folder / "killed")
        if seen is None:
            seconds[method] *= 0.9
            continue
        results = (place / "result.safetensors" for place in (folder / "killed", folder / "straight" / method))
        line = json.dumps({**seen, "equal": seen["again"] == 0 and same(*results)})
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        done += 1


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
