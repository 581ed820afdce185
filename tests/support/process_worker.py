"""The program of tests/engine/test_processes.py: two processes, started as Accelerate's launchers do, and what can go
wrong in one of them: `python -m tests.support.process_worker <folder>`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from torch import nn
from torch.nn.utils import parameters_to_vector

from hf_condense import api
from hf_condense.base.errors import RunInterrupted
from hf_condense.base.processes import from_main
from hf_condense.condensed import folder as sets_folder
from hf_condense.condensed.loading import load_condensed
from hf_condense.engine import checkpoint
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.methods import _features, _recordings
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.testing import toy_dataset

DS = toy_dataset(names=("cat", "dog", "eel")).remove_columns("note")
EXPERTS = {"experts": 4, "snapshots": 3, "snapshot_every": 1, "student_steps": 2, "expert_span": 1}
GROUP_SECONDS = 2  # after which the group of the processes gives up
LONG_SECONDS = 3  # that the main process works while the others wait


def condense(method: str = "dm", ipc: int = 2, **options: Any) -> Any:
    """Condense a toy dataset, in one or several processes."""
    settings = {"label_column": "label", "network": "convnet-w4-d1", "compile": False, "progress": False}
    if method == "dm":
        settings.update(steps=4, batch_real=4)
    return api.condense_dataset(DS, method, ipc, **{**settings, **options})


class Cases:
    """The cases. Each returns what it has seen, as a JSON value.

    Args:
        rank: Number of this process.
        accelerator: The accelerator that the runs are given.
        folder: Folder of the results.
        patch: Changes to the library, which are undone after each case.
    """

    def __init__(self, rank: int, accelerator: Accelerator, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.rank, self.accelerator, self.folder, self.patch = rank, accelerator, folder, patch

    def condense(self, method: str = "dm", ipc: int = 2, **options: Any) -> Any:
        return condense(method, ipc, accelerator=self.accelerator, **options)

    def drift(self) -> Any:
        """Features differ from process to process."""
        embedded = _features._embedded

        def drifted(run: Run, *options: int) -> torch.Tensor:
            embeddings = embedded(run, *options)
            noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(self.rank))
            return embeddings + embeddings.std() * noise

        self.patch.setattr(_features, "_embedded", drifted)
        sums: list[float] = []
        options = {"feature_updates": 1, "cache": False}
        rows = self.condense("herding", 3, **options).recipe.rows
        note = [lambda run, done, loss: sums.append(float(run.synthetic.stored["images"].detach().double().sum()))]
        self.condense(init="herding", steps=2, cache=False, callbacks=note)
        return rows, sums

    def slow_decoding(self) -> Any:
        """The main process decodes for longer than the group waits."""
        self._slow(api, "load_source")
        return len(self.condense("random", 1))

    def slow_experts(self) -> Any:
        """The experts that are missing are those whose numbers fall to one process; each takes long."""
        self.condense("mtt", 1, steps=1, seed=7, **EXPERTS)
        folder = max(_recordings.cache_folder("experts").iterdir(), key=lambda path: path.stat().st_mtime)
        self.accelerator.wait_for_everyone()
        if self.rank == 0:
            for number in (0, 2):
                (folder / f"{number:04}.safetensors").unlink()
        self.accelerator.wait_for_everyone()
        recorded: list[str] = []
        record = _recordings._Recorder.record

        def slow(recorder: _recordings._Recorder, file: Path, advance: Callable[[], object]) -> None:
            recorded.append(file.stem)
            time.sleep(LONG_SECONDS if self.rank == 0 else 0)
            record(recorder, file, advance)

        self.patch.setattr(_recordings._Recorder, "record", slow)
        self.condense("mtt", 1, steps=1, seed=7, **EXPERTS)
        return recorded

    def slow_callback(self) -> Any:
        """A callback takes long in the main process alone."""
        wait = [lambda run, done, loss: time.sleep(LONG_SECONDS * (self.rank == 0 and done == 1))]
        return len(self.condense(steps=2, callbacks=wait))

    def failing_read(self) -> Any:
        """The main process cannot read the dataset."""
        self._failing_in(0, api, "load_source", ValueError("row 3 cannot be decoded"))
        return self._error()

    def failing_other_read(self) -> Any:
        """A process other than the main one cannot read the dataset."""
        self._failing_in(1, api, "load_source", OSError("this disk is gone"))
        return self._error()

    def failing_checkpoint(self) -> Any:
        """The main process cannot write its checkpoint."""
        self._failing_in(0, checkpoint, "save", ValueError("no such type"))
        return self._error(checkpoint_dir=self.folder / "failing", checkpoint_every=2)

    def failing_callback(self) -> Any:
        """A callback fails in one process, with an exception that cannot be sent to another one."""

        class Unsendable(Exception):
            pass

        def fail(run: Run, done: int, loss: float) -> None:
            if self.rank == 1 and done == 2:
                raise Unsendable("no more")

        return self._error(callbacks=[fail])

    def interrupted(self) -> Any:
        """A signal reaches one process alone."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        steps: list[int] = []

        def kill(run: Run, done: int, loss: float) -> None:
            steps.append(done)
            if self.rank == 1 and done == 2:
                signal.raise_signal(signal.SIGTERM)

        error = self._error(checkpoint_dir=self.folder / "interrupted", callbacks=[kill])
        return steps, error

    def shortage(self) -> Any:
        """The memory of one process is not enough for a step: all repeat it, cut smaller."""
        at, calls = SyntheticSet.at, [0]

        def at_or_fail(synthetic: SyntheticSet, rows: torch.Tensor | None) -> Any:
            calls[0] += 1
            if self.rank == 1 and calls[0] == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return at(synthetic, rows)

        self.patch.setattr(SyntheticSet, "at", at_or_fail)
        small = self.condense(batch_real=8)
        return small.synthetic.images.tolist(), small.recipe.plan

    def shortage_in_exchange(self) -> Any:
        """The memory of both is not enough for a step whose losses exchange values: no process may wait for another."""

        def fail(synthetic: SyntheticSet, rows: torch.Tensor | None) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        options = {"method": "esp", "ipc": 1, "steps": 1, **EXPERTS}
        self.condense(**options)  # the experts are there
        self.patch.setattr(SyntheticSet, "at", fail)
        return self._error(**options)

    def saving(self) -> Any:
        """Every process saves the set that it got."""
        written: list[str] = []
        write = sets_folder.write_files

        def watched(place: Path, files: dict[str, bytes], **options: Any) -> None:
            written.extend(files)
            write(place, files, **options)

        small = self.condense("random", 1)
        self.patch.setattr(sets_folder, "write_files", watched)
        target = small.save_condensed(self.folder / "sets")
        from_main(self.accelerator, lambda: None)  # the others wait until the main process has written
        return len(written), str(target), load_condensed(target).recipe.method

    def resumed(self) -> Any:
        """A run of one process goes on in two."""
        small = self.condense(steps=6, checkpoint_dir=self.folder / "of one process")
        return small.synthetic.images.tolist(), small.recipe.plan

    def resumed_without_a_common_disk(self) -> Any:
        """Each process sees a folder of its own, so that only the main one finds the checkpoint that it has written."""
        steps: list[int] = []
        options = {"checkpoint_dir": self.folder / f"disk of {self.rank}"}
        self.condense(steps=2, **options)
        small = self.condense(callbacks=[lambda run, done, loss: steps.append(done)], **options)
        return small.synthetic.images.tolist(), steps

    def foreign_checkpoint(self) -> Any:
        """The main process alone finds a checkpoint, of another run."""
        options = {"checkpoint_dir": self.folder / f"foreign disk of {self.rank}"}
        self.condense(steps=2, **options)
        return self._error(seed=3, **options)

    def frozen(self) -> Any:
        """Processes share the batches of a network whose first layer is frozen and would decay if it had a gradient."""
        data = TrainingSet(torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3, 3)
        recipe = TrainingRecipe("decaying", epochs=3, batch_size=8, lr=0.1, weight_decay=0.5)
        trained, moved = [], []
        for accelerator in (None, self.accelerator):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 3))
            first = network[1].weight.clone()
            train_network(network, data, recipe, "a", chunk=4, accelerator=accelerator)
            trained.append(parameters_to_vector(network.parameters()))
            moved.append(not torch.equal(network[1].weight, first))
        alone, shared = trained
        return moved, float((alone - shared).abs().max())

    def _slow(self, module: Any, name: str) -> None:
        """Let a function take long in the main process."""
        original = getattr(module, name)

        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(LONG_SECONDS * (self.rank == 0))
            return original(*args, **options)

        self.patch.setattr(module, name, slow)

    def _failing_in(self, rank: int, module: Any, name: str, error: Exception) -> None:
        """Let a function fail in one process."""
        original = getattr(module, name)

        def fail(*args: Any, **options: Any) -> Any:
            if self.rank == rank:
                raise error
            return original(*args, **options)

        self.patch.setattr(module, name, fail)

    def _error(self, **options: Any) -> str:
        try:
            self.condense(**options)
        except (Exception, RunInterrupted) as error:
            return f"{type(error).__name__}: {error}"
        return "no error"


NAMES = [name for name in vars(Cases) if not name.startswith("_") and name != "condense"]


def run_cases(folder: Path) -> None:
    """Run every case, in each process."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    world = torch.distributed.group.WORLD
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=GROUP_SECONDS), world)
    results = {}
    for name in NAMES:
        with pytest.MonkeyPatch.context() as patch:
            results[name] = getattr(Cases(rank, accelerator, folder, patch), name)()
    (folder / f"{rank}.json").write_text(json.dumps(results))


def run_until_one_dies(folder: Path) -> None:
    """Run until one process ends without a word."""

    def die(run: Run, done: int, loss: float) -> None:
        if run.accelerator.process_index == 1 and done == 2:
            os._exit(3)

    condense(steps=10**6, callbacks=[die])


if __name__ == "__main__":
    debug_launcher(run_cases, (Path(sys.argv[1]),))
    try:
        debug_launcher(run_until_one_dies, (Path(sys.argv[1]),))
    except Exception as error:
        (Path(sys.argv[1]) / "death.txt").write_text(str(error))
