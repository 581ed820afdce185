"""Train a network on labelled images: the one loop that follows a recipe."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_condense.base.devices import to_device
from hf_condense.base.memory import is_out_of_memory, memory_budget
from hf_condense.base.processes import reduce
from hf_condense.base.rng import Key, key_seed, keyed_generator, seeded_globals
from hf_condense.condensed.views import ViewLabels, random_crops, view
from hf_condense.networks.augment import Transform
from hf_condense.networks.factory import activation_bytes, has_batch_statistics
from hf_condense.networks.network_stack import NetworkStack
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.class_source import ClassSource

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
_CPU_TEST_CHUNK = 64
_TEST_CHUNK = 1024  # on other devices
_EPSILON = 1e-12  # keeps quotients of a zero gradient finite


@dataclass(frozen=True)
class TrainingSet:
    """The images and labels that a network is trained on.

    Attributes:
        images: Normalised images (N, C, H, W) on the training device, or a source, whose images are read and
            normalised one batch at a time.
        labels: Class of every image, int64 (N,), or soft labels: logits, float32 (N, K).
        num_classes: Number K of the network's outputs.
        temperature: The temperature of soft labels, > 0. Targets are softmax(logits / temperature), and the network's
            own logits are divided by it too.
        views: Soft labels of several views of every image, or None. Each update sees a random view of an image.
        relabel: What gives new logits (n, K) for the images (n, C, H, W) of every update, after they were augmented and
            mixed; or None. It takes the place of all labels.
    """

    images: Tensor | ClassSource
    labels: Tensor
    num_classes: int
    temperature: float = 1.0
    views: ViewLabels | None = None
    relabel: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (C, H, W)."""
        return self.images.image_shape if isinstance(self.images, ClassSource) else tuple(self.images.shape[1:])

    @property
    def soft(self) -> bool:
        """Return whether the labels are soft: logits."""
        return self.labels.is_floating_point() or self.views is not None or self.relabel is not None

    @property
    def sees_views(self) -> bool:
        """Return whether an update sees the views that have labels of their own."""
        return self.views is not None and self.relabel is None

    @classmethod
    def joined(cls, sets: Sequence[TrainingSet]) -> TrainingSet:
        """Return the rows of several sets, whose labels are of one kind, one after the other and in memory."""
        views = [data.views for data in sets if data.views is not None]
        return replace(
            sets[0],
            images=torch.cat([data._images_at(torch.arange(len(data))) for data in sets]),
            labels=torch.cat([data.labels for data in sets]),
            views=ViewLabels.joined(views) if views else None,
        )

    def part(self, index: Tensor) -> TrainingSet:
        """Return some rows (n,) as a training set, in memory."""
        labels, views = self.labels[index.to(self.labels.device)], self.views
        part_of_views = None if views is None else views.part(index)
        return replace(self, images=self._images_at(index), labels=labels, views=part_of_views)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (n, C, H, W) of some rows (n,), and the probabilities (n, K) that they should get."""
        images = self._images_at(index)
        labels = to_device(self.labels[to_device(index, self.labels.device)], images.device)  # (n,) or (n, K)
        if labels.is_floating_point():
            return images, (labels / self.temperature).softmax(1)
        return images, F.one_hot(labels, self.num_classes).to(images.dtype)

    def _images_at(self, index: Tensor) -> Tensor:
        """Return the images of some rows (n,): (n, C, H, W)."""
        if isinstance(self.images, ClassSource):
            return self.images.at(index)
        return self.images[to_device(index, self.images.device)]

    def draw(self, index: Tensor, *keys: tuple[Key, ...]) -> tuple[Tensor, Tensor]:
        """Return what `batch` does, or a random view of each row if views have labels.

        Args:
            index: Numbers of the rows. int64 (n,).
            *keys: Addresses of the draws: one for each of as many equal parts of the rows.
        """
        images, targets = self.batch(index)
        if self.views is None or not self.sees_views:
            return images, targets
        index, n = index.cpu(), len(index) // len(keys)
        chosen = torch.cat(
            [torch.randint(self.views.num_views, (n,), generator=keyed_generator(*key, "view")) for key in keys]
        )
        return self.views.seen(images, index, chosen, self.temperature)


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
        return batch
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
            rounding at most. All of them must make this call. Default: each process trains on whole batches.

    Returns:
        The number of updates.

    Raises:
        ValueError: If a network with batch statistics would see its batches in chunks.
    """
    return _follow(net, [data], recipe, [key], max_updates, on_update, chunk, accelerator)


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
    return _follow(stack, sets, recipe, keys, max_updates, on_update)


def _follow(
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
    distinct = list({id(data): data for data in sets}.values())
    data = distinct[0] if len(distinct) == 1 else TrainingSet.joined(distinct)
    starts = [rows * next(i for i, other in enumerate(distinct) if other is own) for own in sets]
    batch = min(recipe.batch_size, rows)
    if chunk is None:
        chunk = chunk_size(net, data.image_shape, batch)
    if chunk < batch and has_batch_statistics(net):
        raise ValueError(f"a network with batch statistics must see a whole batch of {batch}; got chunk={chunk}")
    updates = recipe.updates(rows, max_updates)
    drops = Counter(max(1, int(fraction * updates)) for fraction in recipe.milestones)
    optimiser = _optimiser(net, recipe)
    rate = recipe.lr
    add_gradient = _GradientByChunks(net, chunk, _sharing(accelerator, math.ceil(batch / chunk)))
    net.train()
    orders = [_order(rows, recipe.batch_size, updates, has_batch_statistics(net), *key) for key in keys]
    with seeded_globals(*keys[0], "training", devices=[_device(net)]):
        for t, batches in enumerate(zip(*orders, strict=True)):
            if t in drops:
                rate *= recipe.gamma ** drops[t]
                if recipe.restart_optimiser:
                    optimiser.state.clear()
            for group in optimiser.param_groups:
                group["lr"] = rate * recipe.rate(t / updates)
            index = torch.cat([start + own for start, own in zip(starts, batches, strict=True)])  # (M * n,)
            images, targets = _seen(data, index, recipe, t, keys)
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


def accumulate_gradient(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    chunk: int,
    temperature: float = 1.0,
    rows: int | None = None,
) -> None:
    """Add the gradient of the mean cross-entropy of a batch to the network's, `chunk` images at a time.

    The loss is multiplied by the square of the temperature, which keeps the size of the gradient.

    Args:
        net: The network, or a stack of M networks.
        images: One batch (n, C, H, W), or one for each network (n, M, C, H, W).
        targets: The probabilities that it should get. (n, K) or (n, M, K)
        chunk: Number of images that go through the network at a time, >= 1.
        temperature: The network's logits are divided by it, > 0.
        rows: Number of images over which the mean runs; default: all that are given.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2 (arXiv:1503.02531).
    """
    weight = temperature**2 / (len(images) if rows is None else rows)
    if len(images) > chunk:
        padding = -len(images) % chunk  # rows whose target is zero have no loss and no gradient
        images, targets = _repeated(images, padding), _padded(targets, padding)
    for part, target in zip(images.split(chunk), targets.split(chunk), strict=True):
        logits = net(part).flatten(0, -2) / temperature  # The networks of a stack stand side by side, as images do.
        loss = F.cross_entropy(logits, target.flatten(0, -2), reduction="sum") * weight
        loss.backward()


@torch.no_grad()
def sharpen(net: nn.Module, accumulate: Callable[[], None], radius: float, gap: float) -> None:
    """Replace a network's gradient by one that leads to flatter minima. Its weights are the same afterwards.

    Args:
        net: The network, with its gradient at the present weights.
        accumulate: Adds the gradient of the same batch, at the weights that the network has then, to the network's.
        radius: Length of the step uphill, after which the gradient is taken (rho), > 0.
        gap: Weight of the surrogate gap (alpha), >= 0; 0 is plain SAM.

    References:
        Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equation 2 (arXiv:2010.01412); Zhuang et al.,
        "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022, algorithm 1 (arXiv:2203.08065).
    """
    weights = [p for p in net.parameters() if p.grad is not None]
    plain = [gradient_of(p).clone() for p in weights]
    before = [p.clone() for p in weights]
    scale = radius / (_inner_product(plain, plain).sqrt() + _EPSILON)
    for p, g in zip(weights, plain, strict=True):
        p.add_(scale * g)
        gradient_of(p).zero_()
    with torch.enable_grad():
        accumulate()
    for p, original in zip(weights, before, strict=True):
        p.copy_(original)
    if gap:
        uphill = [gradient_of(p) for p in weights]
        along = _inner_product(plain, uphill) / (_inner_product(uphill, uphill) + _EPSILON)
        for g, u in zip(plain, uphill, strict=True):
            u.sub_(gap * (g - along * u))  # the part of the plain gradient that is orthogonal to the one uphill


def gradient_of(tensor: Tensor) -> Tensor:
    """Return the gradient of a tensor that has one."""
    assert tensor.grad is not None
    return tensor.grad


def _inner_product(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, each taken as one vector."""
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


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

    def __call__(self, images: Tensor, targets: Tensor, temperature: float) -> None:
        """Add the gradient of a batch to the network's, which is zero."""
        if self.sharing is not None:
            self._shared(self.sharing, images, targets, temperature)
            return
        while not self._fits(images, targets, temperature):
            self.net.zero_grad()
            self.chunk = math.ceil(self.chunk / 2)
            logger.warning(
                "an update of a network does not fit into memory and is repeated, %d images at a time; from here on, "
                "weights differ by rounding from those of a run with enough memory",
                self.chunk,
            )

    def _fits(self, images: Tensor, targets: Tensor, temperature: float) -> bool:
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
        images, targets = _repeated(images, padding), _padded(targets, padding)
        own = slice(sharing.process_index, None, sharing.num_processes)
        for part, target in zip(images.split(self.chunk)[own], targets.split(self.chunk)[own], strict=True):
            accumulate_gradient(self.net, part, target, self.chunk, temperature, rows)
        parameters = list(self.net.parameters())
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]  # a process may have no chunk
        whole = reduce(sharing, torch.cat([part.flatten() for part in parts]))
        for p, gradient in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            p.grad = gradient.view_as(p)


def _sharing(accelerator: Accelerator | None, chunks: int) -> Accelerator | None:
    """Return the accelerator if its processes can share so many chunks, so that each has one."""
    return None if accelerator is None or not 1 < accelerator.num_processes <= chunks else accelerator


def images_per_test(net: nn.Module, test: ClassSource) -> int:
    """Return how many test images go through a network at a time: as many as fit into memory, up to a limit."""
    largest = _CPU_TEST_CHUNK if test.device.type == "cpu" else _TEST_CHUNK
    channels, height, width = test.image_shape
    plain_net = getattr(net, "_orig_mod", net)  # a compiled network holds the one that it was made from
    bytes_per_image = max(1, activation_bytes(plain_net, (channels, height, width)))
    return max(1, min(largest, len(test), memory_budget(test.device) // bytes_per_image))


def accuracy(net: nn.Module, test: ClassSource, outputs: Tensor) -> float:
    """Return the share of test images that a network classifies correctly, in [0, 1]. It is left in evaluation mode.

    Args:
        net: The network, possibly compiled.
        test: Real images, normalised as the network's training images were.
        outputs: The network's output that stands for each class of `test`. int64 (number of classes,).
    """
    return share_correct(predictions(net, test), test, outputs)


@torch.no_grad()
def predictions(net: nn.Module, test: ClassSource) -> Tensor:
    """Return the output of a network that is largest for every test image: int64 (N,), on the CPU.

    Args:
        net: The network, possibly compiled, or a stack of M networks: then the result is (N, M). It is left in
            evaluation mode.
        test: Real images, normalised as the network's training images were.
    """
    net.eval()
    size, parts = images_per_test(net, test), []
    for index in torch.arange(len(test)).split(size):
        images = _padded(test.at(index), size - len(index))  # so that compiled code sees one shape
        parts.append(net(images)[: len(index)].argmax(-1))  # (n,) or (n, M)
    return torch.cat(parts).cpu()


def share_correct(predicted: Tensor, test: ClassSource, outputs: Tensor) -> float:
    """Return the share of test images for which the predicted output (N,) is the one that stands for their class."""
    return int((predicted == outputs[test.labels]).sum()) / len(test)


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


def _seen(
    data: TrainingSet, index: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]
) -> tuple[Tensor, Tensor]:
    """Return what an update sees of rows: images and the probabilities that they should get.

    Args:
        data: The rows of all networks.
        index: Those that the first network sees, then those that the second one sees, and so on. (M * n,)
        recipe: How networks are trained.
        t: Number of the update.
        keys: Address of the draws of every network.

    Returns:
        Images (M * n, C, H, W) and probabilities (M * n, K).
    """
    images, targets = data.draw(index, *((*key, t) for key in keys))
    if recipe.view_area is not None and not data.sees_views:
        images = _cropped(images, recipe.view_area, t, keys)
    images, targets = _mixed(_augmented(images, recipe, t, keys), targets, recipe, t, keys)
    if data.relabel is not None:
        logits = torch.cat([data.relabel(part) for part in images.split(len(images) // len(keys))])
        targets = (logits / data.temperature).softmax(1)
    return images, targets


def _cropped(images: Tensor, least_area: float, t: int, keys: Sequence[tuple[Key, ...]]) -> Tensor:
    """Replace each image (M * n, C, H, W) by a random crop of it, at the same size."""
    n, (height, width) = len(images) // len(keys), images.shape[2:]
    generators = [keyed_generator(*key, "crop", t) for key in keys]
    crops = [random_crops(n, (height, width), least_area, generator, mirror=False) for generator in generators]
    return view(images, torch.cat(crops))


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _repeated(images: Tensor, rows: int) -> Tensor:
    """Append copies of the last row: on black images, a network of a user's own may not be finite."""
    return torch.cat([images, images[-1:].expand(rows, *images.shape[1:])]) if rows else images


def _padded(tensor: Tensor, rows: int) -> Tensor:
    """Append rows of zeros: (n, ...) -> (n + rows, ...)."""
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])]) if rows else tensor


def _order(rows: int, batch: int, updates: int, pairs: bool, *key: Key) -> Iterator[Tensor]:
    """Yield the rows of every update; each epoch visits all rows in a new order.

    With `pairs`, for networks with batch statistics, an update of a single row gets another one.
    """
    update = epoch = 0
    while update < updates:
        order = torch.randperm(rows, generator=keyed_generator(*key, "order", epoch))
        for index in order.split(batch)[: updates - update]:
            yield torch.cat([index, order[:1]]) if pairs and len(index) == 1 and rows > 1 else index
            update += 1
        epoch += 1


def _augmented(images: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]) -> Tensor:
    """Augment images (M * n, C, H, W), with parameters of its own for every image."""
    n = len(images) // len(keys)
    for stage, augmentation in enumerate(recipe.augmentations()):
        generators = [keyed_generator(*key, "augment", stage, t) for key in keys]
        transform = Transform.joined([augmentation.draw(n, generator) for generator in generators])
        images = transform(images, torch.arange(len(images)))
    return images


def _mixed(
    images: Tensor, targets: Tensor, recipe: TrainingRecipe, t: int, keys: Sequence[tuple[Key, ...]]
) -> tuple[Tensor, Tensor]:
    """Apply CutMix: replace a rectangle of every image by that of another one, and mix the targets by area.

    The images (M * n, C, H, W) of a network share a rectangle, and get those of each other; targets are (M * n, K).
    """
    if not recipe.cutmix_probability:
        return images, targets
    n, sides = len(images) // len(keys), images.shape[2:]
    partners, is_inside = np.arange(len(images)).reshape(-1, n), np.zeros((len(keys), *sides), bool)
    for network, key in enumerate(keys):
        draw = np.random.default_rng(key_seed(*key, "cutmix", t))
        if draw.random() >= recipe.cutmix_probability:
            continue
        side = math.sqrt(1 - draw.beta(recipe.cutmix_beta, recipe.cutmix_beta))
        partners[network] = partners[network][draw.permutation(n)]
        spans = []
        for length in sides:
            centre, reach = int(draw.integers(length)), int(length * side) // 2
            spans.append(slice(max(0, centre - reach), min(length, centre + reach)))
        is_inside[network][tuple(spans)] = True
    if not is_inside.any():
        return images, targets
    partner = to_device(torch.from_numpy(partners.flatten()), images.device)
    inside = to_device(torch.from_numpy(is_inside).repeat_interleave(n, 0)[:, None], images.device)  # (M * n, 1, H, W)
    shares = torch.from_numpy(is_inside.mean((1, 2))).repeat_interleave(n)[:, None]  # float64 (M * n, 1)
    own, other = to_device(torch.stack([1 - shares, shares]).to(targets.dtype), images.device)
    return torch.where(inside, images[partner], images), own * targets + other * targets[partner]
