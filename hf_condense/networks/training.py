"""Training a network on labelled images: the one loop that follows a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_condense.base.devices import memory_budget
from hf_condense.base.rng import Key, key_seed, keyed_generator, seeded_globals
from hf_condense.networks.factory import activation_bytes, has_batch_statistics
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe
from hf_condense.source.class_source import ClassSource

__all__ = ["RECIPES", "TrainingRecipe", "TrainingSet", "accumulate_gradient", "accuracy", "chunk_size", "train_network"]

# On two CPU cores a chunk of 32 images trains a third faster than a batch of 100, and nearly twice as fast as one of
# 256 (width 32, 32 x 32); larger activations want fewer.
_CPU_CHUNK = 32
_CPU_CHUNK_BYTES = 64 * 2**20
_TEST_CHUNKS = {"cpu": 64}
_TEST_CHUNK = 1024  # elsewhere


@dataclass(frozen=True)
class TrainingSet:
    """What a network is trained on.

    Attributes:
        images: Normalised images (N, C, H, W) on the training device, or a source, whose images are read and
            normalised one batch at a time.
        labels: Class of every image, int64 (N,), or soft labels: logits, float32 (N, K).
        num_classes: Outputs K of the network.
        temperature: Of soft labels, > 0: targets are softmax(logits / temperature), and the network's own logits are
            divided by it too.
    """

    images: Tensor | ClassSource
    labels: Tensor
    num_classes: int
    temperature: float = 1.0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.images.image_shape if isinstance(self.images, ClassSource) else tuple(self.images.shape[1:])

    @property
    def soft(self) -> bool:
        """Whether the labels are logits."""
        return self.labels.is_floating_point()

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows (n,) as images (n, C, H, W) and the probabilities to be learned (n, K)."""
        if isinstance(self.images, ClassSource):
            images = self.images.at(index)
        else:
            images = self.images[index.to(self.images.device)]
        labels = self.labels[index.to(self.labels.device)].to(images.device)
        if self.soft:
            return images, (labels / self.temperature).softmax(1)
        return images, F.one_hot(labels, self.num_classes).to(images.dtype)


def chunk_size(net: nn.Module, image_shape: tuple[int, ...], batch: int) -> int:
    """Return how many images of a batch go through a network at a time; the gradient is the same but for rounding.

    A rule from shapes, device and memory: chunks that stay in cache on a CPU, the whole batch elsewhere if it fits.
    Networks with batch statistics always see the whole batch.

    Args:
        net: The network, not compiled, on the device it will run on.
        image_shape: (C, H, W).
        batch: Images in a batch, >= 1.
    """
    if has_batch_statistics(net):
        return batch
    device = _device(net)
    channels, height, width = image_shape
    each = max(1, activation_bytes(net, (channels, height, width)))
    fits = min(_CPU_CHUNK, _CPU_CHUNK_BYTES // each) if device.type == "cpu" else memory_budget(device) // each
    parts = math.ceil(batch / max(1, fits))
    return math.ceil(batch / parts)


def train_network(
    net: nn.Module,
    data: TrainingSet,
    recipe: TrainingRecipe,
    *key: Key,
    max_updates: int | None = None,
    chunk: int | None = None,
    on_update: Callable[[], object] | None = None,
) -> int:
    """Train a network in place, in float32 and on the device that it is on.

    Every draw (order, augmentation, CutMix, dropout) is addressed by the key: the same key gives the same bits on the
    same kind of device. Nothing is measured on the way and no earlier state is kept: the result is the last epoch's.

    Args:
        net: The network, possibly compiled.
        data: What it is trained on.
        recipe: How it is trained.
        *key: Address of the draws.
        max_updates: Cap on the number of updates; the schedule shrinks with it. Default: none.
        chunk: Images that go through the network at a time; default: by `chunk_size`. A batch of several chunks is
            padded with rows of weight zero, so that compiled code sees one shape.
        on_update: Called after each update.

    Returns:
        The number of updates.

    Raises:
        ValueError: If a network with batch statistics would see its batches in chunks.
    """
    batch = min(recipe.batch_size, len(data))
    if chunk is None:
        chunk = chunk_size(net, data.image_shape, batch)
    if chunk < batch and has_batch_statistics(net):
        raise ValueError(f"a network with batch statistics must see a whole batch of {batch}; got chunk={chunk}")
    updates = recipe.updates(len(data), max_updates)
    drops = {int(fraction * updates) for fraction in recipe.milestones}
    optimiser = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    net.train()
    with seeded_globals(*key, "training", devices=[_device(net)]):
        for t, index in enumerate(_order(len(data), recipe.batch_size, updates, *key)):
            if t in drops:
                optimiser.param_groups[0]["lr"] *= recipe.gamma
                if recipe.restart_optimiser:
                    optimiser.state.clear()
            images, targets = data.batch(index)
            images, targets = _mixed(_augmented(images, recipe, t, *key), targets, recipe, t, *key)
            gradient = partial(accumulate_gradient, net, images, targets, chunk, data.temperature if data.soft else 1.0)
            gradient()
            if recipe.flatness:
                sharpen(net, gradient, recipe.flatness, recipe.surrogate_gap)
            optimiser.step()
            optimiser.zero_grad()
            if on_update is not None:
                on_update()
    return updates


def accumulate_gradient(net: nn.Module, images: Tensor, targets: Tensor, chunk: int, temperature: float = 1.0) -> None:
    """Add the gradient of the mean cross-entropy of a batch to the network's, `chunk` images at a time.

    At a temperature other than 1 the loss is multiplied by its square, which keeps the size of the gradient.

    Args:
        net: The network.
        images: One batch.
        targets: Probabilities to be learned.
        chunk: Images at a time, >= 1.
        temperature: What the network's logits are divided by.

    Shapes:
        images (n, C, H, W), targets (n, K)

    Reference:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2 (arXiv:1503.02531).
    """
    weight = temperature**2 / len(images)
    if len(images) > chunk:  # rows of zero probability have neither loss nor gradient
        extra = -len(images) % chunk
        images, targets = _with_rows(images, extra), _with_rows(targets, extra)
    for part, wanted in zip(images.split(chunk), targets.split(chunk), strict=True):
        loss = F.cross_entropy(net(part) / temperature, wanted, reduction="sum") * weight
        loss.backward()


@torch.inference_mode()
def accuracy(net: nn.Module, test: ClassSource, outputs: Tensor) -> float:
    """Return the share of test images that a network gets right.

    Args:
        net: The network, possibly compiled.
        test: Real images, normalised as the network's training images were.
        outputs: For every class of `test` the network's output that stands for it. int64 (number of classes,).
    """
    net.eval()
    size = min(_TEST_CHUNKS.get(test.device.type, _TEST_CHUNK), len(test))
    right = 0
    for start in range(0, len(test), size):
        index = torch.arange(start, min(start + size, len(test)))
        logits = net(_with_rows(test.at(index), size - len(index)))[: len(index)]  # one shape for compiled code
        right += int((logits.argmax(1).cpu() == outputs[test.labels[index]]).sum())
    return right / len(test)


def _device(net: nn.Module) -> torch.device:
    """Return the device that a network is on."""
    return next(net.parameters()).device


def _with_rows(tensor: Tensor, extra: int) -> Tensor:
    """Append rows of zeros."""
    return torch.cat([tensor, tensor.new_zeros(extra, *tensor.shape[1:])]) if extra else tensor


def _order(rows: int, batch: int, updates: int, *key: Key) -> Iterator[Tensor]:
    """Yield the rows of every update: a fresh permutation an epoch."""
    done = epoch = 0
    while done < updates:
        order = torch.randperm(rows, generator=keyed_generator(*key, "order", epoch))
        for index in order.split(batch)[: updates - done]:
            yield index
            done += 1
        epoch += 1


def _augmented(images: Tensor, recipe: TrainingRecipe, t: int, *key: Key) -> Tensor:
    """Augment a batch: every image draws its own parameters."""
    for stage, augmentation in enumerate(recipe.augmentations()):
        transform = augmentation.draw(len(images), keyed_generator(*key, "augment", stage, t))
        images = transform(images, torch.arange(len(images)))
    return images


def _mixed(images: Tensor, targets: Tensor, recipe: TrainingRecipe, t: int, *key: Key) -> tuple[Tensor, Tensor]:
    """Apply CutMix: a rectangle of every image comes from another one, and so does its share of the target."""
    if not recipe.cutmix_probability:
        return images, targets
    draw = np.random.default_rng(key_seed(*key, "cutmix", t))
    if draw.random() >= recipe.cutmix_probability:
        return images, targets
    side = math.sqrt(1 - draw.beta(recipe.cutmix_beta, recipe.cutmix_beta))
    partner = torch.from_numpy(draw.permutation(len(images))).to(images.device)
    spans = []
    for length in images.shape[2:]:
        centre, reach = int(draw.integers(length)), int(length * side) // 2
        spans.append(slice(max(0, centre - reach), min(length, centre + reach)))
    mixed = images.clone()
    mixed[:, :, spans[0], spans[1]] = images[partner][:, :, spans[0], spans[1]]
    share = math.prod(span.stop - span.start for span in spans) / math.prod(images.shape[2:])
    return mixed, (1 - share) * targets + share * targets[partner]


@torch.no_grad()
def sharpen(net: nn.Module, accumulate: Callable[[], None], radius: float, gap: float) -> None:
    """Replace a network's gradient by one that leads to flatter minima. Its weights are the same afterwards.

    Args:
        net: The network, whose gradient at its weights has been computed.
        accumulate: Adds the gradient of the same batch at the present weights to the network's.
        radius: How far uphill the gradient is taken instead (rho), > 0.
        gap: Weight of the surrogate gap (alpha), >= 0; 0 is plain SAM.

    Reference:
        Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 2 (arXiv:2010.01412); Zhuang et al.,
        "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1 (arXiv:2203.08065).
    """
    weights = [p for p in net.parameters() if p.grad is not None]
    here = [_gradient(p).clone() for p in weights]
    before = [p.clone() for p in weights]
    scale = radius / (_inner(here, here).sqrt() + _EPSILON)
    for p, g in zip(weights, here, strict=True):
        p.add_(scale * g)
        _gradient(p).zero_()
    with torch.enable_grad():
        accumulate()
    for p, kept in zip(weights, before, strict=True):
        p.copy_(kept)
    if gap:
        uphill = [_gradient(p) for p in weights]
        along = _inner(here, uphill) / (_inner(uphill, uphill) + _EPSILON)
        for g, u in zip(here, uphill, strict=True):
            u.sub_(gap * (g - along * u))  # what the gradient here has across the one uphill


_EPSILON = 1e-12


def _gradient(parameter: Tensor) -> Tensor:
    """Return a gradient that is known to be there."""
    assert parameter.grad is not None
    return parameter.grad


def _inner(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Inner product of all tensors as one vector."""
    found: Tensor = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    return found
