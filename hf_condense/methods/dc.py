"""DC: match the gradients that real and synthetic batches give a network, along its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from hf_condense.engine.method import Loss, MethodInfo, Preset, option
from hf_condense.engine.task import Task
from hf_condense.methods._images import AUGMENT_HELP, LearnedLabelConfig, cross_entropy
from hf_condense.methods._siamese import SiameseConfig, SiameseMethod
from hf_condense.networks.factory import activation_bytes, has_batch_statistics
from hf_condense.networks.training import TrainingSet, train_network
from hf_condense.networks.training_recipe import TrainingRecipe

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

Gradients = Sequence[Tensor]  # one tensor (k, *shape) for each parameter, of k classes

_EPSILON = 1e-6
# On a CPU one batched call wins while its activations stay near the cache: at width 32 by 1.4 for 10 images and by
# nothing for 100, at width 128 by 1.3 for 10; for 100 the loop wins by 1.6 (32 x 32 pixels). On a GPU it always wins.
_BATCHED_BYTES = 64 * 2**20
_FREEZE_IMAGES = 16  # real images of a class that batch norm takes its statistics from
_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # ipc: outer, inner


def loops(ipc: int) -> tuple[int, int]:
    """Return the outer and inner loop for an ipc: the paper's table, and between its rows what they suggest.

    As many outer steps as images, at most 50; inner epochs so that the product stays near 500.

    Reference:
        Zhao et al., ICLR 2021, as in the authors' code, which knows ipc 1, 10, 20, 30, 40 and 50 only.

    Example:
        >>> loops(1), loops(10), loops(15), loops(200)
        ((1, 1), (10, 50), (15, 33), (50, 10))
    """
    outer = min(ipc, 50)
    return _LOOPS.get(ipc, (outer, min(50, 500 // outer)))


def layerwise_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Sum over classes, tensors and output rows of one minus the cosine; biases and norms do not count.

    Args:
        synthetic: Gradients by parameter.
        real: The same of the real batches.

    Shapes:
        each (k, *shape), of k classes -> ()

    Reference:
        Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021, equations 9 and 10 (arXiv:2006.05929).

    Example:
        >>> float(layerwise_distance([torch.tensor([[[1.0, 0.0]]])], [torch.tensor([[[0.0, 2.0]]])]))
        1.0
    """
    pairs = [(own, wanted) for own, wanted in zip(synthetic, real, strict=True) if own.ndim > 2]
    return torch.stack([(1 - _cosine(own.flatten(2), wanted.flatten(2))).sum() for own, wanted in pairs]).sum()


def cosine_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Sum over classes of one minus the cosine of all parameters as one vector; shapes as `layerwise_distance`."""
    return (1 - _cosine(_joined(synthetic), _joined(real))).sum()


def squared_distance(synthetic: Gradients, real: Gradients) -> Tensor:
    """Sum over classes of the squared distance of all parameters as one vector; shapes as `layerwise_distance`."""
    return (_joined(synthetic) - _joined(real)).square().sum()


def _cosine(own: Tensor, wanted: Tensor) -> Tensor:
    """Cosines along the last dimension; a row of zeros has cosine 0 and no gradient."""
    norms = torch.linalg.vector_norm(own, dim=-1) * torch.linalg.vector_norm(wanted, dim=-1)
    cosine: Tensor = (own * wanted).sum(-1) / (norms + _EPSILON)
    return cosine


def _joined(gradients: Gradients) -> Tensor:
    """Join all parameters to one vector a class: (k, P)."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1)


_DISTANCES: dict[str, Callable[[Gradients, Gradients], Tensor]] = {
    "layerwise": layerwise_distance,
    "cosine": cosine_distance,
    "mse": squared_distance,
}


def looped_gradients(
    net: nn.Module, images: Sequence[Tensor], targets: Sequence[Tensor], temperature: float = 1.0
) -> list[Tensor]:
    """Differentiate the mean cross-entropy of each class in turn; can be differentiated again.

    Args:
        net: The network.
        images: Rows of each class.
        targets: Labels (n,) or probabilities (n, K) of each class.
        temperature: What the logits are divided by.

    Shapes:
        k batches (n, C, H, W) -> for each parameter (k, *shape)
    """
    parameters = list(net.parameters())
    found = []
    for rows, wanted in zip(images, targets, strict=True):
        loss = cross_entropy(net(rows), wanted, temperature)
        found.append(torch.autograd.grad(loss, parameters, create_graph=True))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def batched_gradients(
    net: nn.Module, images: Sequence[Tensor], targets: Sequence[Tensor], temperature: float = 1.0
) -> list[Tensor]:
    """Do as `looped_gradients`, for all classes in one call; they must have the same number of rows."""
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def loss(weights: Mapping[str, Tensor], rows: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, {**weights, **buffers}, (rows,)), wanted, temperature)

    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    found: dict[str, Tensor] = each(parameters, torch.stack(list(images)), torch.stack(list(targets)))
    return list(found.values())


@dataclass(frozen=True)
class GradientMatchingConfig(LearnedLabelConfig, SiameseConfig):
    """Options of DC."""

    lr_img: float = option(0.1, "Learning rate of the images, in normalised units.", gt=0, role="image_rate")
    init: str = option("noise", "Start from 'real' rows, 'noise', or the rows of a coreset method.", role="init")
    augment: str = option("none", AUGMENT_HELP, role="augment")
    distance: str = option("layerwise", "How gradients are compared.", choices=tuple(_DISTANCES))
    outer_loop: int | None = option(None, "Updates of the images per network; None: by ipc, see `loops`.", ge=1)
    inner_loop: int | None = option(
        None, "Epochs that the network is trained on the set after each update; None: by ipc.", ge=0
    )
    lr_net: float = option(0.01, "Learning rate of that training.", gt=0)
    class_gradients: str = option(
        "auto",
        "How the gradients of the synthetic classes are computed: 'loop', 'batched' (vmap), or 'auto', by a rule from "
        "shapes and device. Classes of different sizes are always looped over.",
        choices=("auto", "loop", "batched"),
    )


def _paper(task: Task) -> dict[str, object]:
    """1,000 networks, each with its outer loop."""
    return {"steps": 1000 * loops(task.ipc)[0], "pixel_range": "free"}


def _default(task: Task) -> dict[str, object]:
    """A fifth of the paper's networks, valid pixels."""
    return {"steps": 200 * loops(task.ipc)[0]}


def _quick(task: Task) -> dict[str, object]:
    """A start from real rows, small real batches, short loops and a larger rate: chosen on a part of training sets."""
    short = {"batch_real": 64, "outer_loop": min(task.ipc, 10), "inner_loop": 5}
    return {"steps": 300, "network": "convnet-w32", "init": "real", "lr_img": 1.0, "decay": True, **short}


class GradientMatching(SiameseMethod[GradientMatchingConfig]):
    """Gradient matching (DC)."""

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
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("A fifth of the paper's 1,000 networks; pixels stay valid.", _default),
        "paper": Preset("1,000 networks and unclamped pixels, as the authors' code runs it (ICLR 2021).", _paper),
        "quick": Preset(
            "300 steps at width 32, real rows first, short loops, falling rates: minutes on two cores.", _quick
        ),
    }

    def prepare(self, run: Run) -> None:
        """Settle the loops, and how gradients are computed: what is done at once should stay in a CPU's cache."""
        outer, inner = loops(max(run.ipc.values()))
        self._outer = self.config.outer_loop or outer
        self._inner = inner if self.config.inner_loop is None else self.config.inner_loop
        self._net = run.network("network", 0, trainable=True)
        counts = set(run.counts.values())
        rows = counts.pop() * min(run.plan.classes_per_chunk, len(run.ipc))
        small = rows * activation_bytes(self._net, run.source.image_shape) <= _BATCHED_BYTES
        by_rule = "batched" if not counts and (run.device.type != "cpu" or small) else "loop"
        chosen = by_rule if self.config.class_gradients == "auto" else self.config.class_gradients
        self._gradients = batched_gradients if chosen == "batched" and not counts else looped_gradients

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the distances of the gradients, one chunk of classes at a time."""
        if t % self._outer == 0:
            self._net = run.network("network", t, trainable=True)
        if has_batch_statistics(self._net):
            freeze_batch_statistics(self._net, run, t)
        distance = _DISTANCES[self.config.distance]
        for classes in run.chunks():
            rows = self.real_rows(run, classes, t).unflatten(0, (len(classes), -1))  # (k, B, C, H, W)
            wanted = [self._real_gradient(run, batch, c) for batch, c in zip(rows, classes, strict=True)]
            own = self._synthetic_gradients(run, classes, t)
            loss = distance([g.float() for g in own], [torch.stack(parts) for parts in zip(*wanted, strict=True)])
            yield Loss(loss, loss.detach())

    def _real_gradient(self, run: Run, images: Tensor, c: int) -> list[Tensor]:
        """Return the gradient of the mean cross-entropy of one class's real batch."""
        parameters = list(self._net.parameters())
        total = [torch.zeros_like(p) for p in parameters]
        for part in run.split_for_forward(images):
            labels = torch.full((len(part),), c, device=run.device)
            loss = F.cross_entropy(run.logits(part), labels, reduction="sum") / len(images)
            for kept, more in zip(total, torch.autograd.grad(loss, parameters), strict=True):
                kept += more
        return total

    def _synthetic_gradients(self, run: Run, classes: tuple[int, ...], t: int) -> list[Tensor]:
        """Return the gradients of the synthetic classes; they carry the graph to images and labels."""
        rows, _ = self.synthetic_rows(run, classes, t)
        targets = run.synthetic.targets(classes, self.config.temperature)
        counts = [run.counts[c] for c in classes]
        with run.accelerator.autocast():
            return self._gradients(self._net, rows.split(counts), targets.split(counts), self.loss_temperature)

    def after_update(self, run: Run, t: int) -> None:
        """Train the network on the set as it is now, unless a fresh one comes next (the inner loop)."""
        if not self._inner or (t + 1) % self._outer == 0:
            return
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
            augment=None if self.augmentation is None else self.config.augment,
        )
        batch = min(recipe.batch_size, len(data))
        chunk = min(run.plan.images_per_forward or batch, batch)
        train_network(run.compiled_network(), data, recipe, run.seed, "inner", t, chunk=chunk)

    def state(self, run: Run) -> dict[str, Tensor]:
        """Return the network, which has been trained since it was drawn."""
        return {name: tensor.detach().clone() for name, tensor in self._net.state_dict().items()}

    def load_state(self, run: Run, state: dict[str, Tensor]) -> None:
        """Take the network back."""
        self._net.load_state_dict(state)


def freeze_batch_statistics(net: nn.Module, run: Run, t: int) -> None:
    """Let batch norm take its statistics from real rows of all classes, and keep them while classes go one by one.

    Reference:
        Zhao et al., ICLR 2021, as in the authors' code: 16 rows a class.
    """
    net.train()
    with torch.no_grad():
        net(run.source.sample(run.classes, _FREEZE_IMAGES, run.seed, "freeze", t).flatten(0, 1))
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
