"""Shared parts of methods that train a student on the synthetic set and compare it with an expert's trajectory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_condense.base.checks import one_of
from hf_condense.base.devices import to_device
from hf_condense.base.processes import broadcast, broadcast_object, reduce
from hf_condense.base.rng import seeded_globals
from hf_condense.condensed.decoders.dct import FEW_IMAGES
from hf_condense.engine.forms import few_images, form_values
from hf_condense.engine.initial import repeated, start_names
from hf_condense.engine.method import Loss
from hf_condense.engine.options import option
from hf_condense.engine.task import Task
from hf_condense.engine.teacher import Labels, network_logits, teacher_facts
from hf_condense.methods._experts import ExpertConfig, check_experts, recorded_experts, snapshot_interval
from hf_condense.methods._images import ImageMethod, LearnedLabelConfig, check_two_classes, cross_entropy
from hf_condense.methods._recordings import Recordings
from hf_condense.networks.augment import ALL_FAMILIES, Transform
from hf_condense.networks.flat import FlatNetwork
from hf_condense.networks.instance_norm import use_closed_forms
from hf_condense.networks.training import chunk_size

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

logger = logging.getLogger("hf_condense")

_CPU = torch.device("cpu")
_CORRECT = "correct"  # the start from rows that experts classify right
_MANY_ROWS = 8  # of a storage form, for each image of the budget
_WALK = 256  # rows of a class that an expert classifies at a time
_LOGGED_COUNTS = (1, 10, 100, 1000)  # numbers of skipped updates that are logged
_STATISTICS_ROWS = 16  # real rows per class from which batch norm takes its statistics


def short_experts(task: Task) -> dict[str, Any]:
    """Return the options that the presets of all trajectory methods share, so that experts are recorded once.

    The experts are many and short, because the images soon overfit to a few. A larger set can follow longer windows.
    So can a form of many rows follow later ones, which gained mtt and esp one or two points with 'dct'.
    """
    shared = {"snapshot_every": 4, "lr_expert": 0.05, "batch_expert": 128, "lr_img": 1000.0, "decay": True}
    if few_images(task) and task.expand >= _MANY_ROWS:
        return {**shared, "experts": 16, "snapshots": 25, "expert_span": 4, "max_start": 12, "lr_student": 0.03}
    if few_images(task):
        return {**shared, "experts": 24, "snapshots": 13, "expert_span": 4, "max_start": 8, "lr_student": 0.03}
    return {**shared, "experts": 16, "snapshots": 25, "expert_span": 12, "max_start": 8, "lr_student": 0.1}


def form_of_students(task: Task, most_ipc: int = FEW_IMAGES - 1) -> dict[str, Any]:
    """Return the storage form of presets `quick`: the one that measured best up to some ipc, else pixels.

    Every student step pays for its rows, so that it takes four rows for each image of the budget, of 16 (few colour
    images) or 8. Whole sets ended worse.

    Args:
        task: ipc, classes and image shape.
        most_ipc: Largest ipc at which the form was measured to gain.
    """
    if task.ipc > most_ipc:
        return {}
    return {**form_values(task, most=16), "batch_syn": 4 * task.ipc * task.num_classes}


def usual_width(quick: dict[str, Any]) -> dict[str, Any]:
    """Return the values of presets `default`: those of `quick` with the usual width, 50 experts and twice the steps."""
    return {**quick, "network": "convnet", "experts": 50, "steps": 2 * quick["steps"]}


@dataclass(frozen=True)
class TrajectoryConfig(LearnedLabelConfig, ExpertConfig):
    """Options of methods that train a student along expert trajectories."""

    lr_img: float = option(
        100.0,
        "Learning rate of the images, in normalised units. It is large because objectives are ratios.",
        gt=0,
        role="image_rate",
    )
    init: str = option(
        "real",
        "Start from 'real' rows, 'correct' (rows that experts classify right at the end of their training), 'noise', "
        "or the rows of a coreset method.",
        role="init",
    )
    labels_from: str = option(
        "teacher",
        "Where soft labels, or the first ones if they are learned, come from: 'teacher', or 'experts' (the mean logits "
        "of the experts that classify a row right).",
        choices=("teacher", "experts"),
        needs={"soft_labels": ("teacher", "learned")},
    )
    augment: str = option(
        ALL_FAMILIES,
        "Augmentation of the synthetic images: families joined by _, or 'none'. Each image draws its own in every "
        "student step. Leave out flip where mirroring changes the meaning of an image, as for digits.",
        role="augment",
    )
    student_steps: int = option(10, "Steps of the student from the start of a window.", ge=1, tiny=3)
    expert_span: int = option(2, "Length of a window of the expert, in snapshots after its start.", ge=1)
    max_start: int | None = option(
        None, "Latest snapshot at which a window may start, exclusive; None: anywhere.", ge=1
    )
    min_start: int = option(0, "Earliest snapshot at which a window may start.", ge=0)
    first_max_start: int | None = option(
        None,
        "Latest start in the first step, exclusive; over expansion_steps it grows to max_start, so that windows come "
        "from early training first. None: max_start from the first step on.",
        ge=1,
    )
    expansion_steps: int | None = option(
        None,
        "Steps over which the latest start grows, if first_max_start is given. None: the first half of the run.",
        ge=1,
    )
    most_ratio: float | None = option(
        None,
        "Updates are skipped in steps whose objective is above this value, because the student went astray there. In "
        "mtt and tesla, a student that does not move has objective 1. None: no update is skipped.",
        gt=0,
    )
    batch_syn: int | None = option(
        None,
        "Decoded rows of all classes together per student step. Batches are taken from permutations of the set; None: "
        "the whole set.",
        ge=1,
    )
    average: float = option(
        0.0,
        "Decay of an exponential moving average of the images, in [0, 1); the average is returned. Warmed up as "
        "min(average, t / (t + 10)). 0 returns the last images.",
        ge=0,
        lt=1,
    )
    zca: bool = option(
        False,
        "Learn images in whitened (ZCA) space; the matrix is stored with the set. Requires pixel_range='free' and "
        "storage='pixels'.",
    )


def latest_start(first: int, last: int, steps: int, t: int) -> int:
    """Return the latest start of a window in a step, exclusive: it grows evenly from the first value to the last.

    Args:
        first: Latest start in step 0.
        last: Latest start from step `steps` on, at least `first`.
        steps: Number of steps, >= 1.
        t: The step.

    References:
        Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024,
        section 3.2 (arXiv:2310.05773).

    Example:
        >>> [latest_start(10, 20, 100, t) for t in (0, 9, 10, 99, 100, 500)]
        [10, 10, 11, 19, 20, 20]
    """
    return min(first + (last - first) * t // steps, last)


def correct_rows(order: Tensor, n: int, judges: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return n rows of a class: those that the first judge takes for right, then those of the next, then any.

    Args:
        order: The rows of the class in the order in which they are considered. int64 (N,).
        n: Number of rows to return. If it is above N, rows are repeated.
        judges: Functions that say of rows (m,) whether they are classified right, bool (m,). They are asked only as
            long as rows are missing.

    Returns:
        int64 (n,).

    References:
        Guo et al., ICLR 2024; the walk is that of the authors' code.

    Example:
        >>> correct_rows(torch.tensor([5, 6, 7, 8]), 3, [lambda rows: rows == 7, lambda rows: rows > 7])
        tensor([7, 8, 5])
    """
    chosen, rest = order[:0], order
    for is_right in judges:
        wrong = []
        for rows in rest.split(_WALK):
            right = is_right(rows)
            chosen = torch.cat([chosen, rows[right]])
            if len(chosen) >= n:
                return chosen[:n]
            wrong.append(rows[~right])
        rest = torch.cat(wrong)
        if not len(rest):
            break
    rows = torch.cat([chosen, rest])
    return repeated(rows, n)


def mean_of_correct(logits: Iterable[Tensor], labels: Tensor) -> Tensor:
    """Return the mean logits of those networks that classify a row right; of all networks if none does.

    Args:
        logits: Logits of the rows, by network. (N, K) each.
        labels: Class of each row. int64 (N,).

    Returns:
        (N, K).

    References:
        Guo et al., ICLR 2024; where no network is right, the authors' code has no rule.

    Example:
        >>> mean_of_correct([torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 2.0]])], torch.tensor([0]))
        tensor([[4., 0.]])
    """
    right_sum = right_count = mean = torch.zeros(())
    for networks, predicted in enumerate(logits, 1):
        right = (predicted.argmax(1) == labels)[:, None].to(predicted.dtype)  # (N, 1)
        right_sum, right_count = right_sum + right * predicted, right_count + right
        mean = mean + (predicted - mean) / networks
    return torch.where(right_count > 0, right_sum / right_count.clamp_min(1), mean)


@dataclass(frozen=True)
class Window:
    """A part of an expert's trajectory.

    Attributes:
        points: Snapshots from the start of the window to its end. float32 (expert_span + 1, P), on the CPU.
        device: Where the student is trained. Only what is asked for is copied to it.
    """

    points: Tensor
    device: torch.device = _CPU

    @cached_property
    def start(self) -> Tensor:
        """The weights at which the student starts: (P,), on the device."""
        return to_device(self.points[0], self.device)

    @cached_property
    def end(self) -> Tensor:
        """The expert's weights at the end of the window: (P,), on the device."""
        return to_device(self.points[-1], self.device)

    @cached_property
    def displacement(self) -> Tensor:
        """The difference between the expert's weights at the end and at the start: (P,), on the device."""
        return to_device(self.points[-1] - self.points[0], self.device)


@dataclass(frozen=True)
class Batch:
    """The minibatch of one student step.

    Attributes:
        key: The draw and the student's step.
        size: Number of decoded images in the batch.
        mask: Whether each decoded image of the set is in the batch, bool (N,); None if all are.
        transform: Augmentation with parameters for every decoded image of the set, or None.
    """

    key: tuple[int, int]
    size: int
    mask: Tensor | None
    transform: Transform | None


ConfigT = TypeVar("ConfigT", bound=TrajectoryConfig)


class TrajectoryMethod(ImageMethod[ConfigT]):
    """Base class of methods that train a student on the synthetic set, along the trajectory of an expert."""

    trained_labels: ClassVar[tuple[str, ...]] = ("teacher", "learned")
    exchanges_in_losses: ClassVar[bool] = True
    cost_in_forwards: ClassVar[int] = 4
    experts: Recordings

    @property
    def cuts(self) -> tuple[str, ...]:
        """The student's forward passes are cut by the size of a processor's cache, not by the plan."""
        return ("keep_graphs", "classes_per_chunk")

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many rows of every class a batch has at most: it is drawn from the whole set."""
        return {c: min(self.config.batch_syn or n, n) for c, n in run.counts.items()}

    def most_rows(self, run: Run) -> int:
        """Return how many rows a batch has."""
        total = sum(run.counts.values())
        return min(self.config.batch_syn or total, total)

    def identity(self, run: Run) -> dict[str, Any]:
        """Return also the caller's choice about compiling, which decides how experts are trained.

        The number of steps belongs to it if windows expand over a share of them.
        """
        follows_steps = self.config.first_max_start is not None and self.config.expansion_steps is None
        steps = {"steps": self.config.steps} if follows_steps else {}
        return {**super().identity(run), **steps, "compile": run.compile}

    rate_remedy: ClassVar[str] = "such as lr_img or lr_student"
    memory_remedy: ClassVar[str] = "a smaller batch_syn, network or image_size needs less"

    def prepare(self, run: Run) -> None:
        """Check options that depend on each other, whiten the source if the options say so, and record the experts."""
        self._check(run)
        if self.config.zca:
            run.whiten()
        self.experts = recorded_experts(run, self.config)
        self._rate_advice = self.rate_advice(run)
        self.net = FlatNetwork(use_closed_forms(run.network("student", trainable=False)))
        first_rows = torch.tensor([0, *run.counts.values()]).cumsum(0).tolist()
        self._first = dict(zip(run.classes, first_rows, strict=False))
        self.total = sum(run.counts.values())
        # On a CPU, as many images go through the student at a time as stay in the cache.
        cached = chunk_size(self.net.net, run.source.image_shape, self.total, second_derivatives=True)
        self._rows_at_a_time = cached if run.device.type == "cpu" else self.total

    def rate(self, t: int, values: Sequence[float]) -> float:
        """Return 0, which skips the update, if the value of the step is above `most_ratio`."""
        most = self.config.most_ratio
        if most is None or values[-1] <= most:
            return super().rate(t, values)
        skipped = sum(not value <= most for value in values)  # a value that is not a number is skipped, too
        if skipped in _LOGGED_COUNTS:
            logger.warning(
                "the update of step %d is skipped, because its objective is %.3g, above most_ratio=%g; so were %d of "
                "%d updates so far. If this happens often, a smaller rate, %s, helps%s",
                t,
                values[-1],
                most,
                skipped,
                len(values),
                self._rate_advice,
                ". The set is still the one that learning started from" if skipped == len(values) else "",
            )
        return 0.0

    def first_images(self, run: Run) -> SyntheticSet:
        """Return the set that optimisation starts from: real rows that experts classify right, if options say so."""
        return run.start(run, self._correct_rows(run)) if self.config.init == _CORRECT else super().first_images(run)

    @torch.no_grad()
    def _correct_rows(self, run: Run) -> Tensor:
        """Return the positions of rows that experts classify right, as many as the set decodes into: (rows,)."""
        chosen = []
        for c, n in run.counts.items():
            positions = run.source.positions(c)
            order = torch.randperm(len(positions), generator=run.rng("correct", run.source.class_names[c]))
            judges = (self._judge(run, expert, c) for expert in range(len(self.experts)))
            chosen.append(correct_rows(order + positions.start, n, judges))
        # Rounding could differ from process to process, so all take the rows of the main one.
        return broadcast_object(run.accelerator, torch.cat(chosen))

    def _judge(self, run: Run, expert: int, c: int) -> Callable[[Tensor], Tensor]:
        """Return a function that says of rows of a class, by position, whether an expert classifies them right."""
        network = self._trained_expert(run, expert)

        def is_right(rows: Tensor) -> Tensor:
            return (network_logits(network, run.source.at(rows)).argmax(1) == c).cpu()

        return is_right

    def _last_weights(self, expert: int) -> Tensor:
        """Return the weights at the end of an expert's training, on the CPU: (P,)."""
        return self.experts.window(expert, self.experts.snapshots - 1, 1)[0]

    def _trained_expert(self, run: Run, expert: int) -> nn.Module:
        """Return an expert at the end of its training, in evaluation mode. A second call overwrites its weights."""
        network = run.network("expert", weights=self._last_weights(expert), slot="expert").eval()
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        if norms:  # only parameters are recorded, so the statistics are computed anew, as plain means
            for module in norms:
                module.train().momentum = None
            network(run.source.sample(run.classes, _STATISTICS_ROWS, run.seed, "statistics").flatten(0, 1))
        return network.eval()

    @torch.no_grad()
    def labels(self, run: Run, synthetic: SyntheticSet) -> Labels:
        """Return the soft labels that the teacher or the experts give to the decoded rows of a set."""
        if self.config.labels_from == "teacher":
            return super().labels(run, synthetic)
        images, labels = synthetic.all()
        experts = range(len(self.experts))
        logits = mean_of_correct((network_logits(self._trained_expert(run, e), images) for e in experts), labels)
        updates = (self.config.snapshots - 1) * snapshot_interval(self.config, len(run.source))
        facts = teacher_facts(run, ({"weights": self._last_weights(e)} for e in experts), updates)
        return Labels(broadcast(run.accelerator, logits), broadcast_object(run.accelerator, facts))

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the first images and start their average with them."""
        synthetic = super().initialise(run)
        self._averages = {name: tensor.detach().clone() for name, tensor in synthetic.learned().items()}
        return synthetic

    def _check(self, run: Run) -> None:
        """Raise for options that contradict each other or the run."""
        check_two_classes(run, self.info.name)
        config = self.config
        if config.expert_span >= config.snapshots:
            raise ValueError(
                f"expert_span={config.expert_span} needs at least {config.expert_span + 1} snapshots of an expert; "
                f"got snapshots={config.snapshots}"
            )
        one_of("init", config.init, [_CORRECT, *start_names()])
        self._check_starts()
        check_experts(run, config)
        clips, storage = run.decoder.frame.clip, run.decoder.name
        if config.zca and (clips or not run.decoder.can_be_whitened):
            raise ValueError(
                "zca=True learns images in whitened space, where pixels have no valid range and other storage forms no "
                f"meaning. It requires pixel_range='free' and storage='pixels'; got {'valid' if clips else 'free'!r} "
                f"and {storage!r}. Pass these values, or zca=False (a preset may have set zca=True)"
            )

    def _check_starts(self) -> None:
        """Raise for starts of windows that contradict each other."""
        config = self.config
        if config.first_max_start and config.max_start and config.first_max_start > config.max_start:
            raise ValueError(
                f"first_max_start={config.first_max_start} should be at most max_start={config.max_start}, to which "
                "the latest start grows (a preset may have set either)"
            )
        first = self._latest_start(0)
        if config.min_start >= first:
            raise ValueError(
                f"min_start={config.min_start} should be below the latest start of a window, {first} in the first step "
                f"(snapshots={config.snapshots}, expert_span={config.expert_span}, max_start={config.max_start}, "
                f"first_max_start={config.first_max_start})"
            )

    def _latest_start(self, t: int) -> int:
        """Return the latest start of a window in step `t`, exclusive."""
        config = self.config
        starts = config.snapshots - config.expert_span
        last = min(starts, config.max_start or starts)
        growing = config.expansion_steps or max(1, config.steps // 2)
        return latest_start(min(config.first_max_start or last, last), last, growing, t)

    def window(self, run: Run, draw: int) -> Window:
        """Return a random window of a random expert.

        Args:
            run: The run.
            draw: Number of the draw: its key, and the step of the run for which the window is drawn.
        """
        config = self.config
        generator = run.rng("window", draw)
        expert = int(torch.randint(len(self.experts), (), generator=generator))
        starts = self._latest_start(draw) - config.min_start
        start = config.min_start + int(torch.randint(starts, (), generator=generator))
        points = self.experts.window(expert, start, config.expert_span + 1)
        if not float((points[-1] - points[0]).square().sum()):
            raise ValueError(
                f"expert {expert} does not move from snapshot {start} to snapshot {start + config.expert_span}, so "
                f"nothing can be matched; a larger lr_expert (now {config.lr_expert}) usually helps"
            )
        return Window(points, run.device)

    def batch(self, run: Run, draw: int, step: int) -> Batch:
        """Return the minibatch of the student's step `step` after a draw, a part of a permutation of the set."""
        size, mask = self.total, None
        if self.config.batch_syn is not None and self.config.batch_syn < self.total:
            batches = -(-self.total // self.config.batch_syn)  # that one permutation gives
            order = torch.randperm(self.total, generator=run.rng("order", draw, step // batches))
            rows = order.split(self.config.batch_syn)[step % batches]
            size, mask = len(rows), torch.zeros(self.total, dtype=torch.bool)
            mask[rows] = True
        transform = None
        if self.augmentation is not None:
            transform = self.augmentation.draw(self.total, run.rng("augment", draw, step))
        return Batch((draw, step), size, mask, transform)

    def chunk_rows(self, run: Run, batch: Batch, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the rows of a batch that are in a chunk, augmented: (n, C, H, W), and their targets. n can be 0."""
        first = self._first[classes[0]]
        numbers = torch.arange(first, first + sum(run.counts[c] for c in classes))  # of the rows in the whole set
        if batch.mask is not None:
            numbers = numbers[batch.mask[numbers]]
        rows = None if len(numbers) == self.total else numbers
        images, targets = run.synthetic.at(rows)[0], run.synthetic.targets_at(rows, self.loss_temperature)
        if batch.transform is not None and len(images):
            images = batch.transform(images, numbers)
        return images, targets

    def chunk_gradient(
        self, run: Run, vector: Tensor, batch: Batch, classes: tuple[int, ...], graph: bool = True
    ) -> Tensor:
        """Return a chunk's share of the gradient of a batch's mean cross-entropy.

        Args:
            run: The run.
            vector: Weights at which the gradient is taken. (P,).
            batch: The batch.
            classes: The chunk.
            graph: Whether the result has a graph, which leads to images and labels, and to `vector` if that has one.

        Returns:
            (P,).
        """
        images, targets = self.chunk_rows(run, batch, classes)
        if not len(images):
            # The sum over no images is zero; it gives this share a graph to the images, as the other shares have.
            return torch.zeros_like(vector) + images.sum()
        weights = vector if vector.requires_grad else vector.detach().requires_grad_()
        # The generators are keyed so that dropout draws the same when a chunk is computed a second time.
        key = (run.seed, "student", *batch.key, classes[0])
        parts = images.split(self._rows_at_a_time)
        with run.accelerator.autocast(), seeded_globals(*key, devices=[run.device]):
            logits = torch.cat([self.net.logits(weights, part) for part in parts])
        loss = cross_entropy(logits, targets, self.loss_temperature, reduction="sum") / batch.size
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=graph)
        return gradient

    def whole_gradient(self, run: Run, vector: Tensor, batch: Batch, kept: list[Tensor] | None = None) -> Tensor:
        """Return the student's gradient on the whole batch, summed over chunks and processes, without a graph: (P,).

        Args:
            run: The run.
            vector: Weights at which the gradient is taken. (P,).
            batch: The batch.
            kept: A list to which this process's chunks add their gradients with their graphs. Default: no graphs.
        """
        total: Tensor | None = None
        for classes in run.chunks():
            part = self.chunk_gradient(run, vector, batch, classes, graph=kept is not None)
            total = part.detach() if total is None else total + part.detach()
            if kept is not None:
                kept.append(part)
        return summed(run, torch.zeros_like(vector) if total is None else total)

    def two_passes(
        self, run: Run, vector: Tensor, batch: Batch, objective: Callable[[Tensor], Tensor]
    ) -> Generator[Loss, None, Tensor]:
        """Yield surrogate losses whose gradients sum to the exact gradient of `objective(g)`, one chunk at a time.

        An objective f(g) of g, the sum of the chunks' gradients g_c, depends on the images of a chunk through g_c
        alone, and its gradient is that of <w, g_c> with w = df/dg. The first pass therefore sums g without a graph, and
        the second one differentiates chunk by chunk. Memory holds one chunk, whatever the size of the set. If a process
        has one chunk only, the first pass keeps its graph, and is not repeated; if it is the only process as well, the
        objective itself is what it yields.

        Args:
            run: The run.
            vector: Weights of the student. (P,).
            batch: The batch of the gradient.
            objective: A function of the gradient (P,); it is called once.

        Returns:
            The student's gradient on the batch, without a graph: (P,).
        """
        has_one_chunk = run.plan.classes_per_chunk * run.accelerator.num_processes >= len(run.classes)
        kept: list[Tensor] | None = [] if has_one_chunk else None
        total = self.whole_gradient(run, vector, batch, kept)
        if kept and run.accelerator.num_processes == 1:
            value = objective(kept.pop())
            yield Loss(value, value.detach())
            return total
        direction, value = _differentiated(objective, total)
        for i, classes in enumerate(run.chunks()):
            gradient = kept.pop(0) if kept else self.chunk_gradient(run, vector, batch, classes)
            yield Loss(direction @ gradient, reported_once(run, value, first=i == 0))
        return total

    def rollout(
        self, run: Run, draw: int, window: Window, rate: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> Iterator[Loss]:
        """Yield the losses of an objective of the student's displacement after all its steps, one chunk at a time.

        The weights along the rollout count as constants. The objective then depends on the images through the gradients
        of the steps alone, and on each of them in the same way. The first pass computes the displacement, the second
        one differentiates step after step. Memory holds one chunk of one step. If the plan says so, the first pass
        keeps the graphs of all steps, and is not repeated.

        Args:
            run: The run.
            draw: Number of the draw: the key of the batches.
            window: The window at whose start the student starts.
            rate: Learning rate of the student, which is learned if it requires a gradient. ().
            objective: A function of the student's displacement (P,); it is called once.

        References:
            Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023, section 3.2
            (arXiv:2211.10586).
        """
        steps, step_size = range(self.config.student_steps), rate.detach()
        total, student = torch.zeros_like(window.start), window.start
        kept: list[Tensor] | None = [] if run.plan.keep_graphs else None
        for n in steps:
            gradient = self.whole_gradient(run, student, self.batch(run, draw, n), kept)
            total, student = total + gradient, student - step_size * gradient
        direction, value = _differentiated(objective, -step_size * total)
        if run.accelerator.is_main_process and rate.requires_grad:
            yield Loss(-rate * (direction @ total), torch.zeros_like(value))
        student = window.start
        for n in steps:
            batch, whole = self.batch(run, draw, n), torch.zeros_like(student)
            for i, classes in enumerate(run.chunks()):
                gradient = kept.pop(0) if kept else self.chunk_gradient(run, student, batch, classes)
                whole += gradient.detach()
                yield Loss(-step_size * (direction @ gradient), reported_once(run, value, first=n == i == 0))
            if kept is None and n < steps[-1]:
                student = student - step_size * summed(run, whole)

    def after_update(self, run: Run, t: int) -> None:
        """Update the average of the images."""
        if not self.config.average:
            return
        decay = min(self.config.average, t / (t + 10))  # so that the first images do not dominate a short average
        for name, tensor in run.synthetic.learned().items():
            self._averages[name].lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        """Make the average the result."""
        if self.config.average:
            for name, tensor in run.synthetic.learned().items():
                tensor.copy_(self._averages[name])
        super().finish(run)

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return the average."""
        if not self.config.average:
            return {}
        return {f"average.{name}": tensor for name, tensor in self._averages.items()}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Restore the average."""
        if self.config.average:
            for name, average in self._averages.items():
                average.copy_(state[f"average.{name}"])


def _differentiated(objective: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (P,) and the value () of an objective at a point (P,)."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        value = objective(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return gradient, value.detach()


def reported_once(run: Run, value: Tensor, first: bool) -> Tensor:
    """Return `value` on the first chunk of the main process, and zero everywhere else, so that it is reported once."""
    return value if first and run.accelerator.is_main_process else torch.zeros_like(value)


def summed(run: Run, part: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without a graph."""
    return reduce(run.accelerator, part)


class _Summed(torch.autograd.Function):
    """All-reduce (sum) in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, run: Run) -> Tensor:
        ctx.run = run
        return summed(run, part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return summed(ctx.run, gradient.contiguous()), None


def summed_with_graph(run: Run, part: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with a graph.

    Each process must differentiate its share of the objective, which is 1 / num_processes of it.
    """
    if run.accelerator.num_processes == 1:
        return part
    total: Tensor = _Summed.apply(part, run)
    return total
