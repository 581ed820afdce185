"""What a method is handed: source, synthetic set, device, keyed generators and fresh networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import datasets
import torch
from torch import Tensor, nn

from hf_condense.base.devices import CompileOption
from hf_condense.base.rng import Key, keyed_generator
from hf_condense.engine.plan import Plan
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.factory import NetworkFactory
from hf_condense.source.class_source import ClassSource
from hf_condense.source.whitening import Whitening, fit_whitening

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Run:
    """One condensation in progress.

    Attributes:
        dataset: The user's dataset, as it is.
        source: Its images by class, on the device.
        accelerator: Devices and processes.
        factory: Makes networks for this source.
        seed: Seed of every draw.
        ipc: Stored images for every class that is condensed, by class index.
        factor: Multi-formation factor.
        clamped: Whether the images stay in the valid pixel range.
        plan: How the work of a step is cut.
        start: Makes the set that optimisation starts from, by the name of a start (`initial_set`).
        cache: Whether features and experts may be cached.
        progress: Whether progress bars are shown.
        compile: What the caller said of compiling.
        synthetic: The learnable set; there once the method has initialised it.
    """

    dataset: datasets.Dataset
    source: ClassSource
    accelerator: Accelerator
    factory: NetworkFactory
    seed: int
    ipc: dict[int, int]
    factor: int
    clamped: bool
    plan: Plan
    start: Callable[[Run, str], SyntheticSet]
    cache: bool = True
    progress: bool = True
    compile: CompileOption = "auto"
    synthetic: SyntheticSet = field(init=False)

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes that are condensed."""
        return tuple(self.ipc)

    @property
    def num_classes(self) -> int:
        """Outputs of a network: all class names, absent ones included."""
        return len(self.source.class_names)

    def chunks(self) -> Iterator[tuple[int, ...]]:
        """Yield the chunks of classes that fall to this process."""
        size = self.plan.classes_per_chunk
        cut = [self.classes[i : i + size] for i in range(0, len(self.classes), size)]
        yield from cut[self.accelerator.process_index :: self.accelerator.num_processes]

    def rng(self, *key: Key) -> torch.Generator:
        """Return the CPU generator of a key, for example `run.rng("augment", t)`; the run's seed is part of it."""
        return keyed_generator(self.seed, *key)

    def real(self, classes: Sequence[int], n: int, t: int) -> Tensor:
        """Draw the real batch of step `t`: (len(classes), n, C, H, W), normalised."""
        return self.source.sample(classes, n, self.seed, "real", t)

    def network(self, *key: Key, trainable: bool = False) -> nn.Module:
        """Return the run's network with fresh weights of a key, in training mode, on the device.

        It is one module whose weights are overwritten: what was returned before changes too. Compiled code stays valid.

        Args:
            *key: Address of the weights, for example `("network", t)`.
            trainable: Whether its parameters require gradients.
        """
        fresh = self.factory.build(self.seed, *key)
        self._network.load_state_dict(fresh.state_dict())
        return self._network.train().requires_grad_(trainable)

    def parts(self, images: Tensor) -> Sequence[Tensor]:
        """Cut a batch into as many images at a time as the plan says; of equal size, so that compiled code sees few."""
        most = self.plan.images_per_forward or len(images)
        cut: Sequence[Tensor] = images.split(-(-len(images) // -(-len(images) // most)))
        return cut

    def embed(self, images: Tensor) -> Tensor:
        """Embed images with the run's network, as many at a time as the plan says: (N, C, H, W) -> (N, D), float32."""
        parts = self.parts(images)
        return torch.cat([self._embed(part) for part in parts]) if len(parts) > 1 else self._embed(images)

    def logits(self, images: Tensor) -> Tensor:
        """Classify images with the run's network, all at once: (N, C, H, W) -> (N, K), float32.

        Compiled code cannot be differentiated twice; for second derivatives call the network itself.
        """
        with self.accelerator.autocast():
            found: Tensor = self.trainee(images)
        return found.float()

    def whiten(self) -> None:
        """Let the source hand out whitened images from now on.

        Raises:
            ValueError: If the images are too large for it.
        """
        if self.source.whitening is not None:
            return
        fitted = fit_whitening(self.source.images, self.device)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            fitted = Whitening(broadcast(fitted.matrix), broadcast(fitted.mean))  # the last bits could differ
        self.source = replace(self.source, whitening=fitted)

    def column(self, name: str) -> Tensor:
        """Return a numeric column of the dataset in the source's order, as float32 (N, D).

        Raises:
            ValueError: If there is no such column, or its rows are not vectors of one length.
        """
        if name not in self.dataset.column_names:
            raise ValueError(f"{name!r} is no column of the dataset; columns: {', '.join(self.dataset.column_names)}")
        try:
            values = torch.tensor(self.dataset.with_format(None)[:][name], dtype=torch.float32)
        except (ValueError, TypeError) as error:
            raise ValueError(f"column {name!r} should hold vectors of one length; {error}") from error
        return values.reshape(len(values), -1)[self.source.rows]

    @cached_property
    def _network(self) -> nn.Module:
        """The module whose weights are overwritten."""
        return self.factory.build(self.seed, "template").to(self.device)

    @cached_property
    def trainee(self) -> nn.Module:
        """The run's network as `train_network` wants it: the same weights, compiled if the plan says so."""
        net: nn.Module = torch.compile(self._network, dynamic=False) if self.plan.compile else self._network  # type: ignore[assignment]
        return net

    @cached_property
    def _embed(self) -> Callable[[Tensor], Tensor]:
        """The forward pass to embeddings, compiled if the plan says so, under the accelerator's autocast."""
        embed: Callable[[Tensor], Tensor] = self._network.embed  # type: ignore[assignment]
        forward = torch.compile(embed, dynamic=False) if self.plan.compile else embed

        def run_forward(images: Tensor) -> Tensor:
            with self.accelerator.autocast():
                return forward(images).float()

        return run_forward
