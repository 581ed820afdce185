"""Recorded networks: their weights before, during and after training on the real set, on disk. Methods share them."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hf_condense.base.cache import cache_enabled, content_key
from hf_condense.base.compiled_code import compiled_if
from hf_condense.base.devices import compiling_pays, device_facts
from hf_condense.base.errors import NonFiniteLossError, plain_text
from hf_condense.base.files import write_tensors
from hf_condense.base.paths import cache_folder
from hf_condense.base.processes import from_main, together
from hf_condense.base.progress import progress_bar
from hf_condense.networks.flat import copy_state, parameter_vector
from hf_condense.networks.network_facts import parameter_count
from hf_condense.networks.training import chunk_size, train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

CACHE_VERSION = 1  # increment when the same options start to give other weights
# The decision whether to compile assumes this number of networks. With the true one, weights would depend on it.
_USUAL_NUMBER = 20


@dataclass(frozen=True)
class Recordings:
    """Recorded networks, one file each. Only the windows that are asked for are read into memory.

    Attributes:
        files: One safetensors file per network, with the tensor `snapshots`, float32 (S, P).
        snapshots: Number S of snapshots per network.
    """

    files: list[Path]
    snapshots: int

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.files)

    def window(self, number: int, start: int, length: int) -> Tensor:
        """Read consecutive snapshots of a network: float32 (length, P), on the CPU."""
        with safe_open(self.files[number], framework="pt") as opened:
            snapshots: Tensor = opened.get_slice("snapshots")[start : start + length]
        return snapshots


@dataclass(frozen=True)
class Training:
    """How networks are trained whose weights are recorded.

    Attributes:
        noun: What messages call one of the networks.
        rate_option: Option that gives their learning rate, for the message when a training diverges.
        recipe: The training recipe.
        count: Number of networks.
        snapshots: Snapshots per network, including the initial weights, >= 2.
        every: Updates between two snapshots.
        every_key: What stands for `every` in the cache key: the option as it was given.
    """

    noun: str
    rate_option: str
    recipe: TrainingRecipe
    count: int
    snapshots: int
    every: int
    every_key: int | None

    @property
    def updates(self) -> int:
        """Number of training updates of a network."""
        return (self.snapshots - 1) * self.every


def recorded_networks(run: Run, training: Training) -> Recordings:
    """Return networks that were trained on the real set; record those that are not in the cache yet.

    Every process of the run must call this function. The processes share the recording. A process that does not see the
    files of the others, because they have no common disk, records those networks itself. The weights of a network
    depend on its number and the options, but not on how many networks there are, so more can be added later. After a
    kill, the recording continues with the first network that is missing or damaged. Without the cache, and for a
    network without a name, each run records its own and deletes them at its end. Networks that cannot be written to the
    cache are treated in the same way, with a warning.

    Args:
        run: The run, which gives network, seed and source.
        training: How many networks there are, and how they are trained.

    Raises:
        NonFiniteLossError: If the weights of a network become NaN or infinite.
        OSError: If a file can be written neither to the cache nor to the folder for temporary files.
    """
    compiled = _compiled(run, training)
    recorder = _Recorder(run, training, compiled)
    names = [f"{number:04}.safetensors" for number in range(training.count)]
    in_cache: list[Path] = []
    if cache_enabled(run.cache and run.factory.named):
        folder = _cache_folder(run, training, compiled)
        files = [folder / name for name in names]
        failure = _record_all(run, files, recorder)
        if failure is None:
            return Recordings(files, training.snapshots)
        # The disk is full, or the cache belongs to somebody else.
        logger.warning("%s. The %ss are used by this run, but not cached", failure, training.noun)
        run.interrupts.remains = f"{training.noun}s were not kept, because they could not be cached"
        in_cache = _whole(run, files, recorder)
    folder = _temporary_folder(run)
    kept = {file.name: file for file in in_cache}
    recordings = Recordings([kept.get(name, folder / name) for name in names], training.snapshots)
    if run.accelerator.is_local_main_process:
        weakref.finalize(recordings, shutil.rmtree, folder, ignore_errors=True)
    if (failure := _record_all(run, recordings.files, recorder)) is not None:
        raise OSError(failure)
    return recordings


def _record_all(run: Run, files: list[Path], recorder: _Recorder) -> str | None:
    """Record the networks that are missing or damaged, divided among the processes.

    Returns:
        Why a process cannot write a file, the same in all processes; None if all files are written.
    """
    # The main process says what is missing, because a list of each process's own would change while others record.
    missing = from_main(run.accelerator, partial(_missing, files, recorder.shape))
    share = missing[run.accelerator.process_index :: run.accelerator.num_processes]
    # In the second pass, a process without a common disk records what it does not see.
    for needed in (share, files):
        failures = together(run.accelerator, partial(_failure_to_write, run, needed, recorder))
        if any(failures):
            return next(filter(None, failures))
    return None


def _failure_to_write(run: Run, files: list[Path], recorder: _Recorder) -> str | None:
    """Record the networks whose files are missing or damaged, and return why one cannot be written, or None."""
    try:
        _record_missing(run, files, recorder)
    except OSError as error:
        return plain_text(error)
    return None


def _whole(run: Run, files: list[Path], recorder: _Recorder) -> list[Path]:
    """Return the files that every process sees whole."""
    missing = {file for seen in together(run.accelerator, partial(_missing, files, recorder.shape)) for file in seen}
    return [file for file in files if file not in missing]


def _compiled(run: Run, training: Training) -> bool:
    """Return whether compiled code trains the networks: as the caller says, else by a rule from shapes and counts."""
    if run.compile != "auto":
        return run.compile
    images = _USUAL_NUMBER * training.updates * training.recipe.batch_size
    return compiling_pays(images * run.network_facts.activation_bytes, run.device)


def _cache_folder(run: Run, training: Training, compiled: bool) -> Path:
    """Return the cache folder of the networks with these options. Their number is not part of the key."""
    key = content_key(
        format=CACHE_VERSION,
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        whitened=run.source.whitening is not None,
        network=run.factory.name,
        seed=run.seed,
        recipe=dataclasses.asdict(training.recipe),
        snapshots=training.snapshots,
        every=training.every_key,
        compiled=compiled,
        torch=torch.__version__,
        **device_facts(run.device),
    )
    return cache_folder("experts") / key


def _temporary_folder(run: Run) -> Path:
    """Make a folder for this run alone; all processes of a machine get the same one."""
    # Another machine makes the folder when it writes.
    return Path(from_main(run.accelerator, partial(mkdtemp, prefix="hf_condense-experts-")))


def _is_whole(file: Path, shape: tuple[int, int]) -> bool:
    """Return whether a recorded file exists, is not cut off and has the right shape."""
    try:
        with safe_open(file, framework="pt") as opened:
            return tuple(opened.get_slice("snapshots").get_shape()) == shape
    except (OSError, SafetensorError):
        return False


def _missing(files: list[Path], shape: tuple[int, int]) -> list[Path]:
    """Return the files that are missing or damaged."""
    return [file for file in files if not _is_whole(file, shape)]


def _record_missing(run: Run, files: list[Path], recorder: _Recorder) -> None:
    """Record the networks whose files are missing or damaged."""
    missing = _missing(files, recorder.shape)
    if not missing:
        return
    noun, total = recorder.training.noun, len(missing) * recorder.training.updates
    with progress_bar(total, f"Recording {noun}s", "update", shown=run.shows_progress) as bar:
        for file in missing:
            bar.set_postfix_str(f"{noun} {int(file.stem) + 1}", refresh=False)
            if not _is_whole(file, recorder.shape):  # another run may have recorded it in the meantime
                recorder.record(file, bar.update)
    size = sum(file.stat().st_size for file in missing) / 1e6
    logger.info("recorded %d %ss in %s (%.1f MB)", len(missing), noun, files[0].parent, size)


@dataclass
class _Recorder:
    """Trains networks and writes their snapshots.

    Attributes:
        run: The run.
        training: How the networks are trained.
        compiled: Whether compiled code trains them.
    """

    run: Run
    training: Training
    compiled: bool
    _unwritten: dict[int, Tensor] = dataclasses.field(default_factory=dict, init=False)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Shape (S, P) of the snapshots of a network."""
        return self.training.snapshots, parameter_count(self.net)

    @cached_property
    def net(self) -> nn.Module:
        """One module for all networks, so that code is compiled once. Each overwrites its weights."""
        return self.run.factory.build(self.run.seed, "template").to(self.run.device)

    @cached_property
    def trainee(self) -> nn.Module:
        """The module in the form that is trained, compiled or not."""
        return compiled_if(self.compiled, self.net)

    @cached_property
    def whole(self) -> TrainingSet:
        """The whole real set."""
        return TrainingSet(self.run.source, self.run.source.labels, self.run.num_classes)

    def record(self, file: Path, advance: Callable[[], object]) -> None:
        """Train the network whose number is the name of the file, and write its snapshots.

        If they cannot be written, they are kept for the next call, which may have a file in another place.
        """
        number = int(file.stem)
        if number not in self._unwritten:
            self._unwritten[number] = self._snapshots(number, advance)
        write_tensors(file, {"snapshots": self._unwritten[number]})
        del self._unwritten[number]

    def _snapshots(self, number: int, advance: Callable[[], object]) -> Tensor:
        """Train a network and return its snapshots (S, P)."""
        training = self.training
        copy_state(self.net, self.run.factory.fresh(self.run.seed, "expert", number))
        snapshots = torch.empty(self.shape)
        snapshots[0] = parameter_vector(self.net)
        done = 0

        def take_snapshot() -> None:
            nonlocal done
            done += 1
            if done % training.every == 0:
                snapshots[done // training.every] = vector = parameter_vector(self.net)
                if not bool(torch.isfinite(vector).all()):
                    raise NonFiniteLossError(
                        f"the weights of {training.noun} {number} are not finite after {done} updates at a learning "
                        f"rate of {training.recipe.lr}; a smaller {training.rate_option} usually helps"
                    )
            advance()

        batch = min(training.recipe.batch_size, len(self.whole))
        with torch.enable_grad():
            train_network(
                self.trainee,
                self.whole,
                training.recipe,
                self.run.seed,
                "expert",
                number,
                max_updates=training.updates,
                chunk=chunk_size(self.net, self.run.source.image_shape, batch),
                on_update=take_snapshot,
            )
        return snapshots
