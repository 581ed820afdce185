"""Shared parts of methods that train a student on the synthetic set and compare it with an expert's trajectory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from hf_condense.base.processes import reduce
from hf_condense.base.rng import seeded_globals
from hf_condense.base.torch_state import exact_convolutions
from hf_condense.engine.method import Loss
from hf_condense.engine.soft_labels import SoftLabels
from hf_condense.methods._expert_rows import correct_positions, expert_labels
from hf_condense.methods._experts import check_experts, recorded_experts
from hf_condense.methods._images import ImageMethod, batch_rows, check_two_classes
from hf_condense.methods._recordings import Recordings
from hf_condense.methods._student_options import TrajectoryConfig
from hf_condense.methods._windows import Window, check_windows, random_window
from hf_condense.networks.augment import Transform
from hf_condense.networks.flat import FlatNetwork
from hf_condense.networks.instance_norm import use_closed_forms
from hf_condense.networks.losses import tempered_cross_entropy
from hf_condense.networks.training import chunk_size

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

logger = logging.getLogger("hf_condense")

_CORRECT = "correct"  # the start from rows that experts classify right
_LOGGED_COUNTS = (1, 10, 100, 1000)  # numbers of skipped updates that are logged


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
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_exact_convolutions(
    losses: Callable[Concatenate[Any, Run, _Arguments], Generator[Loss, None, _Result]],
) -> Callable[Concatenate[Any, Run, _Arguments], Generator[Loss, None, _Result]]:
    """Make a method's generator of losses, and the engine's use of them, compute convolutions in float32.

    They are gradients of gradients, and lose too much in TF32.
    """

    @wraps(losses)
    def exact(
        method: Any, run: Run, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Generator[Loss, None, _Result]:
        with exact_convolutions(run.device):
            return (yield from losses(method, run, *args, **kwargs))

    return exact


class TrajectoryMethod(ImageMethod[ConfigT]):
    """Base class of methods that train a student on the synthetic set, along the trajectory of an expert."""

    own_starts: ClassVar[tuple[str, ...]] = (_CORRECT,)
    trained_labels: ClassVar[tuple[str, ...]] = ("teacher", "learned")
    exchanges_in_losses: ClassVar[bool] = True
    cost_in_forwards: ClassVar[int] = 4
    rate_remedy: ClassVar[str] = "such as lr_img or lr_student"
    memory_remedy: ClassVar[str] = "a smaller batch_syn, network or image_size needs less"
    experts: Recordings

    @property
    def cuts(self) -> tuple[str, ...]:
        """The student's forward passes are cut by the size of a processor's cache, not by the plan."""
        return ("keep_graphs", "classes_per_chunk")

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many rows of every class a batch has at most: it is drawn from the whole set."""
        return batch_rows(run, self.config.batch_syn)

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

    def prepare(self, run: Run) -> None:
        """Check options that depend on each other, whiten the source if the options say so, and record the experts."""
        self._check(run)
        if self.config.zca:
            run.whiten()
        self.experts = recorded_experts(run, self.config)
        self._rate_advice = self.rate_advice(run)
        self._skipped = 0, 0  # values above `most_ratio`, and values looked at
        self.net = FlatNetwork(use_closed_forms(run.network("student", trainable=False)))
        first_rows = torch.tensor([0, *run.counts.values()]).cumsum(0).tolist()
        self._first = dict(zip(run.classes, first_rows, strict=False))
        self.total = sum(run.counts.values())
        # On a CPU, as many images go through the student at a time as stay in the cache.
        cached = chunk_size(self.net.net, run.source.image_shape, self.total, second_derivatives=True)
        self._rows_at_a_time = cached if run.device.type == "cpu" else self.total

    def rate(self, t: int, values: Sequence[float]) -> float:
        """Return 0, which skips the update, if the value of the step is above `most_ratio`.

        What `after_update` needs is remembered: whether the step moves the set, and how many steps did.
        """
        most = self.config.most_ratio
        # A value that is not a number is skipped, too.
        skipped = 0 if most is None else self._count_skipped(values, most)
        self._updates = len(values) - skipped
        self._moved = most is None or values[-1] <= most
        if self._moved:
            return super().rate(t, values)
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

    def _count_skipped(self, values: Sequence[float], most: float) -> int:
        """Return how many values are above a bound, by looking at the new ones only."""
        count, seen = self._skipped if self._skipped[1] <= len(values) else (0, 0)
        count += sum(not values[i] <= most for i in range(seen, len(values)))
        self._skipped = count, len(values)
        return count

    def first_set(self, run: Run) -> SyntheticSet:
        """Return the set that optimisation starts from: real rows that experts classify right, if options say so."""
        if self.config.init == _CORRECT:
            return run.start(correct_positions(run, self.experts))
        return super().first_set(run)

    def also_cites(self) -> tuple[str, ...]:
        """Return `datm` if windows expand or experts choose the first rows, `tesla` if they give the labels."""
        config = self.config
        of_datm = config.first_max_start is not None or config.init == _CORRECT
        of_tesla = config.soft_labels != "none" and config.labels_from == "experts"
        return (*(("datm",) if of_datm else ()), *(("tesla",) if of_tesla else ()))

    def labels(self, run: Run, synthetic: SyntheticSet) -> SoftLabels:
        """Return the soft labels that the teacher or the experts give to the decoded rows of a set."""
        if self.config.labels_from == "teacher":
            return super().labels(run, synthetic)
        return expert_labels(run, self.experts, self.config, synthetic)

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the first images and start their average with them."""
        synthetic = super().initialise(run)
        self._averages = {name: tensor.detach().clone() for name, tensor in synthetic.learned().items()}
        return synthetic

    def _check(self, run: Run) -> None:
        """Raise for options that contradict each other or the run."""
        check_two_classes(run, self.info.name)
        config = self.config
        check_windows(config)
        check_experts(run, config)
        clips, storage = run.decoder.frame.clip, run.decoder.name
        if config.zca and (clips or not run.decoder.can_be_whitened):
            raise ValueError(
                "zca=True learns images in whitened space, where pixels have no valid range and other storage forms no "
                f"meaning. It requires pixel_range='free' and storage='pixels'; got {'valid' if clips else 'free'!r} "
                f"and {storage!r}. Pass these values, or zca=False (a preset may have set zca=True)"
            )

    def window(self, run: Run, draw: int) -> Window:
        """Return the random window of a draw; see `random_window`."""
        return random_window(run, self.experts, self.config, draw)

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

        With mixed precision, the forward pass runs under autocast, so that second derivatives are rounded, too.

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
        loss = tempered_cross_entropy(logits, targets, self.loss_temperature, reduction="sum") / batch.size
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
        return reduce(run.accelerator, torch.zeros_like(vector) if total is None else total)

    @in_exact_convolutions
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

    @in_exact_convolutions
    def rollout(
        self, run: Run, draw: int, window: Window, rate: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> Generator[Loss, None, None]:
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
                student = student - step_size * reduce(run.accelerator, whole)

    def after_update(self, run: Run, t: int) -> None:
        """Update the average of the images, unless the update was skipped."""
        if not self.config.average or not self._moved:
            return
        n = self._updates - 1
        decay = min(self.config.average, n / (n + 10))  # so that the first images do not dominate a short average
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


class _Summed(torch.autograd.Function):
    """All-reduce (sum) in the forward and in the backward pass."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, run: Run) -> Tensor:
        ctx.run = run
        return reduce(run.accelerator, part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return reduce(ctx.run.accelerator, gradient.contiguous()), None


def summed_with_graph(run: Run, part: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with a graph.

    Each process must differentiate its share of the objective, which is 1 / num_processes of it.
    """
    if run.accelerator.num_processes == 1:
        return part
    total: Tensor = _Summed.apply(part, run)
    return total
