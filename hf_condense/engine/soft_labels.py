"""Soft labels of a set: those of a network that was trained on the real set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_condense.base.cache import cache_enabled, content_key
from hf_condense.base.processes import from_main
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.engine.trained_networks import (
    FORWARD_IMAGES,
    cached_tensors_of,
    cpu_state,
    diverged_teacher,
    held_out_rows,
    is_finite,
    network_key,
    trained_network,
    training_set_without,
)
from hf_condense.networks.accuracy import accuracy
from hf_condense.networks.teachers import Teacher, weights_hash
from hf_condense.networks.training import train_network
from hf_condense.networks.training_recipe import RECIPES
from hf_condense.networks.training_set import TrainingSet
from hf_condense.source.class_source import ClassSource

logger = logging.getLogger("hf_condense")

_LEAST_UPDATES = 10  # of a teacher that is stopped early: before that, it knows little
_STUDENT_UPDATES = 100  # of the network that tries a teacher's labels


class SoftLabels(NamedTuple):
    """Soft labels of a set, and what gave them.

    Attributes:
        logits: Logits of the decoded rows. float32 (rows, K).
        facts: What `Recipe.teacher` describes.
        labeller: What gives logits for other images, as `SyntheticSet.labeller` does; None if there is none.
    """

    logits: Tensor
    facts: dict[str, Any]
    labeller: Callable[[Tensor], Tensor] | None = None


@torch.no_grad()
def teacher_labels(
    run: Run, synthetic: SyntheticSet, updates: int, *, early: bool = False, temperature: float = 1.0
) -> SoftLabels:
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
        ValueError: If no class has a row to hold out, or the logits are not finite.
    """

    def label() -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        if early:
            logits, facts, state = _labels_of_early_teacher(run, synthetic, updates, temperature)
        else:
            teacher = trained_network(run, updates)
            logits, state = network_logits(teacher, synthetic.all()[0]), cpu_state(teacher)
            facts = teacher_facts(run, [state], RECIPES["dc"].updates(len(run.source), updates))
        _check_finite(run, logits, facts["updates"])
        return logits.cpu(), facts, state

    # Only the main process trains teachers.
    logits, facts, state = from_main(run.accelerator, label)
    return SoftLabels(logits.to(run.device), facts, _labeller(run, state))


def train_teacher_first(run: Run, updates: int, *, early: bool) -> None:
    """Train the teacher of labels that are given after the last step, so that divergence is reported before the steps.

    Its weights are cached, and the labels are given by these. Without a cache, it is trained when they are needed.

    Args:
        run: The run.
        updates: As in `teacher_labels`.
        early: As in `teacher_labels`.

    Raises:
        ValueError: If no class has a row to hold out, or the weights are not finite.
    """
    held_out = rows_to_hold_out(run) if early else None
    if not cache_enabled(run.cache and run.factory.named):
        return

    def train() -> None:
        if held_out is None:
            states = [trained_network(run, updates).state_dict()]
        else:
            states = list(_early_states(run, updates, held_out).values())
        if not any(map(is_finite, states)):
            raise diverged_teacher("logits", run.factory.name, updates)

    from_main(run.accelerator, train)


def _check_finite(run: Run, logits: Tensor, updates: int) -> None:
    """Raise `ValueError` for logits of a teacher that has diverged: a set with them could not be saved."""
    if not bool(logits.isfinite().all()):
        raise diverged_teacher("logits", run.factory.name, updates)


def network_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images (n, C, H, W), computed in small batches: float32 (n, K)."""
    return torch.cat([network(part).float() for part in images.split(FORWARD_IMAGES)])


def teacher_facts(run: Run, weights: Iterable[dict[str, Tensor]], updates: int, *, held_out: int = 0) -> dict[str, Any]:
    """Return what identifies the networks that label a set, as JSON values.

    Args:
        run: The run.
        weights: Tensors of each network, by name.
        updates: Training updates of each network.
        held_out: Training rows that the networks did not see, because they served to choose the updates.
    """
    networks = 0

    def counted() -> Iterator[dict[str, Tensor]]:  # not a list: many large networks may not fit into memory together
        nonlocal networks
        for state in weights:
            networks += 1
            yield state

    content_hash = weights_hash(counted())
    return facts_for_recipe(run, run.factory.name, content_hash, networks, updates, held_out)


def facts_for_recipe(
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


def _labeller(run: Run, state: dict[str, Tensor]) -> Callable[[Tensor], Tensor] | None:
    """Return what gives the logits of a network with these weights for pixels; None if it takes whitened images."""
    source = run.source
    if source.whitening is not None:
        return None
    net = run.factory.build(run.seed, "features")
    net.load_state_dict(state)
    names, mean, std = source.class_names, source.mean.tolist(), source.std.tolist()
    return Teacher(net, names, name=run.factory.name, mean=mean, std=std).logits


def rows_to_hold_out(run: Run) -> Tensor:
    """Return the positions of the rows that are held out from a teacher that stops early, sorted: int64 (n,).

    Raises:
        ValueError: If there are none.
    """
    held_out = held_out_rows(run)
    if not len(held_out):
        raise ValueError(
            "early_teacher=True holds out training rows to choose when the teacher stops, but no class has more than "
            "one row; pass early_teacher=False"
        )
    return held_out


def _labels_of_early_teacher(
    run: Run, synthetic: SyntheticSet, updates: int, temperature: float
) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Return the logits, the facts and the weights of a teacher that is stopped early."""
    held_out = rows_to_hold_out(run)
    rows = synthetic.all()[0].detach()
    held_out_source = run.source.part(held_out)
    states = _early_states(run, updates, held_out)
    trials = {}
    for count, state in states.items():
        teacher = run.factory.build(run.seed, "features").to(run.device)
        teacher.load_state_dict(state)
        labels = network_logits(teacher.eval(), rows)
        if not bool(labels.isfinite().all()):  # a student of these is right on all rows of one class
            logger.info("the teacher has diverged after %d updates", count)
            continue
        data = TrainingSet(rows, labels, run.num_classes, temperature)
        trials[count] = _student_accuracy(run, data, held_out_source), labels
    if not trials:
        raise diverged_teacher("logits", run.factory.name, max(states))
    chosen = max(trials, key=lambda count: trials[count][0])  # the earliest of equals
    listing = ", ".join(f"{score:.1%} after {count:,}" for count, (score, _) in trials.items())
    logger.info("the teacher stops after %d updates; held-out accuracies of students: %s", chosen, listing)
    facts = teacher_facts(run, [states[chosen]], chosen, held_out=len(held_out))
    return trials[chosen][1], facts, states[chosen]


def _early_states(run: Run, updates: int, held_out: Tensor) -> dict[int, dict[str, Tensor]]:
    """Return the states of a teacher by its number of updates, in increasing order. They are cached."""
    data = training_set_without(run.source, held_out)
    most = RECIPES["dc"].updates(len(data), updates)
    counts = [most]
    while counts[0] // 2 >= _LEAST_UPDATES:
        counts.insert(0, counts[0] // 2)

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
    tensors = cached_tensors_of(run, "networks", key, make)
    states: dict[int, dict[str, Tensor]] = {count: {} for count in counts}
    for path, tensor in tensors.items():
        count, _, name = path.partition("/")
        states[int(count)][name] = tensor
    return states


def _student_accuracy(run: Run, data: TrainingSet, held_out: ClassSource) -> float:
    """Return the accuracy on held-out rows of a fresh network that is trained on a labelled set for some updates."""
    student = run.factory.build(run.seed, "student of the teacher").to(run.device)
    with torch.enable_grad():
        train_network(student, data, RECIPES["dc"], run.seed, "early teacher", max_updates=_STUDENT_UPDATES)
    return accuracy(student, held_out, torch.arange(run.num_classes))
