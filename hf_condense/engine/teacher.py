"""A network that is trained on the real set: it gives coresets features and synthetic images soft labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_condense.base.cache import cache_enabled, cache_folder, cached_tensors, content_key
from hf_condense.base.processes import broadcast, broadcast_object
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.training import TrainingSet, accuracy, train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.source.class_source import ClassSource, batches

logger = logging.getLogger("hf_condense")

_BATCH = 64  # images in one forward pass
_BATCH_SIZE = RECIPES["dc"].batch_size  # rows per training update
_LEAST_UPDATES = 10  # of a teacher that is stopped early: before that, it knows little
_HELD_OUT_SHARE = 10  # one of so many rows of a class is held out
_MOST_HELD_OUT = 1000  # rows in all, but at least one of each class that has two
_STUDENT_UPDATES = 100  # of the network that tries a teacher's labels


def network_key(run: Run, updates: int, batch: int = _BATCH_SIZE) -> str:
    """Return the cache key of a trained network and of its features."""
    return content_key(
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        network=run.factory.name,
        updates=updates,
        batch=batch,
        seed=run.seed,
        device=run.device.type,
        torch=torch.__version__,
        whitened=run.source.whitening is not None,
    )


def trained_network(run: Run, updates: int, batch: int = _BATCH_SIZE) -> nn.Module:
    """Return the run's network, trained on the whole source, in evaluation mode, on the device.

    Its weights are cached. There is no barrier in here: callers must let the main process go first.

    Args:
        run: The run.
        updates: Training updates by the recipe `dc`, >= 0.
        batch: Rows per update, >= 1.
    """
    net = run.factory.build(run.seed, "features").to(run.device)
    if not cache_enabled(run.cache and run.factory.named):
        _train(run, net, updates, batch)
        return net.eval()
    file = cache_folder("networks") / f"{network_key(run, updates, batch)}.safetensors"

    def make() -> dict[str, Tensor]:
        _train(run, net, updates, batch)
        return {name: tensor.cpu() for name, tensor in net.state_dict().items()}

    net.load_state_dict(cached_tensors(file, make))
    return net.eval()


def _train(run: Run, net: nn.Module, updates: int, batch: int) -> None:
    if updates:
        whole = TrainingSet(run.source, run.source.labels, run.num_classes)
        with torch.enable_grad():
            recipe = dataclasses.replace(RECIPES["dc"], batch_size=batch)
            train_network(net, whole, recipe, run.seed, "features", max_updates=updates)


@torch.no_grad()
def teacher_logits(
    run: Run, synthetic: SyntheticSet, updates: int, *, early: bool = False, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Any]]:
    """Return the logits of a trained network for the decoded rows of a set, and the facts about that network.

    Args:
        run: The run.
        synthetic: The set.
        updates: Training updates of the network, >= 0; the largest number if it may stop early.
        early: Whether the network may stop early. If so, a tenth of the training rows is held out, and the rest trains
            the network. Its states after `updates`, half as many, a quarter and so on each label the set, and a fresh
            network is trained on each of these sets, from the same weights. The state whose labels give the best
            accuracy on the held-out rows is chosen.
        temperature: Temperature of the labels in training.

    Returns:
        The logits, float32 (rows, K), and the facts that `Recipe.teacher` describes.

    Raises:
        ValueError: If no class has a row to hold out.
    """
    if early:
        return _early_teacher_logits(run, synthetic, updates, temperature)
    with run.accelerator.main_process_first():  # the others then read its weights from the cache
        teacher = trained_network(run, updates)
    logits = network_logits(teacher, synthetic.all()[0])
    facts = teacher_facts(run, [teacher.state_dict()], RECIPES["dc"].updates(len(run.source), updates))
    # Without a cache, each process has trained its own teacher.
    return broadcast(run.accelerator, logits), broadcast_object(run.accelerator, facts)


def network_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images (n, C, H, W), computed in small batches: float32 (n, K)."""
    return torch.cat([network(part).float() for part in images.split(_BATCH)])


def teacher_facts(run: Run, weights: Iterable[dict[str, Tensor]], updates: int, *, held_out: int = 0) -> dict[str, Any]:
    """Return what identifies the networks that label a set, as JSON values.

    Args:
        run: The run.
        weights: Tensors of each network, by name.
        updates: Training updates of each network.
        held_out: Training rows that the networks did not see, because they served to choose the updates.
    """
    digest, networks = hashlib.blake2b(digest_size=16), 0
    for tensors in weights:
        networks += 1
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "network": run.factory.name,
        "networks": networks,
        "updates": updates,
        "seed": run.seed,
        "content_hash": digest.hexdigest(),
        "held_out": held_out,
        "classes": list(run.source.class_names),
    }


def _early_teacher_logits(
    run: Run, synthetic: SyntheticSet, updates: int, temperature: float
) -> tuple[Tensor, dict[str, Any]]:
    """Return the logits and the facts of a teacher that is stopped early; the main process does all the work."""
    rows, facts = synthetic.all()[0].detach(), {}
    logits = rows.new_zeros(len(rows), run.num_classes)
    if run.accelerator.is_main_process:
        held_out = _held_out(run)
        held_out_source = dataclasses.replace(
            run.source,
            images=run.source.images[held_out.to(run.source.images.device)],
            labels=run.source.labels[held_out],
            rows=run.source.rows[held_out],
        )
        states = _early_states(run, updates, held_out)
        trials = {}
        for count, state in states.items():
            teacher = run.factory.build(run.seed, "features").to(run.device)
            teacher.load_state_dict(state)
            labels = network_logits(teacher.eval(), rows)
            data = TrainingSet(rows, labels, run.num_classes, temperature)
            trials[count] = _student_accuracy(run, data, held_out_source), labels
        chosen = max(trials, key=lambda count: trials[count][0])  # the earliest of equals
        logits = trials[chosen][1]
        facts = teacher_facts(run, [states[chosen]], chosen, held_out=len(held_out))
        listing = ", ".join(f"{score:.1%} after {count:,}" for count, (score, _) in trials.items())
        logger.info("the teacher stops after %d updates; held-out accuracies of students: %s", chosen, listing)
    return broadcast(run.accelerator, logits), broadcast_object(run.accelerator, facts)


def _held_out(run: Run) -> Tensor:
    """Return the positions of the training rows that are held out, sorted: int64 (n,)."""
    most = max(1, _MOST_HELD_OUT // len(run.source.classes))
    parts = []
    for c in run.source.classes:
        positions = run.source.positions(c)
        count = min(most, max(len(positions) // _HELD_OUT_SHARE, int(len(positions) > 1)))
        order = torch.randperm(len(positions), generator=run.rng("held out", run.source.class_names[c]))
        parts.append(order[:count] + positions.start)
    held_out = torch.cat(parts).sort().values
    if not len(held_out):
        raise ValueError(
            "early_teacher=True holds out training rows to choose when the teacher stops, but no class has more than "
            "one row; pass early_teacher=False"
        )
    return held_out


@dataclass(frozen=True)
class _Part(TrainingSet):
    """Some rows of a training set.

    Attributes:
        positions: Their positions in that set. int64 (n,).
    """

    positions: Tensor = dataclasses.field(kw_only=True)

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return super().batch(self.positions[index])


def _early_states(run: Run, updates: int, held_out: Tensor) -> dict[int, dict[str, Tensor]]:
    """Return the states of a teacher by its number of updates, in increasing order. They are cached."""
    is_seen = torch.ones(len(run.source), dtype=torch.bool)
    is_seen[held_out] = False
    positions = is_seen.nonzero()[:, 0]
    data = _Part(run.source, run.source.labels, run.num_classes, positions=positions)
    most = RECIPES["dc"].updates(len(data), updates)
    counts = sorted({most, *(most >> i for i in range(most.bit_length()) if most >> i >= _LEAST_UPDATES)})

    def make() -> dict[str, Tensor]:
        net, done, tensors = run.factory.build(run.seed, "features").to(run.device), 0, {}

        def keep_state() -> None:
            nonlocal done
            done += 1
            if done in counts:
                state = net.state_dict().items()
                tensors.update({f"{done}/{name}": tensor.cpu().clone() for name, tensor in state})

        with torch.enable_grad():
            recipe = RECIPES["dc"]
            train_network(net, data, recipe, run.seed, "early teacher", max_updates=most, on_update=keep_state)
        return tensors

    if cache_enabled(run.cache and run.factory.named):
        key = content_key(whole=network_key(run, most), held_out=held_out.tolist())
        tensors = cached_tensors(cache_folder("networks") / f"{key}.safetensors", make)
    else:
        tensors = make()
    named = [(int(count), name, tensor) for path, tensor in tensors.items() for count, name in [path.split("/", 1)]]
    return {count: {name: tensor for n, name, tensor in named if n == count} for count in counts}


def _student_accuracy(run: Run, data: TrainingSet, held_out: ClassSource) -> float:
    """Return the accuracy on held-out rows of a fresh network that is trained on a labelled set for some updates."""
    student = run.factory.build(run.seed, "student of the teacher").to(run.device)
    with torch.enable_grad():
        train_network(student, data, RECIPES["dc"], run.seed, "early teacher", max_updates=_STUDENT_UPDATES)
    return accuracy(student, held_out, torch.arange(run.num_classes))


def features_of(run: Run, kind: str, updates: int, batch: int = _BATCH_SIZE) -> Tensor:
    """Return a feature for every image of the source, in its order.

    Args:
        run: The run.
        kind: `"network"` (embeddings of the run's network, which is trained on the whole source), `"pixels"`
            (normalised pixels), or the name of a numeric column of the dataset.
        updates: Training updates of that network, >= 0.
        batch: Rows per update, >= 1.

    Returns:
        (N, D), on the CPU.

    Raises:
        ValueError: If there is no such column, or its rows are not vectors of equal length.
    """
    if kind == "pixels":
        return torch.cat([images.flatten(1).cpu() for images, _ in batches(run.source, _BATCH)])
    if kind != "network":
        return run.numeric_column(kind)
    if not cache_enabled(run.cache and run.factory.named):
        return _embedded(run, updates, batch)
    file = cache_folder("features") / f"{network_key(run, updates, batch)}.safetensors"
    # The other processes wait for the main one and then read the file.
    with run.accelerator.main_process_first():
        return cached_tensors(file, lambda: {"features": _embedded(run, updates, batch)})["features"]


@torch.no_grad()
def _embedded(run: Run, updates: int, batch: int) -> Tensor:
    """Return embeddings of the source by a network that was trained on it: (N, D)."""
    net = trained_network(run, updates, batch)
    return torch.cat([net.embed(images).float().cpu() for images, _ in batches(run.source, _BATCH)])  # type: ignore[operator]
