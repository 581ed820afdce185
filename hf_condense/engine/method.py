"""The protocol of a condensation method: what it declares, and the few functions that hold its mathematics."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hf_condense.base.checks import number, one_of
from hf_condense.base.errors import did_you_mean
from hf_condense.engine.task import Task

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet


class Loss(NamedTuple):
    """What a method yields for each of its chunks.

    Attributes:
        loss: What is differentiated: the objective, or a surrogate with the right gradient. ().
        value: The objective's value, which is reported and checked for NaN. ().
    """

    loss: Tensor
    value: Tensor


ROLES = ("batch_real", "image_rate", "momentum", "init", "augment")
"""What the engine needs to know of a method's options; see `option`."""


@dataclass(frozen=True)
class MethodInfo:
    """What a method is, for listings, cards and citations.

    Attributes:
        name: Canonical name: lower case letters, digits and `_`.
        title: The method's name in full.
        kind: `"synthetic"` (learns images), `"composed"` (puts them together from real ones, once) or `"coreset"`
            (chooses real rows).
        summary: One sentence on what it does.
        paper: Title of the paper.
        authors: Authors as they are cited.
        venue: Where it was published.
        year: When it was published.
        link: Address of the paper.
        cost: What a step costs, in words.
        aliases: Other names under which it can be asked for.
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
        """The line that cites the paper: title, authors, paper, venue, year and link."""
        return f'{self.title} ({self.name}): {self.authors}, "{self.paper}", {self.venue} {self.year}, {self.link}'


def option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    role: str | None = None,
    tiny: Any = None,
) -> Any:
    """Declare a field of a config: its default, what it means and which values it takes.

    Args:
        default: The value when nobody gives one.
        help: One or two sentences: meaning, unit, what a larger value costs.
        ge: Smallest value allowed.
        gt: The value must be larger than this.
        choices: The only values allowed.
        role: What the engine uses the option for, if it does: `"batch_real"` (real images per class and step, by which
            memory is planned), `"image_rate"` and `"momentum"` (of the images' optimiser), `"init"` (what to start
            from) or `"augment"` (families of augmentation, or "none"). Updates of the images are the option `steps`.
        tiny: A value with which a run on a few toy images takes seconds, for `check_method`. Default: `default`.

    Raises:
        ValueError: If there is no such role.
    """
    if role is not None:
        one_of("role", role, ROLES)
    metadata = {"help": help, "ge": ge, "gt": gt, "choices": choices, "role": role, "tiny": tiny}
    return dataclasses.field(default=default, metadata=metadata)


ConfigSelf = TypeVar("ConfigSelf", bound="MethodConfig")


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's options. Declare each field with `option`; values are checked when it is made.

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
    def build(cls: type[ConfigSelf], options: Mapping[str, Any]) -> ConfigSelf:
        """Make a config from options by name.

        Raises:
            TypeError: If an option is unknown; the message gives the nearest name and lists all.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                listed = f"options: {', '.join(known)}" if known else "this method has no options"
                raise TypeError(f"unknown option {name!r}{did_you_mean(name, known)}; {listed}")
        return cls(**options)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """Return the options that make a run take seconds, by name."""
        return {f.name: f.metadata["tiny"] for f in dataclasses.fields(cls) if f.metadata.get("tiny") is not None}

    def of_role(self, role: str, default: Any = None) -> Any:
        """Return the value of the option that declares a role, or the default if no option does."""
        names = [f.name for f in dataclasses.fields(self) if f.metadata.get("role") == role]
        return getattr(self, names[-1]) if names else default


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
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number(name, value, least=rules.get("ge"), above=rules.get("gt"))
    return value


def _plain_number(value: Any) -> Any:
    """Return a NumPy scalar as Python's own number or truth value, anything else as it is."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value


@dataclass(frozen=True)
class Preset:
    """A named set of options.

    Attributes:
        description: What it is good for and where the values come from.
        values: Gives the options for a task: the method's own, `network`, `storage`, `expand`, `factor` and
            `pixel_range`.
    """

    description: str
    values: Callable[[Task], dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class _Declared(ABC, Generic[ConfigT]):
    """What all kinds of methods declare."""

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int] = 1
    """Increment when the same options start to give different results."""
    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self, config: ConfigT) -> None:
        """Keep the options."""
        self.config = config

    @property
    def label_temperature(self) -> float | None:
        """Temperature of the soft labels that the set will store; default: None, it stores none."""
        return None


class Method(_Declared[ConfigT]):
    """One way to learn a synthetic set. Subclass, declare `info` and `Config`, write `losses`.

    Everything that is not mathematics (backward, reduction over processes, optimiser, valid range, progress,
    checkpoints, resume, callbacks) is the engine's. Every draw must come from `run.rng` or `run.network`, keyed by
    step, so that a resumed run repeats the straight one bit for bit.

    The life of a method, in the order in which the engine calls it:

    1. `prepare(run)`: what is needed before there are images, such as experts or a pool of networks.
    2. `initialise(run)`: the first set; `run.synthetic` is there from now on.
    3. `auxiliary(run)`: what else is learned, but not stored in the result.
    4. `optimiser(run)`: the optimiser of all that is learned.
    5. `load_state(run, state)`: only if the run goes on from a checkpoint.
    6. In every step t: `losses(run, t)`, whose gradients are summed over chunks and processes; `rate(t, values)`; the
       update; `after_update(run, t)`. `state(run)` is asked for whenever a checkpoint is written.
    7. `finish(run)`: once, after the last step.
    """

    reduction: ClassVar[Literal["sum", "mean"]] = "sum"
    """How gradients of processes combine: `sum` if classes or chunks are shared out, `mean` for replicas."""
    cost_in_forwards: ClassVar[int] = 1
    """What differentiating an image costs, in forwards of it; larger where gradients themselves are differentiated."""

    @property
    def batch_real(self) -> int:
        """Real images of a class that a step embeds, for the plan; default: the option of the role `"batch_real"`."""
        return int(self.config.of_role("batch_real", 0))

    def identity(self, run: Run) -> dict[str, Any]:
        """Return what else makes a run this run, beside the options: a checkpoint of another identity is refused.

        JSON values. Default: nothing. A method whose result depends on the number of steps returns that number here;
        for others a run can be resumed with more steps.
        """
        return {}

    def prepare(self, run: Run) -> None:
        """Do what must be done once before there are images, such as recording experts; default: nothing."""

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the set that optimisation starts from; default: as the option of the role `"init"` says."""
        return run.start(run, self.config.of_role("init", "real"))

    def auxiliary(self, run: Run) -> dict[str, Tensor]:
        """Return tensors by name that are learned with the images but not stored in the result; default: none.

        They are leaves on the device. The engine differentiates, reduces and checkpoints them like the images; the
        method's `optimiser` must have each in a group (`maximize=True` for an adversary).
        """
        return {}

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Return the optimiser of all that is learned, with one parameter group for each learning rate.

        Default: what suits the storage form (SGD for pixels), with the options of the roles `"image_rate"` and
        `"momentum"`.
        """
        rate = self.config.of_role("image_rate", 1.0) * run.decoder.rate_scale
        groups = [{"params": list(run.synthetic.learned().values()), "lr": rate}]
        return run.decoder.optimiser(groups, momentum=self.config.of_role("momentum", 0.5))

    def rate(self, t: int, values: Sequence[float]) -> float:
        """Return what every learning rate is multiplied by in step `t`; default: 1.

        Args:
            t: Number of the step, from 0.
            values: Values of the objective in the steps before, and in this one: t + 1 of them.
        """
        return 1.0

    @abstractmethod
    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield a `Loss` for each of this process's chunks; the sum over all processes is the objective of step `t`.

        One for each chunk of classes (`run.chunks()`) or of the set. The graph of a loss is freed before the next one
        is asked for.
        """

    def after_update(self, run: Run, t: int) -> None:
        """Do what follows an update, such as training the network (an inner loop); default: nothing."""

    def finish(self, run: Run) -> None:
        """Do what must be done once after the last step, such as labelling the images; default: nothing."""

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beyond what is learned and the optimiser; default: nothing.

        Only what cannot be rebuilt from (seed, t).
        """
        return {}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned; default: nothing."""


class Composer(_Declared[ConfigT]):
    """One way to put a set together from real images, at once. Subclass, declare `info` and `Config`, write `compose`.

    There are no steps and no checkpoints. The result is a set like a learned one: images of its own, not rows of the
    source.
    """

    @abstractmethod
    def compose(self, run: Run) -> SyntheticSet:
        """Return the set, in normalised space; every draw must come from `run.rng` or `run.network`."""


class Selector(_Declared[ConfigT]):
    """One way to choose real rows (a coreset). Subclass, declare `info` and `Config`, write `select`."""

    def features(self, run: Run) -> Tensor | None:
        """Return a feature for every image of the source, in its order, (N, D); default: None, nothing is needed."""
        return None

    @abstractmethod
    def select(self, features: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Choose rows of one class.

        Args:
            features: Features of the class's rows; (N_c, D), with D = 0 if the selector needs none.
            n: Rows to choose, in 1..N_c.
            generator: For whatever is drawn.

        Returns:
            `n` distinct row numbers in greedy order: any prefix is the choice for a smaller `n`. int64 (n,).
        """


AnyMethod = type[Method[Any]] | type[Composer[Any]] | type[Selector[Any]]
