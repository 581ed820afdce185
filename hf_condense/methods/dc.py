"""DC: match the gradients of real and synthetic batches along the training of networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hf_condense.base.rng import seeded_globals
from hf_condense.base.torch_state import exact_convolutions
from hf_condense.engine.forms import is_large_set, lean_form_values
from hf_condense.engine.method import Loss, MethodInfo, Preset
from hf_condense.engine.options import option, redefined
from hf_condense.engine.task import Task
from hf_condense.methods._images import LearnedLabelConfig, check_trainable, check_two_classes, statistics_rows
from hf_condense.methods._siamese import SiameseConfig, SiameseMethod
from hf_condense.networks.instance_norm import use_closed_forms
from hf_condense.networks.losses import tempered_cross_entropy
from hf_condense.networks.network_facts import activation_bytes, has_batch_statistics
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.networks.training_set import TrainingSet

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

Gradients = Sequence[Tensor]
"""Gradients of k classes: one tensor (k, *shape) for each parameter."""

_EPSILON = 1e-6
# On a CPU, one batched call is faster as long as its activations stay near the cache. With images of 32 x 32 pixels it
# is faster by 1.4 for 10 images at width 32, and by 1.3 for 10 images at width 128. For 100 images it is no faster at
# width 32, and the loop is faster by 1.6 at width 128. On a GPU the batched call is always faster.
_BATCHED_BYTES = 64 * 2**20
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: (outer, inner)


def loops(ipc: int) -> tuple[int, int]:
    """Return the lengths of the outer and the inner loop for an ipc.

    Between the rows of the authors' table, the outer loop has as many steps as there are images per class, at most 50,
    and the inner loop has 500 epochs in all, but at most 50 after each of these steps.

    References:
        Zhao et al., ICLR 2021; the authors' code has values for ipc 1, 10, 20, 30, 40 and 50.

    Example:
        >>> loops(1), loops(10), loops(15), loops(200)
        ((1, 1), (10, 50), (15, 33), (50, 10))
    """
    outer = min(ipc, 50)
    return _LOOPS.get(ipc, (outer, min(50, 500 // outer)))


def layerwise_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Return one minus the cosine, summed over classes, weight tensors and output rows, without vectors of parameters.

    Biases and the parameters of batch, group and instance norm are vectors; those of layer norm are not.

    Args:
        synthetic: Gradients of the synthetic batches. For each parameter (k, *shape), for k classes.
        real: Gradients of the real batches, in the same shapes.

    Returns:
        A scalar, ().

    References:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, equations 9 and 10 (arXiv:2006.05929).

    Example:
        >>> float(layerwise_distance([torch.tensor([[[1.0, 0.0]]])], [torch.tensor([[[0.0, 2.0]]])]))
        1.0
    """
    pairs = [(s, r) for s, r in zip(synthetic, real, strict=True) if s.ndim > 2]
    return torch.stack([(1 - _cosine(s.flatten(2), r.flatten(2))).sum() for s, r in pairs]).sum()


def cosine_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Return one minus the cosine of all parameters as one vector, summed; shapes as for `layerwise_distance`."""
    return (1 - _cosine(_joined(synthetic), _joined(real))).sum()


def squared_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Return the squared distance of all parameters as one vector, summed; shapes as for `layerwise_distance`."""
    return (_joined(synthetic) - _joined(real)).square().sum()


def absolute_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Return the sum of absolute differences of all parameters; shapes as for `layerwise_distance`."""
    return (_joined(synthetic) - _joined(real)).abs().sum()


def _cosine(synthetic: Tensor, real: Tensor) -> Tensor:
    """Return cosines along the last dimension; where a row is zero, it is 0."""
    norms = torch.linalg.vector_norm(synthetic, dim=-1) * torch.linalg.vector_norm(real, dim=-1)
    cosine: Tensor = (synthetic * real).sum(-1) / (norms + _EPSILON)
    return cosine


def _joined(gradients: Gradients) -> Tensor:
    """Return all parameters as one vector per class: (k, P)."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


_DISTANCES: dict[str, Callable[[Gradients, Gradients], Tensor]] = {
    "layerwise": layerwise_distance,
    "cosine": cosine_distance,
    "mse": squared_distance,
    "l1": absolute_distance,
}


def matched_parameters(net: nn.Module, matched: str) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients are compared, by name.

    Args:
        net: The network.
        matched: `"all"`, or `"convolutions"` for the weights of convolutions alone.

    Raises:
        ValueError: If a network without convolutions is asked for the weights of convolutions.
    """
    parameters = dict(net.named_parameters())
    if matched == "all":
        return parameters
    modules = {name: module for name, module in net.named_modules() if isinstance(module, _ConvNd)}
    names = {f"{name}.weight" if name else "weight" for name in modules}
    weights = {name: parameter for name, parameter in parameters.items() if name in names}
    if not weights:
        raise ValueError(
            "matched='convolutions' compares the gradients of the weights of convolutions, but the network has none; "
            "pass matched='all'"
        )
    return weights


def looped_gradients(
    net: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float = 1.0,
    matched: str = "all",
) -> list[Tensor]:
    """Return the gradient of the mean cross-entropy of each class, class by class, with a graph.

    Args:
        net: The network.
        images: Rows of each of k classes, (n, C, H, W) each.
        targets: Labels (n,) or probabilities (n, K) of each class.
        temperature: Divisor of the logits, > 0.
        matched: Which parameters have gradients, as for `matched_parameters`.

    Returns:
        For each of these parameters (k, *shape).
    """
    parameters = list(matched_parameters(net, matched).values())
    gradients = []
    for class_images, class_targets in zip(images, targets, strict=True):
        loss = tempered_cross_entropy(net(class_images), class_targets, temperature)
        gradients.append(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))
    return [torch.stack(parts) for parts in zip(*gradients, strict=True)]


def batched_gradients(
    net: nn.Module,
    images: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float = 1.0,
    matched: str = "all",
) -> list[Tensor]:
    """Return what `looped_gradients` returns, by one call for all classes. All must have the same number of rows."""
    parameters = matched_parameters(net, matched)
    others = {name: tensor for name, tensor in net.named_parameters() if name not in parameters}
    fixed = {**others, **dict(net.named_buffers())}

    def loss(weights: Mapping[str, Tensor], class_images: Tensor, class_targets: Tensor) -> Tensor:
        logits = functional_call(net, {**weights, **fixed}, (class_images,))
        return tempered_cross_entropy(logits, class_targets, temperature)

    class_gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    gradients: dict[str, Tensor] = class_gradients(parameters, torch.stack(list(images)), torch.stack(list(targets)))
    return list(gradients.values())


@dataclass(frozen=True)
class GradientMatchingConfig(LearnedLabelConfig, SiameseConfig):
    """Options of DC."""

    lr_img: float = redefined(LearnedLabelConfig, "lr_img", 0.1)
    init: str = redefined(LearnedLabelConfig, "init", "noise")
    augment: str = redefined(LearnedLabelConfig, "augment", "none")
    distance: str = option(
        "layerwise",
        "How gradients are compared: 'layerwise' (by output rows of each tensor), or as one vector: 'cosine', 'mse' "
        "(sum of squares) or 'l1' (sum of absolute values).",
        choices=tuple(_DISTANCES),
    )
    matched: str = option(
        "all",
        "Parameters whose gradients are compared: 'all', or 'convolutions' (the weights of convolutions alone).",
        choices=("all", "convolutions"),
    )
    outer_loop: int | None = option(
        None, "Updates of the images per network; None: a number that depends on ipc.", ge=1
    )
    inner_loop: int | None = option(
        None, "Epochs of training the network on the set after each update; None: a number that depends on ipc.", ge=0
    )
    lr_net: float = option(0.01, "Learning rate of the network in the inner loop.", gt=0)
    class_gradients: str = option(
        "auto",
        "How the gradients of the synthetic classes are computed: 'loop', 'batched' (vmap), or 'auto', which decides "
        "from shapes and device. Classes of different sizes always take the loop.",
        choices=("auto", "loop", "batched"),
    )


def _paper(task: Task) -> dict[str, Any]:
    return {"steps": 1000 * loops(task.ipc)[0], "pixel_range": "free"}


def _default(task: Task) -> dict[str, Any]:
    return {"steps": 200 * loops(task.ipc)[0]}


def _quick(task: Task) -> dict[str, Any]:
    # These values were chosen on a part of the training sets.
    short: dict[str, Any] = {"batch_real": 64, "outer_loop": min(task.ipc, 10)}
    if task.ipc > 1:  # else every update has a fresh network
        short["inner_loop"] = 5
    form = {} if is_large_set(task) else lean_form_values(task)  # with many rows, steps would take five times as long
    return {"steps": 300, "network": "convnet-w32", "init": "real", "lr_img": 1.0, "decay": True, **short, **form}


class GradientMatching(SiameseMethod[GradientMatchingConfig]):
    """Gradient matching (DC).

    References:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, equations 9 and 10 (arXiv:2006.05929);
        see `layerwise_distance`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dc",
        title="Dataset Condensation (gradient matching)",
        kind="synthetic",
        summary="Matches the gradients of real and synthetic batches over a curriculum of networks in training.",
        paper="Dataset Condensation with Gradient Matching",
        authors="Bo Zhao, Konda Reddy Mopuri and Hakan Bilen",
        venue="ICLR",
        year=2021,
        link="https://arxiv.org/abs/2006.05929",
        cost="forward and backward of the real batch, a double backward of the synthetic set, and an inner loop",
    )
    Config = GradientMatchingConfig
    cost_in_forwards: ClassVar[int] = 4
    gradients_per_class: ClassVar[int] = 6  # real and synthetic ones, their difference, and what its gradient needs
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("A fifth of the paper's 1,000 networks; pixels stay valid.", _default),
        "paper": Preset("1,000 networks and unclamped pixels, as the authors' code runs it (ICLR 2021).", _paper),
        "quick": Preset(
            "300 steps at width 32, real rows first, short loops, falling rates; up to 10 images per class in "
            "frequencies: minutes on two cores.",
            _quick,
        ),
    }

    rate_remedy: ClassVar[str] = "such as lr_img or lr_net"

    def prepare(self, run: Run) -> None:
        """Decide the lengths of the loops and how class gradients are computed."""
        check_two_classes(run, self.info.name)
        check_trainable(run)
        outer, inner = loops(max(run.ipc.values()))
        self._outer = self.config.outer_loop or outer
        self._inner = inner if self.config.inner_loop is None else self.config.inner_loop
        if self._outer == 1 and self.config.inner_loop:
            logger.warning(
                "inner_loop=%d changes nothing: with one update per network (outer_loop=1) no network is trained; pass "
                "a larger outer_loop",
                self.config.inner_loop,
            )
        self._net = run.network("network", 0, trainable=True)
        matched_parameters(self._net, self.config.matched)
        counts = set(self.rows_per_step(run).values())
        equal_sizes = len(counts) == 1
        # Not those of a chunk: a plan that memory made smaller should change nothing but the chunks.
        rows = max(counts) * math.ceil(len(run.ipc) / run.accelerator.num_processes)
        fits_cache = rows * activation_bytes(self._net, run.source.image_shape) <= _BATCHED_BYTES
        rule = "batched" if equal_sizes and (run.device.type != "cpu" or fits_cache) else "loop"
        way = rule if self.config.class_gradients == "auto" else self.config.class_gradients
        self._gradients = batched_gradients if way == "batched" and equal_sizes else looped_gradients
        if self._gradients is looped_gradients:
            use_closed_forms(self._net)

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the distances of the gradients, one chunk of classes at a time."""
        if t % self._outer == 0:
            self._net = run.network("network", t, trainable=True)
        if has_batch_statistics(self._net):
            freeze_batch_statistics(self._net, run, t)
        distance = _DISTANCES[self.config.distance]
        for classes in run.chunks():
            # Dropout draws by the key of the chunk: the same in whichever process, but anew if the plan changes.
            with seeded_globals(run.seed, "gradients", t, classes[0], devices=[run.device]):
                real = self._real_gradients(run, classes, t)
                with exact_convolutions(run.device):
                    loss = distance(self._synthetic_gradients(run, classes, t), real)
                    del real  # before those of the next chunk
            with exact_convolutions(run.device):  # while the engine differentiates it
                yield Loss(loss, loss.detach())

    def _real_gradients(self, run: Run, classes: tuple[int, ...], t: int) -> list[Tensor]:
        """Return the gradients of the real batches of k classes, by parameter, first dimension k."""
        rows = self.real_rows(run, classes, t).unflatten(0, (len(classes), -1))  # (k, B, C, H, W)
        by_class = [self._real_gradient(run, batch, c) for batch, c in zip(rows, classes, strict=True)]
        return [torch.stack(parts) for parts in zip(*by_class, strict=True)]

    def _real_gradient(self, run: Run, images: Tensor, c: int) -> list[Tensor]:
        """Return the gradient of the mean cross-entropy of one class's real batch, by parameter."""
        parameters = list(matched_parameters(self._net, self.config.matched).values())
        total: list[Tensor] = []
        for part in run.split_for_forward(images):
            labels = torch.full((len(part),), c, device=run.device)
            loss = F.cross_entropy(run.logits(part), labels, reduction="sum") / len(images)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
        return total

    def _synthetic_gradients(self, run: Run, classes: tuple[int, ...], t: int) -> list[Tensor]:
        """Return the gradients of the synthetic classes, with a graph to images and labels.

        They are always computed in float32: under autocast or in TF32, a second derivative loses too much.
        """
        rows, _ = self.synthetic_rows(run, classes, t)
        targets = run.synthetic.targets_at(self.row_numbers(run, classes, t), self.loss_temperature)
        amounts = self.rows_per_step(run)
        counts = [amounts[c] for c in classes]
        return self._gradients(
            self._net, rows.split(counts), targets.split(counts), self.loss_temperature, self.config.matched
        )

    def after_update(self, run: Run, t: int) -> None:
        """Run the inner loop: train the network, unless the next step has a fresh network."""
        if not self._inner or (t + 1) % self._outer == 0:
            return
        data, recipe, updates = self.inner_training(run)
        batch = min(recipe.batch_size, len(data))
        parts = math.ceil(batch / (run.plan.images_per_forward or batch))
        # So that processes can share the batch, unless it is small. Batch statistics are those of whole batches.
        if run.device.type == "cpu" and not run.network_facts.batch_statistics:
            parts = min(batch, max(parts, run.accelerator.num_processes))
        split = {"chunk": math.ceil(batch / parts), "accelerator": run.accelerator}
        train_network(run.compiled_network(), data, recipe, run.seed, "inner", t, max_updates=updates, **split)

    def inner_training(self, run: Run) -> tuple[TrainingSet, TrainingRecipe, int | None]:
        """Return what the inner loop trains the network on, how, and for how many updates at most: the current set."""
        with torch.no_grad():
            images, labels = run.synthetic.all()
        soft_labels = run.synthetic.soft_labels
        targets = labels if soft_labels is None else soft_labels.detach()
        data = TrainingSet(images.detach(), targets, run.num_classes, self.loss_temperature)
        recipe = TrainingRecipe(
            "inner",
            epochs=self._inner,
            lr=self.config.lr_net,
            momentum=0.0,
            weight_decay=0.0,
            milestones=(),
            augment=self.config.augment,
        )
        return data, recipe, None

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return the weights of the network, which has been trained since it was drawn."""
        return {name: tensor.detach().clone() for name, tensor in self._net.state_dict().items()}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Restore the weights of the network."""
        self._net.load_state_dict(state)


def freeze_batch_statistics(net: nn.Module, run: Run, t: int) -> None:
    """Move the statistics of batch norm towards real rows of all classes, and keep them fixed for single classes.

    They move by the layers' own momentum, a tenth of the way by default: one pass in training mode, as in the authors'
    code.

    Args:
        net: The network; its batch norm layers are put into evaluation mode.
        run: The run.
        t: The step, which is part of the key of the rows.

    References:
        Zhao et al., ICLR 2021; the authors' code.
    """
    net.train()
    with torch.no_grad():
        net(run.source.sample(run.classes, statistics_rows(len(run.classes)), run.seed, "freeze", t).flatten(0, 1))
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
