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
from hf_condense.engine.method import Loss, Method, MethodConfig, MethodInfo, option
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
    """Pulls the scaled images towards a moving average of real means: Adam, two rates, and a state of its own."""

    info = info("pull")
    Config = PullConfig
    poison: ClassVar[tuple[str, int] | None] = None  # what goes wrong, and at which step

    def initialise(self, run: Run) -> SyntheticSet:
        made = initial_set(run, "noise")
        made.student_lr = torch.tensor(0.5)
        self.average = torch.zeros(run.num_classes, *run.source.image_shape)
        return made

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
                loss = loss + (images * 0).sum().sqrt()  # the slope of the root at 0 is infinite, its value is 0
            yield loss, loss.detach()

    def after_update(self, run: Run, t: int) -> None:
        self.average.mul_(0.5).add_(run.real_batch(run.classes, 4, t).mean(1))
        self.average.add_(torch.randn(3, 1, 1, 1))  # of the global generator, which the engine seeds step by step

    def state(self, run: Run) -> dict[str, Tensor]:
        return {"average.all": self.average, "average.first": self.average[0], "again": self.average}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        assert torch.equal(state["average.all"], state["again"])
        assert torch.equal(state["average.all"][0], state["average.first"])
        self.average = state["average.all"]


class Watchful(Method[PullConfig]):
    """Looks at what the engine does between two chunks and to the matched network."""

    info = info("watchful")
    Config = PullConfig
    kept_alive: ClassVar[list[int]] = []
    gradients: ClassVar[list[Tensor | None]] = []

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        network = run.network("network", t, trainable=True)
        alive: weakref.WeakSet[Held] = weakref.WeakSet()

        def hold(tensor: Tensor) -> Held:
            held = Held(tensor)
            alive.add(held)
            return held

        for c in run.classes:
            self.kept_alive.append(len(alive))
            with torch.autograd.graph.saved_tensors_hooks(hold, lambda held: held.tensor):
                loss = network(run.synthetic.of([c])[0]).square().mean()
            assert len(alive) > 0, "the graph should hold tensors before backward"
            yield loss, loss  # a reported value that is attached must not keep the graph either
        self.kept_alive.append(len(alive))
        self.gradients.extend(p.grad for p in network.parameters())


class Leap(Method[PullConfig]):
    """A finite loss with a finite gradient, but a rate with which the update overflows; or with an infinite one."""

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
    """Make the methods available by name for a while."""
    for cls in METHODS:
        register_method(cls)
    try:
        yield
    finally:
        for cls in METHODS:
            unregister_method(cls.info.name)


def condense(method: str = "pull", *, ds: datasets.Dataset = TOY, **options: Any) -> CondensedDataset:
    """Condense a toy dataset quickly."""
    usual = {"label_column": "label", "network": "convnet-w8-d1", "compile": False, "progress": False}
    made = condense_dataset(ds.remove_columns("note"), method, 2, **{**usual, **options})
    assert isinstance(made, CondensedDataset)
    return made


def same(first: CondensedDataset, second: CondensedDataset) -> bool:
    a, b = first.synthetic, second.synthetic
    return (
        torch.equal(a.images, b.images)
        and a.optional().keys() == b.optional().keys()
        and all(torch.equal(value, b.optional()[name]) for name, value in a.optional().items())
    )


class Stop(Exception):
    """Ends a run from a callback."""


def stop_after(step: int) -> Any:
    def callback(run: Run, done: int, loss: float) -> None:
        if done == step:
            raise Stop

    return callback
