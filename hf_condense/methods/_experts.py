"""Expert trajectories: the weights of networks in training on the real set, recorded once and shared by methods."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_condense.base.cache import atomic_file, cache_enabled, cache_folder, content_key
from hf_condense.base.devices import compiling_pays
from hf_condense.base.errors import NonFiniteLossError
from hf_condense.base.processes import broadcast_object, gather_objects
from hf_condense.base.progress import progress_bar
from hf_condense.engine.method import option
from hf_condense.methods._images import ImageConfig
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.factory import activation_bytes
from hf_condense.networks.flat import parameter_vector
from hf_condense.networks.training import TrainingSet, chunk_size, train_network
from hf_condense.networks.training_recipe import TrainingRecipe

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

FORMAT = 1  # of the recorded files; increment when the same options start to give other weights
# For the decision whether to compile: the true number would make experts depend on how many there are.
_USUAL_EXPERTS = 20


@dataclass(frozen=True)
class ExpertConfig(ImageConfig):
    """Options of methods that follow experts: how these are trained and recorded."""

    experts: int = option(20, "Networks that are trained on the real set.", ge=1, tiny=2)
    snapshots: int = option(
        9,
        "Snapshots recorded per expert, including the initial weights. More images per class need longer trajectories.",
        ge=2,
        tiny=6,
    )
    snapshot_every: int | None = option(
        None, "Updates of an expert from snapshot to snapshot; None: an epoch.", ge=1, tiny=2
    )
    lr_expert: float = option(0.01, "Learning rate of the experts.", gt=0)
    momentum_expert: float = option(0.0, "Momentum of the experts, below 1.", ge=0)
    batch_expert: int = option(256, "Real images in an update of an expert.", ge=1)
    augment_expert: str = option(
        "none",
        "Augmentation under which experts are trained: families joined by _, or 'none'; each image draws its own.",
    )
    flatness: float = option(
        0.0,
        "Radius of sharpness-aware training (SAM) of the experts; 0 trains them plainly. Doubles their cost.",
        ge=0,
    )
    surrogate_gap: float = option(0.0, "Weight of the GSAM surrogate-gap term; requires flatness > 0.", ge=0)


@dataclass(frozen=True)
class Experts:
    """Recorded experts, one file each; windows are read when they are asked for, so that memory holds no more.

    Attributes:
        files: One safetensors file an expert: `snapshots`, float32 (S, P).
        snapshots: Snapshots S of an expert.
    """

    files: list[Path]
    snapshots: int

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self.files)

    def window(self, expert: int, start: int, length: int) -> Tensor:
        """Read consecutive snapshots of an expert: float32 (length, P), on the CPU."""
        with safe_open(self.files[expert], framework="pt") as opened:
            found: Tensor = opened.get_slice("snapshots")[start : start + length]
        return found


def recorded_experts(run: Run, config: ExpertConfig) -> Experts:
    """Return the experts of a run, recording those that are not in the cache yet.

    Every process of the run must call this. They share the recording; one that does not see the others' files, for
    want of a common disk, records them itself. An expert's weights depend on its number and the other options alone, so
    that more of them can be asked for later. A recording that was killed goes on with the first that is not whole.
    Without the cache, and for a network that has no name, nothing outlasts the run: each run records its own.

    Args:
        run: The run; its network, seed and source are used.
        config: How many, and how they are trained.

    Raises:
        NonFiniteLossError: If the weights of an expert become NaN or infinite.
        OSError: If they cannot be written.
        RuntimeError: If another process failed in another way.

    Reference:
        Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, section 3.2
        (arXiv:2203.11932).
    """
    every = config.snapshot_every or math.ceil(len(run.source) / config.batch_expert)
    recipe = expert_recipe(config, every, len(run.source))
    compiled = _compiled(run, config, every)
    cached = cache_enabled(run.cache and run.factory.named)
    folder = _cache_folder(run, config, recipe, compiled) if cached else _passing_folder(run)
    files = [folder / f"{e:04}.safetensors" for e in range(config.experts)]
    found = Experts(files, config.snapshots)
    if not cached and run.accelerator.is_local_main_process:
        weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    share = files[run.accelerator.process_index :: run.accelerator.num_processes]
    recorder = _Recorder(run, recipe, config.snapshots, every, compiled)
    for wanted in (share, files):
        _together(run, partial(_record_missing, run, wanted, recorder))
    return found


def check_experts(run: Run, config: ExpertConfig) -> None:
    """Check, before anything is trained, what depends on several options or is another module's to judge.

    Raises:
        ValueError: If an option is out of its range, or the network has frozen parameters.
    """
    frozen = [name for name, p in run.factory.build(run.seed, "template").named_parameters() if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"{len(frozen)} parameters of the network are frozen ({frozen[0]}, ...); experts and students are trained "
            "in all of them. Give a network without frozen ones, or a method that needs no training, such as 'dm'"
        )
    if not math.isfinite(config.lr_expert):
        raise ValueError(f"lr_expert should be finite; got {config.lr_expert!r}")
    if config.momentum_expert >= 1:
        raise ValueError(f"momentum_expert should be below 1; got {config.momentum_expert!r}")
    if config.surrogate_gap and not config.flatness:
        raise ValueError(
            f"surrogate_gap={config.surrogate_gap!r} is part of flat experts; give a flatness, or leave it out"
        )
    try:
        Augmentation.parse(config.augment_expert)
    except ValueError as error:
        raise ValueError(f"augment_expert: {error}") from error


def expert_recipe(config: ExpertConfig, every: int, rows: int) -> TrainingRecipe:
    """Return how experts are trained: plain SGD at a constant rate, for as long as snapshots are taken."""
    updates = (config.snapshots - 1) * every
    return TrainingRecipe(
        "expert",
        epochs=math.ceil(updates / math.ceil(rows / config.batch_expert)),
        batch_size=config.batch_expert,
        lr=config.lr_expert,
        momentum=config.momentum_expert,
        weight_decay=0.0,
        milestones=(),
        augment=None if config.augment_expert in ("", "none") else config.augment_expert,
        flatness=config.flatness,
        surrogate_gap=config.surrogate_gap,
    )


def _compiled(run: Run, config: ExpertConfig, every: int) -> bool:
    """Decide from shapes and counts alone whether experts are trained by compiled code, unless the caller said."""
    if run.compile != "auto":
        return run.compile
    images = _USUAL_EXPERTS * (config.snapshots - 1) * every * config.batch_expert
    each = activation_bytes(run.factory.build(run.seed, "template"), run.source.image_shape)
    return compiling_pays(images * each, run.device)


def _cache_folder(run: Run, config: ExpertConfig, recipe: TrainingRecipe, compiled: bool) -> Path:
    """Return where the experts of these options are kept; how many there are makes no difference."""
    key = content_key(
        format=FORMAT,
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        whitened=run.source.whitening is not None,
        network=run.factory.name,
        seed=run.seed,
        recipe=dataclasses.asdict(recipe),
        snapshots=config.snapshots,
        every=config.snapshot_every,
        compiled=compiled,
        device=run.device.type,
        torch=torch.__version__,
    )
    return cache_folder("experts") / key


def _passing_folder(run: Run) -> Path:
    """Make a folder that dies with the run, the same one for all processes of a machine."""
    name = ""

    def make() -> None:
        nonlocal name
        if run.accelerator.is_main_process:
            name = mkdtemp(prefix="hf_condense-experts-")

    _together(run, make)
    return Path(broadcast_object(run.accelerator, name))  # another machine has no such folder until it writes there


def _together(run: Run, work: Callable[[], None]) -> None:
    """Let every process do its work, and wait for all: if it fails in one, it fails in all.

    Raises:
        NonFiniteLossError: If the weights of an expert of any process were not finite.
        RuntimeError: If the work of another process failed in another way; where it failed, it raises its own error.
    """
    failure: Exception | None = None
    try:
        work()
    except Exception as error:
        failure = error
    own = None
    if failure is not None:
        own = _Failure(type(failure).__name__, str(failure), isinstance(failure, NonFiniteLossError))
    reports = [report for report in gather_objects(run.accelerator, own) if report is not None]
    if failure is not None:
        raise failure
    if reports:
        raise reports[0].error()


@dataclass(frozen=True)
class _Failure:
    """What the other processes are told of an error."""

    kind: str
    message: str
    diverged: bool

    def error(self) -> Exception:
        """Return the error to raise in a process that did not fail itself."""
        if self.diverged:
            return NonFiniteLossError(self.message)
        return RuntimeError(f"recording experts failed in another process, by {self.kind}: {self.message}")


def _is_whole(file: Path, shape: tuple[int, int]) -> bool:
    """Tell whether a recorded file is there, and neither cut off nor of another shape."""
    try:
        with safe_open(file, framework="pt") as opened:
            return tuple(opened.get_slice("snapshots").get_shape()) == shape
    except (OSError, SafetensorError):
        return False


def _record_missing(run: Run, files: list[Path], recorder: _Recorder) -> None:
    """Record those experts whose files are not there, or are damaged."""
    missing = [file for file in files if not _is_whole(file, recorder.shape)]
    if not missing:
        return
    total = len(missing) * recorder.updates
    with progress_bar(total, "Recording experts", "update", shown=run.shows_progress) as bar:
        for file in missing:
            bar.set_postfix_str(f"expert {int(file.stem) + 1}", refresh=False)
            if not _is_whole(file, recorder.shape):  # another run may have recorded it in the meantime
                recorder.record(file, bar.update)
    size = sum(file.stat().st_size for file in missing) / 1e6
    logger.info("recorded %d experts in %s (%.1f MB)", len(missing), files[0].parent, size)


@dataclass
class _Recorder:
    """Trains experts and writes down their weights.

    Attributes:
        run: The run.
        recipe: How they are trained.
        snapshots: Snapshots of an expert.
        every: Updates from snapshot to snapshot.
        compiled: Whether compiled code trains them.
    """

    run: Run
    recipe: TrainingRecipe
    snapshots: int
    every: int
    compiled: bool

    @property
    def updates(self) -> int:
        """Updates of an expert."""
        return (self.snapshots - 1) * self.every

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Shape (S, P) of what is written."""
        return self.snapshots, sum(p.numel() for p in self.net.parameters())

    @cached_property
    def net(self) -> nn.Module:
        """One module, whose weights are overwritten, so that code is generated once."""
        return self.run.factory.build(self.run.seed, "template").to(self.run.device)

    @cached_property
    def trainee(self) -> nn.Module:
        """The module as it is trained."""
        compiled: Any = torch.compile(self.net, dynamic=False) if self.compiled else self.net
        trainee: nn.Module = compiled
        return trainee

    @cached_property
    def whole(self) -> TrainingSet:
        """The real set."""
        return TrainingSet(self.run.source, self.run.source.labels, self.run.num_classes)

    def record(self, file: Path, advance: Callable[[], object]) -> None:
        """Train the expert whose number is the file's name, and write its snapshots."""
        expert = int(file.stem)
        self.net.load_state_dict(self.run.factory.build(self.run.seed, "expert", expert).state_dict())
        snapshots = torch.empty(self.shape)
        snapshots[0] = parameter_vector(self.net)
        done = 0

        def note() -> None:
            nonlocal done
            done += 1
            if done % self.every == 0:
                snapshots[done // self.every] = vector = parameter_vector(self.net)
                if not bool(torch.isfinite(vector).all()):
                    raise NonFiniteLossError(
                        f"the weights of expert {expert} are not finite after {done} updates at a learning rate of "
                        f"{self.recipe.lr}; a smaller lr_expert usually helps"
                    )
            advance()

        batch = min(self.recipe.batch_size, len(self.whole))
        with torch.enable_grad():
            train_network(
                self.trainee,
                self.whole,
                self.recipe,
                self.run.seed,
                "expert",
                expert,
                max_updates=self.updates,
                chunk=chunk_size(self.net, self.run.source.image_shape, batch),
                on_update=note,
            )
        with atomic_file(file) as work:
            save_file({"snapshots": snapshots}, work)
