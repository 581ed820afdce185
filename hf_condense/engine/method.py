"""The protocol of a condensation method: what it declares, and the few functions that it defines."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hf_condense.base.checks import number, one_of
from hf_condense.base.errors import did_you_mean
from hf_condense.engine.plan import CUTS
from hf_condense.engine.task import Task
from hf_condense.networks.augment import Augmentation

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet


class Loss(NamedTuple):
    """What a method yields for each of its chunks.

    Attributes:
        loss: The tensor that is differentiated: the objective, or a surrogate with the right gradient. ().
        value: The value of the objective, which is reported and checked for NaN. ().
    """

    loss: Tensor
    value: Tensor


ROLES = ("batch_real", "image_rate", "momentum", "stored_rate", "init", "augment")
"""Roles that an option can have for the engine; see `option`."""


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

    @property
    def citation(self) -> str:
        """Return the line that cites the paper: title, authors, paper, venue, year and link."""
        return f'{self.title} ({self.name}): {self.authors}, "{self.paper}", {self.venue} {self.year}, {self.link}'


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    valid: Callable[[Any], object] | None = None,
    choices: tuple[Any, ...] | None = None,
    role: str | None = None,
    tiny: Any = None,
    needs: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
    """Declare a field of a config: its default, its meaning and the values that it accepts.

    Args:
        default: The value that is used if neither the caller nor a preset gives one.
        help: One or two sentences: meaning, unit, what a larger value costs.
        ge: Smallest value allowed.
        gt: The value must be larger than this.
        le: Largest value allowed.
        lt: The value must be smaller than this.
        valid: Function that raises `ValueError` for a value that cannot be used.
        choices: The only values allowed.
        role: What the engine uses the option for, if anything: `"batch_real"` (real images per class and step, for the
            memory plan), `"image_rate"` and `"momentum"` (of the images' optimiser), `"stored_rate"` (of
            what is stored, if not None), `"init"` (what to start from) or `"augment"` (families of augmentation, or
            "none", which is checked). The option `steps` needs no role.
        tiny: A value with which a run on a few toy images takes seconds, for `check_method`. Default: `default`.
        needs: Other options by name, with the values that let this one have an effect. A caller who gives it without
            them gets an error; what a preset gives is then left without effect.

    Raises:
        ValueError: If `role` is unknown.
    """
    if role is not None:
        one_of("role", role, ROLES)
    if role == "augment":
        valid = valid or Augmentation.parse
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt, "valid": valid, "choices": choices}
    metadata = {"help": help, **bounds, "role": role, "tiny": tiny, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


ConfigSelf = TypeVar("ConfigSelf", bound="MethodConfig")


@dataclass(frozen=True)
class MethodConfig:
    """Base class of the options of a method. Declare each field with `option`; the constructor checks the values.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of its range.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = _checked_option(f.name, getattr(self, f.name), hints[f.name], f.metadata)
            object.__setattr__(self, f.name, value)

    @classmethod
    def build(cls: type[ConfigSelf], options: Mapping[str, Any], arguments: Iterable[str] = ()) -> ConfigSelf:
        """Make a config from options by name.

        Args:
            options: The options.
            arguments: Other names that the caller may have meant, for the message.

        Raises:
            TypeError: If an option is unknown. The message gives the nearest name and lists all names.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                listing = f"options: {', '.join(names)}" if names else "this method has no options"
                raise TypeError(f"unknown option {name!r}{did_you_mean(name, [*names, *arguments])}; {listing}")
        return cls(**options)

    @classmethod
    def names_that_may_be_none(cls) -> frozenset[str]:
        """Return the names of the options, beside `steps`, for which None is a value."""
        hints = typing.get_type_hints(cls)
        names = (f.name for f in dataclasses.fields(cls) if type(None) in typing.get_args(hints[f.name]))
        return frozenset(names) - {"steps"}

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Return the options with which a run on toy images takes seconds, by name."""
        return {f.name: f.metadata["tiny"] for f in dataclasses.fields(cls) if f.metadata.get("tiny") is not None}

    @classmethod
    def unmet_need(cls, name: str, options: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
        """Return what makes an option void, if anything: another option, and the values of it that would be right.

        Args:
            name: The option.
            options: The values of options by name; one that is missing has its default.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        needs: Mapping[str, tuple[Any, ...]] = fields[name].metadata.get("needs") or {}
        for other, suitable in needs.items():
            if other in fields and options.get(other, fields[other].default) not in suitable:
                choices = fields[other].metadata.get("choices") or suitable
                return other, tuple(value for value in suitable if value in choices)
        return None

    def of_role(self, role: str, default: Any = None) -> Any:
        """Return the value of the option that declares a role, or the default if no option declares it."""
        name = self.name_of_role(role)
        return default if name is None else getattr(self, name)

    @classmethod
    def name_of_role(cls, role: str) -> str | None:
        """Return the name of the option that declares a role, or None if no option declares it."""
        return next((f.name for f in reversed(dataclasses.fields(cls)) if f.metadata.get("role") == role), None)


def _checked_option(name: str, value: Any, hint: Any, rules: Mapping[str, Any]) -> Any:
    """Return one value of a config as its declared type, if it is of that type and in its range.

    Numbers of NumPy become Python's own, so that a recipe can be written as JSON.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    value = _plain_number(value)
    accepted = tuple(kind for kind in kinds if kind is not type(None))
    fits = type(value) in accepted or (type(value) is int and float in accepted)
    if not fits and not (isinstance(value, accepted) and not isinstance(value, bool)):
        spelled = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} should be {spelled}; got {value!r} ({type(value).__name__})")
    if rules.get("choices") is not None:
        one_of(name, value, rules["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} should be finite; got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        bounds = {"least": "ge", "above": "gt", "most": "le", "below": "lt"}
        number(name, value, **{bound: rules.get(rule) for bound, rule in bounds.items()})
    if rules.get("valid") is not None:
        try:
            rules["valid"](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return value


def _plain_number(value: Any) -> Any:
    """Return a NumPy scalar as Python's own number or truth value, anything else as it is."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value


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

    reduction: ClassVar[Literal["sum", "mean"]] = "sum"
    """How the gradients of processes combine: `"sum"` if processes share the classes, `"mean"` if they are replicas."""
    exchanges_in_losses: ClassVar[bool] = False
    """Whether `losses` exchanges values with other processes; a step that lacks memory is then not repeated."""
    cost_in_forwards: ClassVar[int] = 1
    """Cost of differentiating an image, in forward passes; larger where gradients themselves are differentiated."""

    rate_remedy: ClassVar[str] = "such as lr_img"
    """Which learning rates may be too large if a step is not finite; see `rate_advice`."""
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
        return run.start(run, self.config.of_role("init", "real"))

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

        A chunk is one of `run.chunks()` or some other part of the set. The graph of a loss is freed before the next
        loss is computed. If memory is not enough, the step starts again with smaller chunks: note that something has
        been loaded or drawn for a step only once it is there.
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


AnyMethod = type[Method[Any]] | type[Composer[Any]] | type[Selector[Any]]
