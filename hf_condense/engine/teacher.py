"""Networks that know the real set: they give coresets features, score crops, and give images soft labels."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_condense.base.cache import cached_or_made, content_key
from hf_condense.base.devices import device_facts
from hf_condense.base.processes import from_main, main_first
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.networks.accuracy import accuracy
from hf_condense.networks.augment import families_of
from hf_condense.networks.teachers import Teacher, weights_hash
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES, TrainingRecipe
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source

logger = logging.getLogger("hf_condense")

CACHE_VERSION = 1  # version of the cached networks; increment when the same options start to give other weights

# Pixels; the shorter side of the images on which a teacher is trained, if those of the source are not smaller.
TEACHER_SIDE = 64

_BATCH = 64  # images in one forward pass
_BATCH_SIZE = RECIPES["dc"].batch_size  # rows per training update
_LEAST_UPDATES = 10  # of a teacher that is stopped early: before that, it knows little
_STUDENT_UPDATES = 100  # of the network that tries a teacher's labels
# How a teacher of `settle_teacher` is trained; its augmentation is an option of the method.
_TEACHER = TrainingRecipe(
    "teacher", epochs=300, batch_size=128, lr=0.02, milestones=(0.6, 0.85), gamma=0.2, restart_optimiser=False
)


def network_key(run: Run, updates: int, batch: int = _BATCH_SIZE, *, network: str | None = None) -> str:
    """Return the cache key of a trained network and of its features.

    Args:
        run: The run.
        updates: Training updates of the network.
        batch: Rows per update.
        network: Canonical name of the network; None: that of the run's.
    """
    return content_key(
        format=CACHE_VERSION,
        recipe=dataclasses.asdict(RECIPES["dc"]),
        content=run.source.content_hash,
        shape=list(run.source.image_shape),
        network=run.factory.name if network is None else network,
        updates=updates,
        batch=batch,
        seed=run.seed,
        torch=torch.__version__,
        whitened=run.source.whitening is not None,
        **device_facts(run.device),
    )


def trained_network(run: Run, updates: int, batch: int = _BATCH_SIZE) -> nn.Module:
    """Return the run's network, trained on the whole source, in evaluation mode, on the device.

    Its weights are cached. There is no barrier in here: callers should let the main process do it alone.

    Args:
        run: The run.
        updates: Training updates by the recipe `dc`, >= 0.
        batch: Rows per update, >= 1.
    """
    net = run.factory.build(run.seed, "features").to(run.device)

    def make() -> dict[str, Tensor]:
        _train(run, net, updates, batch)
        return {name: tensor.cpu() for name, tensor in net.state_dict().items()}

    net.load_state_dict(_cached(run, "networks", network_key(run, updates, batch), make))
    return net.eval()


def _cached(run: Run, kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the cache, or made anew if the run does not use it or its network has no name."""
    return cached_or_made(kind, key, make, enabled=run.cache and run.factory.named)


def _train(run: Run, net: nn.Module, updates: int, batch: int) -> None:
    if updates:
        whole = TrainingSet(run.source, run.source.labels, run.num_classes)
        with torch.enable_grad():
            recipe = dataclasses.replace(RECIPES["dc"], batch_size=batch)
            train_network(net, whole, recipe, run.seed, "features", max_updates=updates)


class Labels(NamedTuple):
    """Soft labels of a set, and what gave them.

    Attributes:
        logits: Logits of the decoded rows. float32 (rows, K).
        facts: What `Recipe.teacher` describes.
        labeller: What gives logits for other images, as `SyntheticSet.labeller` does; None if it takes no pixels.
    """

    logits: Tensor
    facts: dict[str, Any]
    labeller: Callable[[Tensor], Tensor] | None = None


@torch.no_grad()
def teacher_labels(
    run: Run, synthetic: SyntheticSet, updates: int, *, early: bool = False, temperature: float = 1.0
) -> Labels:
    """Return the soft labels that a trained network gives to the decoded rows of a set.

    Args:
        run: The run.
        synthetic: The set.
        updates: Training updates of the network, >= 0; the largest number if it may stop early.
        early: Whether the network may stop early. If so, a tenth of the training rows is held out, and the rest trains
            the network. Its states after `updates`, half as many, a quarter and so on each label the set, and a fresh
            network is trained on each of these sets, from the same weights. The state whose labels give the best
            accuracy on the held-out rows is chosen.
        temperature: Temperature of the labels in training.

    Raises:
        ValueError: If no class has a row to hold out.
    """

    def label() -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        if early:
            logits, facts, state = _labels_of_early_teacher(run, synthetic, updates, temperature)
        else:
            teacher = trained_network(run, updates)
            logits, state = network_logits(teacher, synthetic.all()[0]), teacher.state_dict()
            facts = teacher_facts(run, [state], RECIPES["dc"].updates(len(run.source), updates))
        return logits.cpu(), facts, {name: tensor.cpu() for name, tensor in state.items()}

    # Only the main process trains teachers.
    logits, facts, state = from_main(run.accelerator, label)
    return Labels(logits.to(run.device), facts, _labeller(run, state))


def _labeller(run: Run, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Return what gives the logits of a network with these weights for pixels; None if it takes whitened images."""
    source = run.source
    if source.whitening is not None:
        return None
    net = run.factory.build(run.seed, "features")
    net.load_state_dict(state)
    names, mean, std = source.class_names, source.mean.tolist(), source.std.tolist()
    return Teacher(net, names, name=run.factory.name, mean=mean, std=std).logits


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
    states = list(weights)
    return _facts(run, run.factory.name, weights_hash(states), len(states), updates, held_out)


def _facts(
    run: Run, network: str, content_hash: str, networks: int = 1, updates: int = 0, held_out: int = 0
) -> dict[str, Any]:
    """Return what `Recipe.teacher` describes, but for the accuracy."""
    return {
        "network": network,
        "networks": networks,
        "updates": updates,
        "seed": run.seed,
        "content_hash": content_hash,
        "held_out": held_out,
        "classes": list(run.source.class_names),
    }


def settle_teacher(
    run: Run, teacher: Teacher | str | None, *, size: int | None, updates: int, augment: str
) -> tuple[Teacher, dict[str, Any]]:
    """Return the classifier that scores pictures and labels images, and the facts that `Recipe.teacher` describes.

    Args:
        run: The run.
        teacher: The caller's; or the folder of an image classifier of `transformers`; or None, to train the run's
            network on the source, of which a tenth is held out to measure its accuracy.
        size: Shorter side, in pixels, of the images on which it is trained; they keep the shape of the run's. None: 64,
            or the shorter side of the run's images if they are smaller.
        updates: Updates of its training, >= 1.
        augment: Families of augmentation of its training, or "none"; every image gets all of them.

    Raises:
        ValueError: If the caller's teacher lacks a class of the dataset, or is right on no more rows than by chance.
    """
    if teacher is None:
        side = min(TEACHER_SIDE, *run.source.image_shape[1:]) if size is None else size
        return _trained_teacher(run, scaled(run.source.image_shape[1:], side), updates, augment)
    given = Teacher.from_transformers(teacher) if isinstance(teacher, str) else teacher
    measured = from_main(run.accelerator, partial(_measured, run, given))
    return given, {**_facts(run, given.name, given.content_hash), **measured}


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (height, width) in the ratio of a size, so that its shorter side is `side`."""
    height, width = (round(side * length / min(size)) for length in size)
    return height, width


def _trained_teacher(run: Run, size: tuple[int, int], updates: int, augment: str) -> tuple[Teacher, dict[str, Any]]:
    """Return the run's network, trained on the source at a (height, width), and its facts."""
    families = families_of(augment)
    recipe = dataclasses.replace(_TEACHER, augment=augment, always=families)
    source = main_first(run.accelerator, partial(_at_size, run, size))
    held_out = _held_out(run)
    data = _without(source, held_out)
    factory = run.factory.at_size(source.image_shape[1:])
    net = factory.build(run.seed, "teacher").to(run.device)

    def train() -> dict[str, Tensor]:
        with torch.enable_grad():
            train_network(net, data, recipe, run.seed, "teacher", max_updates=updates)
        return {name: tensor.cpu() for name, tensor in net.state_dict().items()}

    def state_of_teacher() -> dict[str, Tensor]:
        whole = network_key(run, updates, network=factory.name)
        key = content_key(whole=whole, shape=source.image_shape, recipe=dataclasses.asdict(recipe))
        return _cached(run, "networks", key, train)

    net.load_state_dict(from_main(run.accelerator, state_of_teacher))
    teacher = Teacher(
        net,
        source.class_names,
        name=factory.name,
        mean=source.mean.tolist(),
        std=source.std.tolist(),
        image_size=source.image_shape[1:],
    )
    content_hash, done = weights_hash([net.state_dict()]), recipe.updates(len(data), updates)
    facts = _facts(run, factory.name, content_hash, updates=done, held_out=len(held_out))
    if len(held_out):
        held_out_source = source.part(held_out)
        facts["accuracy"] = from_main(
            run.accelerator, lambda: accuracy(net, held_out_source, torch.arange(run.num_classes))
        )
        logger.info("the teacher is right on %.1f %% of %d held-out rows", 100 * facts["accuracy"], len(held_out))
    return teacher, facts


def _at_size(run: Run, size: tuple[int, int]) -> ClassSource:
    """Return the run's source with images of a (height, width)."""
    if run.source.image_shape[1:] == size:
        return run.source
    return load_source(
        run.dataset,
        image_column=run.source.image_column,
        label_column=run.source.label_column,
        image_size=size,
        channels=run.source.image_shape[0],
        cache=run.cache,
        progress=run.shows_progress,
    ).to(run.device)


def _measured(run: Run, teacher: Teacher) -> dict[str, Any]:
    """Return the accuracy of the caller's teacher on some rows of the source, and how many these are.

    Raises:
        ValueError: If it is right on no more rows than by chance, although it tells the classes apart.
    """
    source = run.source
    positions = _held_out(run)
    if not len(positions):
        positions = torch.tensor([source.positions(c).start for c in source.classes])
    logits_of = teacher.in_order(source.class_names)
    # One part after the other: all pictures at their full size may not fit into memory.
    parts = (source.images[index.to(source.images.device)] for index in positions.split(_BATCH))
    chosen = torch.cat([logits_of(part.to(run.device).float() / 255).argmax(1).cpu() for part in parts])
    labels = source.labels[positions]
    share = float((chosen == labels).float().mean())
    answers = {c: chosen[labels == c].mode().values.item() for c in labels.unique().tolist()}  # the most frequent ones
    chance = 1 / len(answers)
    tells_apart = len(set(answers.values())) > 1  # else the names of its classes are not what is wrong
    if tells_apart and share <= chance:
        names = source.class_names
        listing = ", ".join(f"{names[c]!r} as {names[int(other)]!r}" for c, other in list(answers.items())[:5])
        raise ValueError(
            f"the teacher {teacher.name!r} is right on {share:.1%} of {len(labels)} rows, no more than by chance: are "
            f"the names of its classes in the order of its logits? It most often sees {listing}"
        )
    if len(answers) > 1 and share < min(2 * chance, (1 + chance) / 2):
        logger.warning("the teacher %r is right on only %.1f %% of %d rows", teacher.name, 100 * share, len(labels))
    return {"accuracy": share, "accuracy_rows": len(labels)}


def _labels_of_early_teacher(
    run: Run, synthetic: SyntheticSet, updates: int, temperature: float
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Return the logits, the facts and the weights of a teacher that is stopped early."""
    held_out = _held_out(run)
    if not len(held_out):
        raise ValueError(
            "early_teacher=True holds out training rows to choose when the teacher stops, but no class has more than "
            "one row; pass early_teacher=False"
        )
    rows = synthetic.all()[0].detach()
    held_out_source = run.source.part(held_out)
    states = _early_states(run, updates, held_out)
    trials = {}
    for count, state in states.items():
        teacher = run.factory.build(run.seed, "features").to(run.device)
        teacher.load_state_dict(state)
        labels = network_logits(teacher.eval(), rows)
        data = TrainingSet(rows, labels, run.num_classes, temperature)
        trials[count] = _student_accuracy(run, data, held_out_source), labels
    chosen = max(trials, key=lambda count: trials[count][0])  # the earliest of equals
    listing = ", ".join(f"{score:.1%} after {count:,}" for count, (score, _) in trials.items())
    logger.info("the teacher stops after %d updates; held-out accuracies of students: %s", chosen, listing)
    facts = teacher_facts(run, [states[chosen]], chosen, held_out=len(held_out))
    return trials[chosen][1], facts, states[chosen]


def _held_out(run: Run) -> Tensor:
    """Return the positions of the training rows that are held out, sorted: int64 (n,); none if no class has two."""
    return run.source.held_out(run.seed, "held out")


def _without(source: ClassSource, held_out: Tensor) -> TrainingSet:
    """Return a source as training data, without the rows at some positions."""
    is_seen = torch.ones(len(source), dtype=torch.bool)
    is_seen[held_out] = False
    seen = source.part(is_seen.nonzero()[:, 0], decoded=False)
    return TrainingSet(seen, seen.labels, len(source.class_names))


def _early_states(run: Run, updates: int, held_out: Tensor) -> dict[int, dict[str, Tensor]]:
    """Return the states of a teacher by its number of updates, in increasing order. They are cached."""
    data = _without(run.source, held_out)
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

    key = content_key(whole=network_key(run, most), held_out=held_out.tolist())
    tensors = _cached(run, "networks", key, make)
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
        return _joined((images.flatten(1) for images in run.source.all_images(_BATCH)), len(run.source))
    if kind != "network":
        return run.numeric_column(kind)
    key = network_key(run, updates, batch)
    return _cached(run, "features", key, lambda: {"features": _embedded(run, updates, batch)})["features"]


@torch.no_grad()
def _embedded(run: Run, updates: int, batch: int) -> Tensor:
    """Return embeddings of the source by a network that was trained on it: (N, D)."""
    net = trained_network(run, updates, batch)
    return _joined((net.embed(images).float() for images in run.source.all_images(_BATCH)), len(run.source))  # type: ignore[operator]


def _joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Return parts (n, D) one after the other, on the CPU: (rows, D). Memory never holds them twice."""
    whole, start = torch.empty(rows, 0), 0
    for part in parts:
        if not start:
            whole = torch.empty(rows, part.shape[1], dtype=part.dtype)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole
