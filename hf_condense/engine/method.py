"""The protocol of a condensation method: what it declares, and the few functions that hold its mathematics."""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from hf_condense.base.errors import did_you_mean

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

Loss = tuple[Tensor, Tensor]  # (what is differentiated, the value that is reported and checked)


@dataclass(frozen=True)
class MethodInfo:
    """What a method is, for listings, cards and citations.

    Attributes:
        name: Canonical name: lower case letters, digits and `_`.
        title: The method's name in full.
        kind: `"synthetic"` (learns images) or `"coreset"` (chooses real rows).
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
    kind: Literal["synthetic", "coreset"]
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
) -> Any:
    """Declare a field of a config: its default, what it means and which values it takes.

    Args:
        default: The value when nobody gives one.
        help: One or two sentences: meaning, unit, what a larger value costs.
        ge: Smallest value allowed.
        gt: The value must be larger than this.
        choices: The only values allowed.
    """
    return dataclasses.field(default=default, metadata={"help": help, "ge": ge, "gt": gt, "choices": choices})


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
            _check_option(f.name, getattr(self, f.name), hints[f.name], f.metadata)

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


def _check_option(name: str, value: Any, hint: Any, rules: Mapping[str, Any]) -> None:
    """Check one value of a config against its type and its declared range."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return
    accepted = tuple({float: (int, float)}.get(kind, (kind,)) for kind in allowed if kind is not type(None))
    flat = tuple(kind for kinds in accepted for kind in kinds)
    if not isinstance(value, flat) or (isinstance(value, bool) and bool not in flat):
        spelled = " or ".join(kind.__name__ for kind in allowed)
        raise TypeError(f"{name} should be {spelled}; got {value!r} ({type(value).__name__})")
    if rules.get("choices") is not None and value not in rules["choices"]:
        hint_text = did_you_mean(value, rules["choices"]) if isinstance(value, str) else ""
        raise ValueError(f"{name} should be one of {', '.join(map(repr, rules['choices']))}; got {value!r}{hint_text}")
    if rules.get("ge") is not None and not value >= rules["ge"]:
        raise ValueError(f"{name} should be at least {rules['ge']}; got {value!r}")
    if rules.get("gt") is not None and not value > rules["gt"]:
        raise ValueError(f"{name} should be larger than {rules['gt']}; got {value!r}")


@dataclass(frozen=True)
class Setting:
    """What a preset may depend on.

    Attributes:
        ipc: Stored images per class (the largest, if classes differ).
        num_classes: Classes that are condensed.
        image_shape: (channels, height, width).
        std: Standard deviation of the pixels in [0, 1], mean over channels: a unit of the normalised images.
    """

    ipc: int
    num_classes: int
    image_shape: tuple[int, int, int]
    std: float = 0.25


@dataclass(frozen=True)
class Preset:
    """A named set of options.

    Attributes:
        description: What it is good for and where the values come from.
        values: Gives the options for a setting: the method's own, `network`, `factor` and `pixel_range`.
    """

    description: str
    values: Callable[[Setting], dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(ABC, Generic[ConfigT]):
    """One way to learn a synthetic set. Subclass, declare `info` and `Config`, write `losses`.

    Everything that is not mathematics (backward, reduction over processes, optimiser, clamp, progress, checkpoints,
    resume, callbacks) is the engine's. Every draw must come from `run.rng` or `run.network`, keyed by step, so that a
    resumed run repeats the straight one bit for bit.
    """

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int] = 1
    """Raised when the same options give other results."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    reduction: ClassVar[Literal["sum", "mean"]] = "sum"
    """How gradients of processes combine: `sum` if classes or chunks are shared out, `mean` for replicas."""
    graphs: ClassVar[int] = 1
    """What differentiating an image costs, in forwards of it; larger where gradients themselves are differentiated."""

    def __init__(self, config: ConfigT) -> None:
        """Keep the options."""
        self.config = config

    @property
    def batch_real(self) -> int:
        """Real rows of a class that a step embeds, for the plan; default: the option of that name."""
        return int(getattr(self.config, "batch_real", 0))

    def initialise(self, run: Run) -> SyntheticSet:
        """Make the set that optimisation starts from; default: as the option `init` says."""
        return run.start(run, getattr(self.config, "init", "real"))

    def prepare(self, run: Run) -> None:
        """Do what must be done once before the first step, such as recording experts; default: nothing."""

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Make the optimiser of the synthetic set, with one parameter group for each learning rate.

        Default: SGD on the images with the options `lr_img` and `momentum`.
        """
        groups = [{"params": [run.synthetic.images], "lr": getattr(self.config, "lr_img", 1.0)}]
        return torch.optim.SGD(groups, momentum=getattr(self.config, "momentum", 0.5))

    def rate(self, t: int) -> float:
        """Return what every learning rate is multiplied by in step `t`; default: 1."""
        return 1.0

    @abstractmethod
    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield (loss, reported) for this process's chunks; the sum over all processes is the objective of step `t`.

        One pair for each chunk of classes (`run.chunks()`) or of the set. `loss` is what is differentiated: its
        graph is freed before the next one is asked for. `reported` is the value for progress and the NaN check.
        """

    def after_update(self, run: Run, t: int) -> None:
        """Do what follows an update, such as training the network (an inner loop); default: nothing."""

    def finish(self, run: Run) -> None:
        """Do what must be done once after the last step, such as labelling the images; default: nothing."""

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return what a checkpoint must hold beyond the set and the optimiser; default: nothing.

        Only what cannot be rebuilt from (seed, t).
        """
        return {}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned; default: nothing."""


class Selector(ABC, Generic[ConfigT]):
    """One way to choose real rows (a coreset). Subclass, declare `info` and `Config`, write `select`."""

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]]
    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self, config: ConfigT) -> None:
        """Keep the options."""
        self.config = config

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


AnyMethod = type[Method[Any]] | type[Selector[Any]]
