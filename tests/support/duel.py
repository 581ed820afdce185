"""A method of the tests that uses every hook of the protocol: an adversary, a pool of trained networks, a plateau."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_condense import Loss, Method, MethodConfig, MethodInfo, Run, option, register_method
from hf_condense.engine.registry import unregister_method
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.flat import parameter_vector
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet


@dataclass(frozen=True)
class DuelConfig(MethodConfig):
    """Options with names of their own: the engine knows them by their roles."""

    steps: int = option(20, "Updates of the images.", ge=1, tiny=4)
    rows: int = option(32, "Real images per class and step.", ge=1, role="batch_real", tiny=6)
    speed: float = option(0.5, "Learning rate of the images.", gt=0, role="image_rate")
    inertia: float = option(0.25, "Momentum of the images.", ge=0, role="momentum")
    begin: str = option("random", "What to start from.", role="init")
    families: str = option("color_crop", "Augmentation that evaluation takes over.", role="augment")
    adversary_speed: float = option(0.1, "Learning rate of the adversary.", gt=0)
    pool: int = option(3, "Trained networks.", ge=1, tiny=2)
    patience: int = option(5, "Steps without a smaller value after which the rates are halved.", ge=1, tiny=1)


class Duel(Method[DuelConfig]):
    """Matches means of features in directions that an adversary picks, under blends of first and trained weights."""

    info = MethodInfo(
        name="duel",
        title="Duel",
        kind="synthetic",
        summary="Matches the directions in which real and synthetic features differ most.",
        paper="A test",
        authors="Nobody",
        venue="none",
        year=2026,
        link="https://example.org/duel",
        cost="two forwards of the real batch",
    )
    Config = DuelConfig

    def identity(self, run: Run) -> dict[str, Any]:
        return {"parameters": len(parameter_vector(run.factory.build("identity")))}

    def prepare(self, run: Run) -> None:
        self.pairs = [self._pair(run, number) for number in range(self.config.pool)]

    def _pair(self, run: Run, number: int) -> tuple[Tensor, Tensor]:
        """Return the first and the trained weights of a network of the pool."""
        network = run.network("pool", number, trainable=True)
        first = parameter_vector(network)
        real = TrainingSet(run.source, run.source.labels, run.num_classes)
        train_network(network, real, RECIPES["dc"], run.seed, "pool", number, max_updates=3)
        return first, parameter_vector(network)

    def initialise(self, run: Run) -> SyntheticSet:
        synthetic = super().initialise(run)
        network = run.network(weights=self.pairs[0][1])  # a start that comes from what `prepare` made
        with torch.no_grad():
            synthetic.soft_labels = run.logits(synthetic.all()[0], network)
        return synthetic

    def auxiliary(self, run: Run) -> dict[str, Tensor]:
        features = run.embed(run.source.at(torch.arange(2)), run.network(weights=self.pairs[0][0])).shape[1]
        self.directions = torch.randn(features, 4, generator=run.rng("directions")).to(run.device)
        return {"directions": self.directions}

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        optimiser = super().optimiser(run)
        optimiser.add_param_group(
            {"params": [self.directions], "lr": self.config.adversary_speed, "maximize": True, "momentum": 0.0}
        )
        return optimiser

    def rate(self, t: int, values: Sequence[float]) -> float:
        drops, best, waited = 0, float("inf"), 0
        for value in values:
            waited = 0 if value < best else waited + 1
            best = min(best, value)
            if waited >= self.config.patience:
                drops, waited = drops + 1, 0
        return 0.5**drops

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        first, trained = self.pairs[int(torch.randint(len(self.pairs), (), generator=run.rng("pair", t)))]
        blend = torch.lerp(first, trained, float(torch.rand((), generator=run.rng("blend", t))))
        networks = [run.network(weights=blend), run.network(weights=trained, slot="trained")]  # alive at once
        for classes in run.chunks():
            real = run.real_batch(classes, self.batch_real, t)  # (k, B, C, H, W)
            loss = torch.zeros((), device=run.device)
            for network in networks:
                with torch.no_grad():
                    means = run.embed(real.flatten(0, 1), network).unflatten(0, real.shape[:2]).mean(1)  # (k, D)
                rows, labels = run.synthetic.of(classes)
                features = run.embed(rows, network)
                own = torch.stack([features[labels == c].mean(0) for c in classes])
                loss = loss + ((means - own) @ torch.nn.functional.normalize(self.directions, dim=0)).square().sum()
            yield Loss(loss, loss.detach())


@contextmanager
def registered() -> Iterator[None]:
    """Make the method available by name for a while."""
    register_method(Duel)
    try:
        yield
    finally:
        unregister_method("duel")
