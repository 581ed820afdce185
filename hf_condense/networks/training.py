"""Train a network on labelled images: the one loop that follows a recipe."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_condense.base.memory import is_out_of_memory, memory_budget
from hf_condense.base.processes import reduce
from hf_condense.base.rng import Key, seeded_globals
from hf_condense.networks.batches import rows_of_updates, training_batch, with_last_row_repeated, with_zero_rows
from hf_condense.networks.losses import tempered_cross_entropy
from hf_condense.networks.network_facts import activation_bytes, has_batch_statistics
from hf_condense.networks.network_stack import NetworkStack
from hf_condense.networks.sharpness import sharpen
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")

# Measured on one and two CPU cores (images of 32 x 32): training is fastest in chunks of about 24 MiB of activations.
# At width 32, where these are 64 images, it takes half the time of whole batches of 100 and a third of that of 256.
# Wider networks are fastest in chunks of 32 images. Where gradients are differentiated, smaller chunks are.
_CPU_CHUNK_BYTES = 26 * 2**20
_CPU_CHUNK = 32
_CPU_MOST_CHUNK_BYTES = 64 * 2**20
_CPU_SECOND_DERIVATIVE_BYTES = 16 * 2**20


def chunk_size(net: nn.Module, image_shape: tuple[int, ...], batch: int, *, second_derivatives: bool = False) -> int:
    """Return how many images of a batch go through a network at a time. It changes the gradient by rounding only.

    The rule depends on shapes, device and memory: on a CPU, chunks that stay in its cache; elsewhere, the whole batch
    if it fits into memory. Networks with batch statistics always see the whole batch.

    Args:
        net: The network, not compiled, on the device it will run on.
        image_shape: (C, H, W).
        batch: Images in a batch, >= 1.
        second_derivatives: Whether gradients of the network's weights are differentiated.
    """
    if has_batch_statistics(net):
        return max(2, batch)  # a single row gets another one beside it
    device = _device(net)
    channels, height, width = image_shape
    bytes_per_image = max(1, activation_bytes(net, (channels, height, width)))
    if device.type == "cpu":
        first = min(max(_CPU_CHUNK, _CPU_CHUNK_BYTES // bytes_per_image), _CPU_MOST_CHUNK_BYTES // bytes_per_image)
        largest = _CPU_SECOND_DERIVATIVE_BYTES // bytes_per_image if second_derivatives else first
    else:
        largest = memory_budget(device) // bytes_per_image
    parts = math.ceil(batch / max(1, largest))
    return math.ceil(batch / parts)


def train_network(
    net: nn.Module,
    data: TrainingSet,
    recipe: TrainingRecipe,
    *key: Key,
    max_updates: int | None = None,
    chunk: int | None = None,
    on_update: Callable[[], object] | None = None,
    accelerator: Accelerator | None = None,
) -> int:
    """Train a network in place, in float32 and on its own device.

    Every draw (order, augmentation, CutMix, dropout) is addressed by the key: the same key gives the same draws, and on
    a CPU the same bits. On a CUDA device, convolutions round to TF32 unless that was switched off. The weights are
    those after the last epoch; no epoch is selected.

    Args:
        net: The network, possibly compiled.
        data: The images and labels it is trained on.
        recipe: How it is trained.
        *key: Address of the draws.
        max_updates: Largest number of updates; the schedule shrinks with it. Default: no limit.
        chunk: Number of images that go through the network at a time; default: see `chunk_size`. A batch of several
            chunks is padded with rows of weight zero, so that compiled code sees one shape.
        on_update: Called after each update.
        accelerator: Its processes share the chunks of every batch, if there are as many, which changes the gradient by
            rounding at most, unless the network draws numbers (dropout). All of them must make this call. Default: each
            process trains on whole batches.

    Returns:
        The number of updates.

    Raises:
        ValueError: If a network with batch statistics would see its batches in chunks.
    """
    return _train(net, [data], recipe, [key], max_updates, on_update, chunk, accelerator)


def train_stack(
    stack: NetworkStack,
    sets: Sequence[TrainingSet],
    recipe: TrainingRecipe,
    keys: Sequence[tuple[Key, ...]],
    max_updates: int | None = None,
    on_update: Callable[[], object] | None = None,
) -> int:
    """Train all networks of a stack in place, as `train_network` would train each of them, but for rounding.

    Args:
        stack: The networks. None of them may draw numbers (dropout).
        sets: What each network is trained on: as many images, and labels of one kind. One object may stand for several.
        recipe: How they are trained, without `flatness`.
        keys: Address of the draws of each network.
        max_updates: As in `train_network`.
        on_update: Called after each update of all networks.

    Returns:
        The number of updates of a network.

    Raises:
        ValueError: If the recipe has `flatness`, which needs the length of each network's gradient.
    """
    if recipe.flatness:
        raise ValueError(f"a stack should be trained with flatness=0; got {recipe.flatness}: train networks one by one")
    return _train(stack, sets, recipe, keys, max_updates, on_update)


def _train(
    net: nn.Module,
    sets: Sequence[TrainingSet],
    recipe: TrainingRecipe,
    keys: Sequence[tuple[Key, ...]],
    max_updates: int | None,
    on_update: Callable[[], object] | None,
    chunk: int | None = None,
    accelerator: Accelerator | None = None,
) -> int:
    """Train a network, or those of a stack, each on a set of its own and with draws of its own."""
    rows = len(sets[0])
    data, starts = _rows_of_all(sets)
    batch = min(recipe.batch_size, rows)
    if chunk is None:
        chunk = chunk_size(net, data.image_shape, batch)
    if chunk < batch and has_batch_statistics(net):
        raise ValueError(f"a network with batch statistics must see a whole batch of {batch}; got chunk={chunk}")
    updates = recipe.updates(rows, max_updates)
    optimiser = _optimiser(net, recipe)
    schedule = _Schedule(optimiser, recipe, updates)
    add_gradient = _GradientByChunks(net, chunk, _sharing(accelerator, math.ceil(batch / chunk)))
    net.train()
    orders = [rows_of_updates(rows, recipe.batch_size, updates, has_batch_statistics(net), *key) for key in keys]
    with seeded_globals(*keys[0], "training", devices=[_device(net)]):
        for t, batches in enumerate(zip(*orders, strict=True)):
            schedule.begin(t)
            index = torch.cat([start + own for start, own in zip(starts, batches, strict=True)])  # (M * n,)
            images, targets = training_batch(data, index, recipe, t, keys)
            if isinstance(net, NetworkStack):
                images, targets = (part.unflatten(0, (len(keys), -1)).transpose(0, 1) for part in (images, targets))
            temperature = data.temperature if data.soft else 1.0
            gradient = partial(add_gradient, images, targets, temperature)
            gradient()
            if recipe.flatness:
                sharpen(net, gradient, recipe.flatness, recipe.surrogate_gap)
            optimiser.step()
            optimiser.zero_grad()
            if on_update is not None:
                on_update()
    return updates


def _rows_of_all(sets: Sequence[TrainingSet]) -> tuple[TrainingSet, list[int]]:
    """Return the rows of all sets, those that come several times once, and where the rows of each set begin."""
    rows = len(sets[0])
    distinct = list({id(data): data for data in sets}.values())
    data = distinct[0] if len(distinct) == 1 else TrainingSet.joined(distinct)
    return data, [rows * next(i for i, other in enumerate(distinct) if other is own) for own in sets]


class _Schedule:
    """The learning rate of an optimiser: it drops at the milestones of a recipe, and falls along its cosine."""

    def __init__(self, optimiser: torch.optim.Optimizer, recipe: TrainingRecipe, updates: int) -> None:
        self.optimiser, self.recipe, self.updates = optimiser, recipe, updates
        self._drops = Counter(max(1, int(fraction * updates)) for fraction in recipe.milestones)
        self._rate = recipe.lr

    def begin(self, t: int) -> None:
        """Set the rate of an update; updates come in their order."""
        if t in self._drops:
            self._rate *= self.recipe.gamma ** self._drops[t]
            if self.recipe.restart_optimiser:
                self.optimiser.state.clear()
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate * self.recipe.rate(t / self.updates)


def accumulate_gradient(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    chunk: int,
    temperature: float = 1.0,
    rows: int | None = None,
) -> None:
    """Add the gradient of the mean `tempered_cross_entropy` of a batch to the network's, `chunk` images at a time.

    Args:
        net: The network, or a stack of M networks.
        images: One batch (n, C, H, W), or one for each network (n, M, C, H, W).
        targets: The probabilities that it should get. (n, K) or (n, M, K)
        chunk: Number of images that go through the network at a time, >= 1.
        temperature: The network's logits are divided by it, > 0.
        rows: Number of images over which the mean runs; default: all that are given.
    """
    rows = len(images) if rows is None else rows
    if len(images) > chunk:
        padding = -len(images) % chunk  # rows whose target is zero have no loss and no gradient
        images, targets = with_last_row_repeated(images, padding), with_zero_rows(targets, padding)
    for part, target in zip(images.split(chunk), targets.split(chunk), strict=True):
        logits = net(part).flatten(0, -2)  # The networks of a stack stand side by side, as images do.
        tempered_cross_entropy(logits, target.flatten(0, -2), temperature, "sum", rows=rows).backward()


@dataclass
class _GradientByChunks:
    """Adds the gradient of a batch to that of a network, some images at a time.

    Attributes:
        net: The network, or a stack.
        chunk: Images at a time. It is halved for good when memory was not enough.
        sharing: Processes that compute some chunks each; None: this process computes all.
    """

    net: nn.Module
    chunk: int
    sharing: Accelerator | None
    _learned: list[nn.Parameter] = field(default_factory=list, init=False)  # others get no gradient, so do not decay

    def __call__(self, images: Tensor, targets: Tensor, temperature: float) -> None:
        """Add the gradient of a batch to the network's, which is zero."""
        if self.sharing is not None:
            self._shared(self.sharing, images, targets, temperature)
            return
        while not self._added_if_it_fits(images, targets, temperature):
            self.net.zero_grad()
            self.chunk = math.ceil(self.chunk / 2)
            logger.warning(
                "an update of a network does not fit into memory and is repeated, %d images at a time; from here on, "
                "weights differ by rounding from those of a run with enough memory",
                self.chunk,
            )

    def _added_if_it_fits(self, images: Tensor, targets: Tensor, temperature: float) -> bool:
        """Add the gradient; return False if memory was not enough and smaller chunks are possible."""
        try:
            accumulate_gradient(self.net, images, targets, self.chunk, temperature)
        except Exception as error:
            # A network with batch statistics must see its batch as a whole.
            if self.chunk > 1 and is_out_of_memory(error) and not has_batch_statistics(self.net):
                return False
            raise
        return True

    def _shared(self, sharing: Accelerator, images: Tensor, targets: Tensor, temperature: float) -> None:
        """Add the gradient of a batch whose chunks the processes share out."""
        rows, padding = len(images), -len(images) % self.chunk
        images, targets = with_last_row_repeated(images, padding), with_zero_rows(targets, padding)
        own = slice(sharing.process_index, None, sharing.num_processes)
        for part, target in zip(images.split(self.chunk)[own], targets.split(self.chunk)[own], strict=True):
            accumulate_gradient(self.net, part, target, self.chunk, temperature, rows)
        if not self._learned:  # the first batch is a whole one, of which every process has a chunk
            self._learned = [p for p in self.net.parameters() if p.grad is not None]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._learned]  # there may be no chunk
        whole = reduce(sharing, torch.cat([part.flatten() for part in parts]))
        for p, gradient in zip(self._learned, whole.split([p.numel() for p in self._learned]), strict=True):
            p.grad = gradient.view_as(p)


def _sharing(accelerator: Accelerator | None, chunks: int) -> Accelerator | None:
    """Return the accelerator if its processes can share this many chunks, each with one at least."""
    return None if accelerator is None or not 1 < accelerator.num_processes <= chunks else accelerator


def _optimiser(net: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    dimensions = 2 if isinstance(net, NetworkStack) else 1
    weights = [p for p in net.parameters() if p.ndim > dimensions]
    others = [p for p in net.parameters() if p.ndim <= dimensions]  # biases and norms
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.lr)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
