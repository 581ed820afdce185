"""The classifier that scores pictures and labels images: the caller's, or one that is trained on the real set."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.cache import content_key
from hf_condense.base.processes import from_main, main_first
from hf_condense.base.spread import spread
from hf_condense.engine.run import Run
from hf_condense.engine.soft_labels import facts_for_recipe
from hf_condense.engine.trained_networks import (
    FORWARD_IMAGES,
    cached_tensors_of,
    cpu_state,
    diverged_teacher,
    held_out_rows,
    is_finite,
    network_key,
    training_set_without,
)
from hf_condense.networks.accuracy import accuracy
from hf_condense.networks.augment import families_of
from hf_condense.networks.teachers import Teacher, refuse_infinite, weights_hash
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import TrainingRecipe
from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source

logger = logging.getLogger("hf_condense")

# Pixels; the shorter side of the images on which a teacher is trained, if those of the source are not smaller.
TEACHER_SIDE = 64

_JUDGED = 200  # rows on which the caller's teacher is measured if fewer are held out
_CERTAIN = 20  # rows from which on a teacher that is right no more often than by chance is refused

# How a teacher of `settle_teacher` is trained; its augmentation is an option of the method.
TEACHER = TrainingRecipe(
    "teacher", epochs=300, batch_size=128, lr=0.02, milestones=(0.6, 0.85), gamma=0.2, restart_optimiser=False
)


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
        ValueError: If the caller's teacher lacks a class of the dataset, gives logits that are not finite or, measured
            on 20 rows or more, tells classes apart but is right no more often than by chance; or if the training of the
            run's network diverges.
    """
    if teacher is None:
        side = min(TEACHER_SIDE, *run.source.image_shape[1:]) if size is None else size
        return _trained_teacher(run, scaled(run.source.image_shape[1:], side), updates, augment)
    given = Teacher.from_transformers(teacher) if isinstance(teacher, str) else teacher
    measured = from_main(run.accelerator, partial(_measured, run, given))
    return given, {**facts_for_recipe(run, given.name, given.content_hash), **measured}


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (height, width) in the ratio of a size, so that its shorter side is `side`."""
    height, width = (round(side * length / min(size)) for length in size)
    return height, width


def _trained_teacher(run: Run, size: tuple[int, int], updates: int, augment: str) -> tuple[Teacher, dict[str, Any]]:
    """Return the run's network, trained on the source at a (height, width), and its facts."""
    families = families_of(augment)
    recipe = dataclasses.replace(TEACHER, augment=augment, always=families)
    source = main_first(run.accelerator, partial(_at_size, run, size))
    held_out = held_out_rows(run)
    data = training_set_without(source, held_out)
    factory = run.factory.at_size(source.image_shape[1:])
    net = factory.build(run.seed, "teacher").to(run.device)

    def train() -> dict[str, Tensor]:
        with torch.enable_grad():
            train_network(net, data, recipe, run.seed, "teacher", max_updates=updates)
        return cpu_state(net)

    def state_of_teacher() -> dict[str, Tensor]:
        whole = network_key(run, updates, network=factory.name)
        key = content_key(whole=whole, shape=source.image_shape, recipe=dataclasses.asdict(recipe))
        return cached_tensors_of(run, "networks", key, train)

    net.load_state_dict(from_main(run.accelerator, state_of_teacher))
    if not is_finite(net.state_dict()):
        raise diverged_teacher("weights", factory.name, updates)
    teacher = Teacher(
        net,
        source.class_names,
        name=factory.name,
        mean=source.mean.tolist(),
        std=source.std.tolist(),
        image_size=source.image_shape[1:],
    )
    content_hash, done = weights_hash([net.state_dict()]), recipe.updates(len(data), updates)
    facts = facts_for_recipe(run, factory.name, content_hash, updates=done, held_out=len(held_out))
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
        ValueError: If its logits are not finite, or if it is right on no more rows than by chance, although it tells
            the classes apart and there are enough rows to be certain.
    """
    source = run.source
    positions = held_out_rows(run)
    if len(positions) < _JUDGED:
        most = max(1, _JUDGED // len(source.classes))
        of_classes = [source.positions(c) for c in source.classes]
        positions = max(positions, torch.cat([r.start + spread(len(r), most) for r in of_classes]), key=len)
    logits_of = teacher.in_order(source.class_names)
    # One part after the other: all pictures at their full size may not fit into memory.
    parts = (source.images[index.to(source.images.device)] for index in positions.split(FORWARD_IMAGES))
    logits = torch.cat([logits_of(part.to(run.device).float() / 255).cpu() for part in parts])
    refuse_infinite(teacher.name, logits)
    chosen = logits.argmax(1)
    labels = source.labels[positions]
    share = float((chosen == labels).float().mean())
    answers = {c: chosen[labels == c].mode().values.item() for c in labels.unique().tolist()}  # the most frequent ones
    chance = 1 / len(answers)
    tells_apart = len(set(answers.values())) > 1  # else the names of its classes are not what is wrong
    if tells_apart and share <= chance and len(labels) >= _CERTAIN:
        names = source.class_names
        listing = ", ".join(f"{names[c]!r} as {names[int(other)]!r}" for c, other in list(answers.items())[:5])
        raise ValueError(
            f"the teacher {teacher.name!r} is right on {share:.1%} of {len(labels)} rows, no more than by chance: are "
            f"the names of its classes in the order of its logits? It most often sees {listing}"
        )
    if len(answers) > 1 and share < min(2 * chance, (1 + chance) / 2):
        logger.warning("the teacher %r is right on only %.1f %% of %d rows", teacher.name, 100 * share, len(labels))
    return {"accuracy": share, "accuracy_rows": len(labels)}
