"""What a method works with: source, synthetic set, device, keyed generators and networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import datasets
import torch
from torch import Tensor, nn

from hf_condense.base.compiled_code import compiled_if
from hf_condense.base.devices import CompileOption, to_device
from hf_condense.base.interrupts import Interrupts
from hf_condense.base.processes import broadcast
from hf_condense.base.rng import Key, keyed_generator
from hf_condense.condensed.decoders import Decoder
from hf_condense.engine.plan import Plan
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkFactory
from hf_condense.networks.flat import copy_state
from hf_condense.networks.network_facts import NetworkFacts, parameter_count
from hf_condense.source.class_source import ClassSource
from hf_condense.source.whitening import Whitening, fit_whitening

if TYPE_CHECKING:
    from accelerate import Accelerator

MAIN = "main"


@dataclass
class Run:
    """One condensation in progress.

    Attributes:
        source: The user's dataset as images by class, on the device.
        accelerator: Devices and processes.
        factory: Makes networks for this source.
        seed: Seed of every random draw.
        ipc: Budget in images of every class that is condensed, by class index.
        decoder: Storage form of the set, in normalised units.
        make_start: What `start` calls (`initial_set`), which cannot be imported here because it works with runs.
        cache: Whether features and experts may be cached.
        progress: Whether progress bars are shown.
        compile: The caller's choice: True, False or `"auto"`.
        plan: How the work of a step is cut. Default: one class at a time, without compiling.
        interrupts: Signals that ask the run to end.
        synthetic: The learnable set. It does not exist before the method has initialised it.
    """

    source: ClassSource
    accelerator: Accelerator
    factory: NetworkFactory
    seed: int
    ipc: dict[int, int]
    decoder: Decoder
    make_start: Callable[[Run, str | Tensor], SyntheticSet]
    cache: bool = True
    progress: bool = True
    compile: CompileOption = "auto"
    plan: Plan = field(default=Plan(1, 0, False))
    interrupts: Interrupts = field(default_factory=Interrupts)
    synthetic: SyntheticSet = field(init=False)
    _networks: dict[str, _Network] = field(init=False, default_factory=dict)

    @property
    def dataset(self) -> datasets.Dataset:
        """The user's dataset, as it is."""
        return self.source.dataset

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        device: torch.device = self.accelerator.device
        return device

    def start(self, init: str | Tensor) -> SyntheticSet:
        """Return the set that optimisation starts from.

        Args:
            init: `"real"` (random rows), `"noise"`, or the name of a coreset method. Or the rows themselves, sorted by
                class, as many as the set decodes into: their positions in the source, int64 (rows,), or normalised
                images, float32 (rows, C, H, W).

        Raises:
            ValueError: If `init` is none of these.
        """
        return self.make_start(self, init)

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.progress and bool(self.accelerator.is_local_main_process)

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes that are condensed."""
        return tuple(self.ipc)

    @property
    def num_classes(self) -> int:
        """Number of outputs of a network: one for each class name, including classes without rows."""
        return len(self.source.class_names)

    @property
    def counts(self) -> dict[int, int]:
        """Decoded rows of every class that is condensed, by class index."""
        return {c: self.decoder.rows(budget) for c, budget in self.ipc.items()}

    @property
    def task(self) -> Task:
        """The facts that a preset may depend on."""
        return replace(Task.of(self.ipc, self.source), storage=self.decoder.name, expand=self.decoder.expand)

    @cached_property
    def network_facts(self) -> NetworkFacts:
        """What is true of all networks of the run. One is built for it, and not kept."""
        return NetworkFacts.of(self.factory.build(self.seed, "template"), self.source.image_shape)

    def chunks(self) -> Iterator[tuple[int, ...]]:
        """Yield the chunks of classes that this process works on."""
        size = self.plan.classes_per_chunk
        chunks = [self.classes[i : i + size] for i in range(0, len(self.classes), size)]
        yield from chunks[self.accelerator.process_index :: self.accelerator.num_processes]

    def rng(self, *key: Key) -> torch.Generator:
        """Return the CPU generator for a key and the run's seed, for example `run.rng("augment", t)`."""
        return keyed_generator(self.seed, *key)

    def real_batch(self, classes: Sequence[int], n: int, t: int) -> Tensor:
        """Draw the real batch of step `t`: (len(classes), n, C, H, W), normalised.

        If all classes have fewer than `n` images, there are as many as the largest class has: more would only repeat
        them.
        """
        return self.source.sample(classes, self.most_real(n), self.seed, "real", t)

    def most_real(self, n: int) -> int:
        """Return how many real images per class a batch has that should have `n`."""
        return min(n, max(self.source.counts.values()))

    def network(self, *key: Key, weights: Tensor | None = None, trainable: bool = False, slot: str = MAIN) -> nn.Module:
        """Return a network with fresh or given weights, in training mode, on the device.

        Each slot has one module, whose weights every call overwrites, so that compiled code stays valid. A network that
        an earlier call returned for the same slot therefore changes too. Use different slots for networks that must be
        alive at the same time.

        Args:
            *key: Key of the fresh weights, for example `("network", t)`.
            weights: All parameters as one vector (P,), as `parameter_vector` returns them, instead of fresh weights.
                Buffers, such as the statistics of batch norm, are always those of a fresh network.
            trainable: Whether the parameters require gradients.
            slot: Name of the slot.

        Raises:
            ValueError: If the length of `weights` is not the number of parameters.
        """
        module = self._slot(slot).module
        if weights is None or any(True for _ in module.buffers()):
            copy_state(module, self.factory.fresh(self.seed, *key))
        if weights is not None:
            _copy_weights(module, weights)
        return module.train().requires_grad_(trainable)

    def split_for_forward(self, images: Tensor) -> Sequence[Tensor]:
        """Split a batch into parts of at most the planned size.

        They are equal, so that compiled code sees one shape, unless only parts below half that size would be: then the
        last one is smaller.
        """
        limit = min(self.plan.images_per_forward or len(images), len(images))
        sizes = range(limit, limit // 2, -1)
        fewest = math.ceil(len(images) / limit)
        size = next((size for size in sizes if len(images) % size == 0), math.ceil(len(images) / fewest))
        parts: Sequence[Tensor] = images.split(size)
        return parts

    def embed(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the embeddings of images: (N, C, H, W) -> (N, D), float32. The plan limits the size of a forward pass.

        Args:
            images: Normalised images.
            network: What `network` returned; default: the network of the main slot.

        Raises:
            RuntimeError: If no network is given, and none was made in the main slot.
        """
        forward = self._of_module(network).embed
        embedded = [self._in_float32(forward, part) for part in self.split_for_forward(images)]
        return embedded[0] if len(embedded) == 1 else torch.cat(embedded)

    def logits(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the logits of images, in one forward pass: (N, C, H, W) -> (N, K), float32.

        Compiled code cannot be differentiated twice. For second derivatives, call the network itself.

        Args:
            images: Normalised images.
            network: What `network` returned; default: the network of the main slot.

        Raises:
            RuntimeError: If no network is given, and none was made in the main slot.
        """
        return self._in_float32(self.compiled_network(network), images)

    def compiled_network(self, network: nn.Module | None = None) -> nn.Module:
        """Return the form of a network that `train_network` trains: the same weights, compiled if the plan says so."""
        return self._of_module(network).compiled

    def whiten(self) -> None:
        """Whiten the images of the source from now on.

        Raises:
            ValueError: If the images are too large for whitening.
        """
        if self.source.whitening is not None:
            return
        assert isinstance(self.source.images, Tensor)  # methods that whiten decode all pictures
        fitted = fit_whitening(self.source.images, self.device)
        # The last bits could differ from process to process, so all take those of the main one.
        matrix, mean = broadcast(self.accelerator, fitted.matrix), broadcast(self.accelerator, fitted.mean)
        self.source = replace(self.source, whitening=Whitening(matrix, mean))

    def _slot(self, slot: str) -> _Network:
        """Return the network of a slot; the first call makes it."""
        if slot not in self._networks:
            module = self.factory.build(self.seed, "template").to(self.device)
            self._networks[slot] = _Network(module, self.plan.compile)
        return self._networks[slot]

    def _of_module(self, module: nn.Module | None) -> _Network:
        """Return the network that a module belongs to; a module that `network` did not return is never compiled."""
        if module is None:
            if MAIN not in self._networks:
                raise RuntimeError(
                    "run.embed and run.logits use the network that run.network made last; call, for example, "
                    'run.network("network", t) before them, or pass them a network'
                )
            return self._networks[MAIN]
        for network in self._networks.values():
            if network.module is module:
                return network
        return _Network(module, compiles=False)

    def _in_float32(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run a forward pass under the accelerator's autocast, and convert the result to float32."""
        with self.accelerator.autocast():
            return forward(images).float()


@dataclass
class _Network:
    """A module and its compiled parts, which are made when they are first used."""

    module: nn.Module
    compiles: bool

    @cached_property
    def compiled(self) -> nn.Module:
        """The module, compiled if the plan says so."""
        return compiled_if(self.compiles, self.module)

    @cached_property
    def embed(self) -> Callable[[Tensor], Tensor]:
        """The forward pass to embeddings, compiled if the plan says so."""
        embed: Callable[[Tensor], Tensor] = self.module.embed  # type: ignore[assignment]
        return compiled_if(self.compiles, embed)


@torch.no_grad()
def _copy_weights(module: nn.Module, weights: Tensor) -> None:
    """Overwrite a network's parameters with a vector (P,)."""
    if weights.shape != (size := parameter_count(module),):
        raise ValueError(f"weights should be a vector of the network's {size} parameters; got {tuple(weights.shape)}")
    parameters = list(module.parameters())
    parts = to_device(weights, parameters[0].device).split([p.numel() for p in parameters])
    for parameter, values in zip(parameters, parts, strict=True):
        parameter.copy_(values.view_as(parameter))
