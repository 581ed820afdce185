"""The protocol of a condensation method: what it declares, and the few functions that it defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from hf_condense.engine.options import MethodConfig
from hf_condense.engine.plan import CUTS
from hf_condense.engine.task import Task

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet


class Loss(NamedTuple):
    """What a method yields for each of its chunks.

    Attributes:
        loss: The tensor that is differentiated: the objective, or a surrogate with the right gradient. A scalar, ().
        value: The value of the objective, which is reported and checked for NaN. A scalar, ().
    """

    loss: Tensor
    value: Tensor


@dataclass(frozen=True)
class MethodInfo:
    """Facts about a method, for listings, cards and citations.

    Attributes:
        name: Canonical name, made of lower case letters, digits and `_`.
        title: Full name.
        kind: `"synthetic"` (learns images), `"composed"` (combines real images once, without updates) or `"coreset"`
            (chooses real rows).
        summary: One sentence that says what the method does.
        paper: Title of the paper.
        authors: Authors, as they are cited.
        venue: Where the paper was published.
        year: When the paper was published.
        link: Address of the paper.
        cost: What a step costs, in words.
        aliases: Other names that stand for the method.

    Raises:
        TypeError: If a value has the wrong type.
    """

    name: str
    title: str
    kind: Literal["synthetic", "composed", "coreset"]
    summary: str
    paper: str
    authors: str
    venue: str
    year: int
    link: str
    cost: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in {f.name: {"year": int, "aliases": tuple}.get(f.name, str) for f in fields(self)}.items():
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(
                    f"{name} of the MethodInfo {self.name!r} should be of type {kind.__name__}; got {value!r} "
                    f"({type(value).__name__})"
                )

    @property
    def citation(self) -> str:
        """Return the line that cites the paper: title, authors, paper, venue, year and link."""
        return f'{self.title} ({self.name}): {self.authors}, "{self.paper}", {self.venue} {self.year}, {self.link}'


@dataclass(frozen=True)
class Preset:
    """A named set of options.

    Attributes:
        description: What the preset is good for and where its values come from.
        values: Returns the values for a task: options of the method, `network`, `storage`, `expand`, `factor`,
            `pixel_range` and `store_dtype`. It is called twice: without a storage form in the task, to choose one, and
            with the form that was settled, for all other values.
    """

    description: str
    values: Callable[[Task], dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class _Declared(ABC, Generic[ConfigT]):
    """What methods of every kind declare."""

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int] = 1
    """Increment when the same options start to give different results."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    streams: ClassVar[bool] = False
    """Whether each picture is looked at a few times at most, so that large ones are decoded when they are needed."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def also_cites(self) -> tuple[str, ...]:
        """Return the names of methods whose parts the options ask for: cards cite their papers, too."""
        return ()

    @property
    def label_temperature(self) -> float | None:
        """Temperature of the soft labels that the set stores; default: None, it stores none."""
        return None

    def label_views(self, num_classes: int) -> tuple[int | None, int | None]:
        """Return how many views of a row have soft labels, and how many logits of each are stored; default: none.

        Args:
            num_classes: Number of classes.
        """
        return None, None


class Method(_Declared[ConfigT]):
    """One way to learn a synthetic set. Subclass, declare `info` and `Config`, write `losses`.

    The engine does everything that is not mathematics: backward passes, reduction over processes, optimiser steps, the
    valid range of pixels, progress, checkpoints, resuming, callbacks. Take every random draw from `run.rng` or
    `run.network`, keyed by the step, so that a resumed run equals an uninterrupted one (on a CPU bit for bit).

    The life of a method, in the order in which the engine calls it:

    1. `prepare(run)` makes what is needed before there are images, such as experts or a pool of networks.
    2. `initialise(run)` returns the first set. From now on it is `run.synthetic`.
    3. `auxiliary(run)` returns tensors that are learned as well but not stored in the result.
    4. `optimiser(run)` returns the optimiser of all learned tensors.
    5. `load_state(run, state)` is called only if the run resumes from a checkpoint.
    6. In every step t, `losses(run, t)` is differentiated and its gradients are summed over chunks and processes,
       `adjust_gradients(run)` may change them, `rate(t, values)` scales the learning rates (0 skips the update), the
       tensors are updated, and `after_update(run, t)` follows.
       `state(run)` is called whenever a checkpoint is written.
    7. `finish(run)` is called once, after the last step.
    """

    exchanges_in_losses: ClassVar[bool] = False
    """Whether `losses` exchanges values with other processes; a step that lacks memory is then not repeated."""
    cost_in_forwards: ClassVar[int] = 1
    """Cost of differentiating an image, in forward passes; larger where gradients themselves are differentiated."""
    gradients_per_class: ClassVar[int] = 0
    """Gradients of all parameters of the network that a chunk keeps for each of its classes, for the memory plan."""

    rate_remedy: ClassVar[str] = "such as lr_img"
    """Which learning rates may be too large if a step is not finite; see `rate_advice`."""
    own_starts: ClassVar[tuple[str, ...]] = ()
    """What the option of the role `"init"` may name besides real rows, noise and coreset methods."""
    memory_remedy: ClassVar[str] = "a smaller network, batch_syn, batch_real or image_size needs less"
    """What to change if a step does not fit into memory, as the end of a sentence."""

    @property
    def passes(self) -> int:
        """How often a step goes over all its images with graphs that it may keep; see `Plan.keep_graphs`."""
        return 1

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the attributes of `Plan` that can cut a step so that it needs less memory; default: all.

        A method without any keeps the graphs of all its `passes` over all its images, whatever the plan.
        """
        return CUTS

    @property
    def batch_real(self) -> int:
        """Real images per class that a step embeds, for the plan; default: the option of the role `"batch_real"`."""
        return int(self.config.of_role("batch_real", 0))

    def rows_per_step(self, run: Run) -> dict[int, int]:
        """Return how many decoded rows of every class a step differentiates at most, for the plan; default: all."""
        return run.counts

    def most_rows(self, run: Run) -> int:
        """Return how many decoded rows of all classes together a step differentiates, for the plan.

        Default: the sum over classes. It is less where a batch is drawn from the whole set.
        """
        return sum(self.rows_per_step(run).values())

    def identity(self, run: Run) -> dict[str, Any]:
        """Return what identifies a run besides its options, as JSON values; default: nothing.

        A checkpoint with another identity is refused. If the result depends on the number of steps, return that number
        here; otherwise a run can be resumed with more steps.
        """
        return {}

    def prepare(self, run: Run) -> None:
        """Do what must be done once before there are images, such as recording experts; default: nothing."""

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the set that optimisation starts from; default: what the option of the role `"init"` names."""
        return run.start(self.config.of_role("init", "real"))

    def auxiliary(self, run: Run) -> dict[str, Tensor]:
        """Return tensors by name that are learned with the images but not stored in the result; default: none.

        They must be leaves on the run's device. The engine differentiates, reduces and checkpoints them like the
        images. Each must be in a group of the method's `optimiser` (with `maximize=True` for an adversary).
        """
        return {}

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Return the optimiser of all learned tensors, with one parameter group for each learning rate.

        Default: the optimiser that suits the storage form (SGD for pixels), with the options of the roles
        `"image_rate"`, `"stored_rate"` and `"momentum"`.
        """
        rate = self.config.of_role("stored_rate") or run.decoder.rate(self.config.of_role("image_rate", 1.0))
        groups = [{"params": list(run.synthetic.learned().values()), "lr": rate}]
        return run.decoder.optimiser(groups, momentum=self.config.of_role("momentum", 0.5))

    def rate(self, t: int, values: Sequence[float]) -> float:
        """Return the factor of every learning rate in step `t`; default: 1.

        A factor of 0 skips the update: learned tensors and momentum stay as they are, as if there had been no step.

        Args:
            t: Number of the step, from 0.
            values: Values of the objective in steps 0 to t; the last one is that of this step.
        """
        return 1.0

    @abstractmethod
    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield a `Loss` for each chunk of this process; the sum over all processes is the objective of step `t`.

        At least one process must yield one; to skip an update, return 0 from `rate`. A chunk is one of `run.chunks()`
        or some other part of the set. The graph of a loss is freed before the next loss is computed. If memory is not
        enough, the step starts again with smaller chunks: note that something has been loaded or drawn for a step only
        once it is there.
        """

    def rate_advice(self, run: Run) -> str:
        """Return `rate_remedy`, with lr_stored in place of lr_img where the run's storage form does not use that."""
        uses_image_rate = run.decoder.own_rate is None and self.config.of_role("stored_rate") is None
        return self.rate_remedy if uses_image_rate else self.rate_remedy.replace("lr_img", "lr_stored")

    def adjust_gradients(self, run: Run) -> None:
        """Change the gradients of an update, which are those of all processes together; default: nothing."""

    def after_update(self, run: Run, t: int) -> None:
        """Do what follows an update, such as training the network (an inner loop); default: nothing."""

    def finish(self, run: Run) -> None:
        """Do what must be done once after the last step, such as labelling the images; default: nothing."""

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return what a checkpoint must hold besides learned tensors and optimiser; default: nothing.

        Return only what cannot be rebuilt from the seed and the step.
        """
        return {}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned; default: nothing."""


class Composer(_Declared[ConfigT]):
    """One way to compose a set from real images. Subclass, declare `info` and `Config`, write `compose`.

    There are no steps and no checkpoints. The result has new images, like a learned set, not rows of the source.
    """

    @abstractmethod
    def compose(self, run: Run) -> SyntheticSet:
        """Return the set, in normalised space. Take every random draw from `run.rng` or `run.network`."""


class Selector(_Declared[ConfigT]):
    """One way to choose real rows (a coreset). Subclass, declare `info` and `Config`, write `select`."""

    def features(self, run: Run) -> Tensor | None:
        """Return a feature for every image of the source, in its order: (N, D); default: None, for no features."""
        return None

    @abstractmethod
    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose rows of one class.

        Args:
            features: Features of the class's rows. (N_c, D), with D = 0 if the selector needs none.
            n: Number of rows to choose, in 1..N_c.
            generator: Generator for every random draw.

        Returns:
            `n` distinct row numbers in greedy order, so that any prefix is the choice for a smaller `n`. int64 (n,).
        """


def check_returned(hook: str, name: str, value: object, expected: type) -> None:
    """Raise `TypeError` unless a hook of a method has returned what it should.

    Args:
        hook: Name of the hook.
        name: Name of the method.
        value: What it has returned.
        expected: The type that this should have.
    """
    if not isinstance(value, expected):
        raise TypeError(
            f"{hook} of the method {name!r} should return an object of type {expected.__name__}; got "
            f"{type(value).__name__}"
        )


AnyMethod = type[Method[Any]] | type[Composer[Any]] | type[Selector[Any]]
