"""What methods share that train a student on the synthetic set and hold it against an expert's trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from hf_condense.base.processes import reduce
from hf_condense.base.rng import seeded_globals
from hf_condense.engine.method import Loss, option
from hf_condense.engine.task import Task
from hf_condense.methods._experts import ExpertConfig, Experts, check_experts, recorded_experts
from hf_condense.methods._images import ALL_FAMILIES, ImageMethod, LearnedLabelConfig, cross_entropy
from hf_condense.networks.augment import Transform
from hf_condense.networks.flat import FlatNetwork

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet


def few_images(task: Task) -> bool:
    """Tell whether a set is so small that presets follow an expert for a short way; 1 and 10 a class were measured."""
    return task.ipc < 4


def short_experts(task: Task) -> dict[str, Any]:
    """Return what presets of all methods share, so that experts are recorded once.

    They are many and short, as a few are soon learned by heart. More images can follow them for a longer way.
    """
    shared = {"snapshot_every": 4, "lr_expert": 0.05, "batch_expert": 128, "lr_img": 1000.0, "decay": True}
    if few_images(task):
        return {**shared, "experts": 24, "snapshots": 13, "expert_span": 4, "max_start": 8, "lr_student": 0.03}
    return {**shared, "experts": 16, "snapshots": 25, "expert_span": 12, "max_start": 8, "lr_student": 0.1}


def usual_width(quick: dict[str, Any]) -> dict[str, Any]:
    """Return what the presets `default` make of `quick`: the usual width, more experts, twice the steps."""
    return {**quick, "network": "convnet", "experts": 50, "steps": 2 * quick["steps"]}


@dataclass(frozen=True)
class TrajectoryConfig(LearnedLabelConfig, ExpertConfig):
    """Options of methods that train a student along expert trajectories."""

    lr_img: float = option(
        100.0, "Learning rate of the images, in normalised units; objectives are ratios.", gt=0, role="image_rate"
    )
    augment: str = option(
        ALL_FAMILIES,
        "Augmentation of the synthetic images, each drawing its own in every student step: families joined by _, or "
        "'none'. Leave out flip where a mirror image means something else, as for digits.",
        role="augment",
    )
    student_steps: int = option(10, "Steps of the student from the start of a window of the expert.", ge=1, tiny=3)
    expert_span: int = option(2, "Snapshots from the start of a window to its end.", ge=1)
    max_start: int | None = option(
        None, "Latest snapshot at which a window may start, exclusive; None: anywhere.", ge=1
    )
    batch_syn: int | None = option(
        None, "Decoded images in a student step, parts of one permutation after the other; None: the whole set.", ge=1
    )
    average: float = option(
        0.0,
        "Decay of an exponential moving average of the images, in [0, 1); the average is returned. Warmed up as "
        "min(average, t / (t + 10)). 0 returns the last images.",
        ge=0,
    )
    zca: bool = option(
        False,
        "Learn in whitened (ZCA) space; the matrix travels with the set. Needs pixel_range='free', storage='pixels'.",
    )


@dataclass(frozen=True)
class Window:
    """A stretch of an expert's trajectory.

    Attributes:
        points: Snapshots from its start to its end. float32 (expert_span + 1, P), on the device.
    """

    points: Tensor

    @property
    def start(self) -> Tensor:
        """Where the student starts: (P,)."""
        return self.points[0]

    @property
    def displacement(self) -> Tensor:
        """How far the expert went: (P,)."""
        return self.points[-1] - self.points[0]


@dataclass(frozen=True)
class Batch:
    """The minibatch of one student step.

    Attributes:
        key: Its draw and step.
        size: Decoded images in it.
        chosen: Whether each decoded image of the set is in it, bool (N,); None: all are.
        transform: Augmentation with parameters for every decoded image of the set, or None.
    """

    key: tuple[int, int]
    size: int
    chosen: Tensor | None
    transform: Transform | None


ConfigT = TypeVar("ConfigT", bound=TrajectoryConfig)


class TrajectoryMethod(ImageMethod[ConfigT]):
    """Base of methods that train a student on the synthetic set, along the trajectory of an expert."""

    trained_labels: ClassVar[tuple[str, ...]] = ("teacher", "learned")
    cost_in_forwards: ClassVar[int] = 4
    experts: Experts

    def identity(self, run: Run) -> dict[str, Any]:
        """Return also whether experts are compiled: they follow the caller's word, whatever the plan says."""
        return {**super().identity(run), "compile": run.compile}

    def prepare(self, run: Run) -> None:
        """Check the options that depend on each other, whiten the source if asked to, and record the experts."""
        self._check(run)
        if self.config.zca:
            run.whiten()
        self.experts = recorded_experts(run, self.config)
        self.net = FlatNetwork(run.network("student", trainable=False))
        first_rows = torch.tensor([0, *run.counts.values()]).cumsum(0).tolist()
        self._first = dict(zip(run.classes, first_rows, strict=False))
        self.total = sum(run.counts.values())

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the first images, with which their average begins."""
        synthetic = super().initialise(run)
        self._averages = {name: tensor.detach().clone() for name, tensor in synthetic.learned().items()}
        return synthetic

    def _check(self, run: Run) -> None:
        """Raise for options that contradict each other or the run."""
        config = self.config
        if config.expert_span >= config.snapshots:
            raise ValueError(
                f"expert_span={config.expert_span} needs at least {config.expert_span + 1} snapshots of an expert; "
                f"got snapshots={config.snapshots}"
            )
        if config.average >= 1:
            raise ValueError(f"average should be below 1, the weight of the past; got {config.average!r}")
        check_experts(run, config)
        clips, storage = run.decoder.frame.clip, run.decoder.name
        if config.zca and (clips or not run.decoder.can_be_whitened):
            raise ValueError(
                "zca=True learns images in whitened space, where pixels have no range and patches no meaning: "
                f"it needs pixel_range='free' and storage='pixels'; got {'valid' if clips else 'free'!r} and "
                f"{storage!r}. Pass zca=False, which presets may set, or leave those two out"
            )

    def window(self, run: Run, draw: int) -> Window:
        """Return the stretch of a random expert that a draw picks."""
        config = self.config
        starts = config.snapshots - config.expert_span
        generator = run.rng("window", draw)
        expert = int(torch.randint(len(self.experts), (), generator=generator))
        start = int(torch.randint(min(starts, config.max_start or starts), (), generator=generator))
        return Window(self.experts.window(expert, start, config.expert_span + 1).to(run.device))

    def batch(self, run: Run, draw: int, step: int) -> Batch:
        """Return what the student's step `step` after a draw is taken on: a part of a permutation of the set."""
        size, chosen = self.total, None
        if self.config.batch_syn is not None and self.config.batch_syn < self.total:
            turns = -(-self.total // self.config.batch_syn)  # steps that one permutation is enough for
            order = torch.randperm(self.total, generator=run.rng("order", draw, step // turns))
            part = order.split(self.config.batch_syn)[step % turns]
            size, chosen = len(part), torch.zeros(self.total, dtype=torch.bool)
            chosen[part] = True
        transform = None
        if self.augmentation is not None:
            transform = self.augmentation.draw(self.total, run.rng("augment", draw, step))
        return Batch((draw, step), size, chosen, transform)

    def chunk_rows(self, run: Run, batch: Batch, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return a chunk's rows in a batch, augmented, (n, C, H, W), and their targets; n can be 0."""
        images, labels = run.synthetic.of(classes)
        targets = run.synthetic.targets(classes, self.loss_temperature)
        first = self._first[classes[0]]
        group = torch.arange(first, first + len(labels))
        if batch.chosen is not None:
            own = batch.chosen[first : first + len(labels)].nonzero()[:, 0]
            group, own = group[own], own.to(run.device)
            images, targets = images.index_select(0, own), targets.index_select(0, own)
        if batch.transform is not None and len(images):
            images = batch.transform(images, group)
        return images, targets

    def chunk_gradient(
        self, run: Run, vector: Tensor, batch: Batch, classes: tuple[int, ...], graph: bool = True
    ) -> Tensor:
        """Return a chunk's share of the gradient of a batch's mean cross-entropy at a vector: (P,).

        Its graph leads to images and labels, and to the vector if that has one.
        """
        images, targets = self.chunk_rows(run, batch, classes)
        if not len(images):
            return torch.zeros_like(vector) + 0 * images.sum()  # bound to the images, as any other chunk's
        at = vector if vector.requires_grad else vector.detach().requires_grad_()
        # Keyed, so that dropout draws the same when a chunk is computed a second time.
        key = (run.seed, "student", *batch.key, classes[0])
        with run.accelerator.autocast(), seeded_globals(*key, devices=[run.device]):
            logits = self.net.logits(at, images)
        loss = cross_entropy(logits, targets, self.loss_temperature, reduction="sum") / batch.size
        (gradient,) = torch.autograd.grad(loss, at, create_graph=graph)
        return gradient

    def whole_gradient(self, run: Run, vector: Tensor, batch: Batch) -> Tensor:
        """Return the student's gradient on the whole batch, over all chunks and processes, without a graph: (P,)."""
        total = torch.zeros_like(vector)
        for classes in run.chunks():
            total += self.chunk_gradient(run, vector, batch, classes, graph=False).detach()
        return summed(run, total)

    def two_passes(
        self, run: Run, vector: Tensor, batch: Batch, objective: Callable[[Tensor], Tensor]
    ) -> Iterator[Loss]:
        """Yield surrogate losses whose gradients sum to the exact gradient of `objective(g)`, one chunk at a time.

        An objective f(g) of g, the sum of the chunks' gradients g_c, depends on the images of a chunk through g_c
        alone: its gradient is that of <w, g_c> with w = df/dg. So g is summed first, without a graph, and then each
        chunk is differentiated on its own: memory for one chunk, whatever the size of the set.

        Args:
            run: The run.
            vector: Weights of the student, (P,).
            batch: What the gradient is taken on.
            objective: Of the gradient (P,); called once.
        """
        chunks = list(run.chunks())
        alone = len(chunks) == 1 and run.accelerator.num_processes == 1
        first = self.chunk_gradient(run, vector, batch, chunks[0]) if alone else None
        total = self.whole_gradient(run, vector, batch) if first is None else first.detach()
        direction, value = _differentiated(objective, total)
        for i, classes in enumerate(chunks):
            gradient = self.chunk_gradient(run, vector, batch, classes) if first is None else first
            yield Loss((direction * gradient).sum(), reported_once(run, value, first=i == 0))

    def rollout(
        self, run: Run, draw: int, window: Window, rate: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> Iterator[Loss]:
        """Yield the losses of an objective of how far a rollout leads, at the memory of one chunk of one of its steps.

        The weights along the rollout count as given. The objective then depends on the images through the gradients of
        the steps alone, and on each of them in the same way: one pass finds where the rollout leads, a second one
        differentiates step after step.

        Args:
            run: The run.
            draw: Names the batches.
            window: Where the student starts.
            rate: Of the student; learned, if it requires a gradient. ().
            objective: Of the student's displacement (P,); called once.

        Reference:
            Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023, section 3.2
            (arXiv:2211.10586).
        """
        steps, step = range(self.config.student_steps), rate.detach()
        total, student = torch.zeros_like(window.start), window.start
        for n in steps:
            gradient = self.whole_gradient(run, student, self.batch(run, draw, n))
            total, student = total + gradient, student - step * gradient
        direction, value = _differentiated(objective, -step * total)
        if run.accelerator.is_main_process and rate.requires_grad:
            yield Loss(-rate * (direction * total).sum(), torch.zeros_like(value))
        student = window.start
        for n in steps:
            batch, whole = self.batch(run, draw, n), torch.zeros_like(student)
            for i, classes in enumerate(run.chunks()):
                gradient = self.chunk_gradient(run, student, batch, classes)
                whole += gradient.detach()
                yield Loss(-step * (direction * gradient).sum(), reported_once(run, value, first=n == i == 0))
            if n < steps[-1]:
                student = student - step * summed(run, whole)

    def after_update(self, run: Run, t: int) -> None:
        """Let the average follow the images."""
        if not self.config.average:
            return
        decay = min(self.config.average, t / (t + 10))  # the first images weigh less while there are few
        for name, tensor in run.synthetic.learned().items():
            self._averages[name].lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        """Take the average for the result."""
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
        """Take the average back."""
        if self.config.average:
            for name, average in self._averages.items():
                average.copy_(state[f"average.{name}"])


def _differentiated(objective: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient (P,) and the value () of an objective at a point (P,)."""
    with torch.enable_grad():
        point = at.detach().requires_grad_()
        value = objective(point)
        (gradient,) = torch.autograd.grad(value, point)
    return gradient, value.detach()


def reported_once(run: Run, value: Tensor, first: bool) -> Tensor:
    """Report `value` once: on the main process's first chunk; return zero everywhere else."""
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
    """Return the sum of a tensor over all processes, so that it can be differentiated.

    Each process must differentiate its share of the objective: 1 / num_processes of it.
    """
    if run.accelerator.num_processes == 1:
        return part
    total: Tensor = _Summed.apply(part, run)
    return total
