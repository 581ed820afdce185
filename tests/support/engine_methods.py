"""Small methods that show what the engine does, and a quick way to run them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import torch
from torch import Tensor

from hf_condense.api import condense_dataset
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.engine.initial import initial_set
from hf_condense.engine.method import Loss, Method, MethodInfo
from hf_condense.engine.options import MethodConfig, option
from hf_condense.engine.registry import register_method, unregister_method
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.testing import toy_dataset

TOY = toy_dataset()


def info(name: str) -> MethodInfo:
    return MethodInfo(name, name, "synthetic", "-", "-", "-", "-", 2024, "https://example.org", "-")


@dataclass(frozen=True)
class PullConfig(MethodConfig):
    steps: int = option(6, "Updates.", ge=1)
    kinds: tuple = option(("a", "b"), "An option that JSON writes as a list.")


class Pull(Method[PullConfig]):
    """Pulls scaled images towards a moving average of real means, with Adam, two learning rates and a state."""

    info = info("pull")
    Config = PullConfig
    poison: ClassVar[tuple[str, int] | None] = None  # "loss" or "gradient", and the step in which it becomes NaN

    def initialise(self, run: Run) -> SyntheticSet:
        synthetic = initial_set(run, "noise")
        synthetic.student_lr = torch.tensor(0.5)
        self.average = torch.zeros(run.num_classes, *run.source.image_shape)
        return synthetic

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        learned = run.synthetic.parameters()
        groups = [{"params": [learned["images"]], "lr": 0.1}, {"params": [learned["student_lr"]], "lr": 0.01}]
        return torch.optim.Adam(groups, lr=7.0)

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        for classes in run.chunks():
            images, labels = run.synthetic.of(classes)
            loss = (run.synthetic.student_lr * images - self.average[labels]).square().mean()
            if self.poison == ("loss", t):
                loss = loss * torch.nan
            if self.poison == ("gradient", t):
                loss = loss + (images * 0).sum().sqrt()  # at 0 the root is 0 and its slope is infinite
            yield loss, loss.detach()

    def after_update(self, run: Run, t: int) -> None:
        self.average.mul_(0.5).add_(run.real_batch(run.classes, 4, t).mean(1))
        self.average.add_(torch.randn(3, 1, 1, 1))  # from the global generator, which the engine seeds in every step

    def state(self, run: Run) -> dict[str, Tensor]:
        return {"average.all": self.average, "average.first": self.average[0], "again": self.average}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        assert torch.equal(state["average.all"], state["again"])
        assert torch.equal(state["average.all"][0], state["average.first"])
        self.average = state["average.all"]


class Watchful(Method[PullConfig]):
    """Records what the engine keeps alive between two chunks, and the gradients of the matched network."""

    info = info("watchful")
    Config = PullConfig
    alive_counts: ClassVar[list[int]] = []
    gradients: ClassVar[list[Tensor | None]] = []

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        network = run.network("network", t, trainable=True)
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def hold(tensor: Tensor) -> Held:
            held = Held(tensor)
            alive.add(held)
            return held

        for c in run.classes:
            self.alive_counts.append(len(alive))
            with torch.autograd.graph.saved_tensors_hooks(hold, lambda held: held.tensor):
                loss = network(run.synthetic.of([c])[0]).square().mean()
            assert len(alive) > 0, "the graph should hold tensors before backward"
            yield loss, loss  # a reported value with a graph must not keep that graph alive
        self.alive_counts.append(len(alive))
        self.gradients.extend(p.grad for p in network.parameters())


class Leap(Method[PullConfig]):
    """Has a finite loss and gradient but a rate with which the update overflows; if `steep`, an infinite gradient."""

    info = info("leap")
    Config = PullConfig
    steep: ClassVar[bool] = False

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        return torch.optim.SGD([run.synthetic.stored["images"]], lr=1e38)

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        images = run.synthetic.stored["images"]
        loss = (images - images.detach()).sqrt().sum() if self.steep else (images * 100).sum()
        yield loss, loss.detach()


METHODS = (Pull, Watchful, Leap)


class Held:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def registered() -> Iterator[None]:
    """Make the methods available by name inside a `with` block."""
    for cls in METHODS:
        register_method(cls)
    try:
        yield
    finally:
        for cls in METHODS:
            unregister_method(cls.info.name)


def condense(method: str = "pull", *, ds: datasets.Dataset = TOY, **options: Any) -> CondensedDataset:
    """Condense a toy dataset in a short time."""
    defaults = {"label_column": "label", "network": "convnet-w8-d1", "compile": False, "progress": False}
    small = condense_dataset(ds.remove_columns("note"), method, 2, **{**defaults, **options})
    assert isinstance(small, CondensedDataset)
    return small


def same(first: CondensedDataset, second: CondensedDataset) -> bool:
    tensors, others = first.synthetic.all(), second.synthetic.all()
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


class Stop(Exception):
    """Ends a run from a callback."""


def stop_after(step: int) -> Any:
    def callback(run: Run, done: int, loss: float) -> None:
        if done == step:
            raise Stop

    return callback
