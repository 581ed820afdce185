"""Learning rates that are chosen on held-out training rows: the test set is never looked at."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_condense.base.processes import shared_out
from hf_condense.base.progress import progress_bar
from hf_condense.condensed.decoders import Frame
from hf_condense.condensed.tensors import eight_bit_pixels
from hf_condense.evaluation.subject import RealImages, Subject
from hf_condense.evaluation.trials import DIVERGED, Trials
from hf_condense.source.class_source import ClassSource, pixel_digests

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")

_BATCH = 1024  # images that are brought to 8 bits at a time


def hold_out(real: RealImages, subject: Subject, seed: int) -> tuple[RealImages, RealImages]:
    """Divide a real training set into the rows that baselines are made from and those that are held out.

    Only rows of classes that the evaluated set has rows of are held out, and none that it has itself: those of a
    coreset are known by their numbers, others by their pixels.

    Args:
        real: The real training set.
        subject: The evaluated set.
        seed: Seed of the evaluation.

    Returns:
        Both parts.

    Raises:
        ValueError: If no row can be held out, or the rows of a coreset cannot be identified: it was combined from
            several sources, or selected from another one.
    """
    source = real.images
    may = torch.isin(real.outputs[source.labels], torch.tensor(sorted(subject.stored_per_class)))
    if subject.recipe is not None and subject.recipe.rows is not None:
        if len(subject.recipe.sources) > 1:
            raise ValueError(
                "the learning rate is searched on training rows that the set does not have, but rows of a set that was "
                "combined from several sources are numbered in each of these; pass one rate, such as lr=0.01"
            )
        if subject.recipe.sources[0].get("content_hash", source.content_hash) != source.content_hash:
            raise ValueError(
                "the learning rate is searched on training rows that the set does not have, but source is not the "
                "dataset that this coreset was selected from; pass that one as source, or one rate, such as lr=0.01"
            )
        may &= ~torch.isin(source.rows, torch.tensor(subject.recipe.rows))
    if subject.recipe is None:
        may &= ~_occur(source, subject)
    positions = source.held_out(seed, "evaluate", "held out", among=may)
    if not len(positions):
        raise ValueError(
            "the learning rate is searched on held-out training rows, but no class of source has a row to spare that "
            "the set does not have; pass one rate, such as lr=0.01, or a larger source"
        )
    return real.part(source.others(positions)), real.part(positions)


def _occur(source: ClassSource, subject: Subject) -> Tensor:
    """Return which images of a source occur in a set that no recipe describes, to 8 bits: bool (N,)."""
    frame, data, own = Frame(subject.mean, subject.std), subject.data, set[bytes]()
    for rows in torch.arange(len(data)).split(_BATCH):
        images, _ = data.batch(rows)
        own.update(pixel_digests(eight_bit_pixels(frame.to_pixels(images.to(subject.mean.device)))))
    return torch.tensor([digest in own for digest in source.digests()])


def search_rates(
    trials: list[Trials],
    rates: Sequence[float],
    held_out: RealImages,
    accelerator: Accelerator,
    shows_progress: bool,
) -> None:
    """Give every contender of every kind of network the rate with the best accuracy on held-out rows.

    Args:
        trials: One for every kind of network; their contenders are replaced.
        rates: Candidates, besides the rate that a contender has, which is kept if no other is better.
        held_out: The held-out training rows.
        accelerator: Its processes share the work.
        shows_progress: Whether this process shows a progress bar.
    """
    jobs = [
        (kind, number, rate)
        for kind in trials
        for number, contender in enumerate(kind.contenders)
        for rate in dict.fromkeys([contender.training.lr, *rates])
    ]

    def try_share(share: range) -> dict[int, float]:
        accuracies, total = {}, sum(jobs[i][0].contenders[jobs[i][1]].updates for i in share)
        with progress_bar(total, "Searching learning rates", "update", shown=shows_progress) as bar:
            for i in share:
                kind, number, rate = jobs[i]
                accuracies[i] = kind.held_out_accuracy(kind.contenders[number], rate, held_out, partial(bar.update, 1))
        return accuracies

    accuracies = shared_out(accelerator, len(jobs), try_share)
    for kind in trials:
        contenders = []
        for number, contender in enumerate(kind.contenders):
            by_rate = {rate: accuracies[i] for i, (k, n, rate) in enumerate(jobs) if k is kind and n == number}
            best = max(by_rate, key=lambda rate: by_rate[rate])
            listing = ", ".join(
                f"{'diverged' if accuracy == DIVERGED else f'{accuracy:.1%}'} at {rate:g}"
                for rate, accuracy in by_rate.items()
            )
            logger.info("%s, %s: held-out accuracies %s", contender.name, kind.factory.name, listing)
            contenders.append(dataclasses.replace(contender, training=dataclasses.replace(contender.training, lr=best)))
        kind.contenders = contenders
