"""What experts at the end of their training say of rows: which ones they classify right, and the rows' soft labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_condense.base.processes import broadcast, broadcast_object, from_main
from hf_condense.base.spread import repeated
from hf_condense.engine.soft_labels import SoftLabels, network_logits, teacher_facts
from hf_condense.methods._experts import ExpertConfig, snapshot_interval
from hf_condense.methods._images import statistics_rows
from hf_condense.methods._recordings import Recordings

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

_WALK = 256  # rows of a class that an expert classifies at a time


def correct_positions(run: Run, experts: Recordings) -> Tensor:
    """Return the positions of rows that experts classify right, as many as the set decodes into: (rows,)."""
    # Rounding could differ from process to process, so all take the rows that the main one chooses.
    return from_main(run.accelerator, partial(_correct_positions, run, experts))


@torch.no_grad()
def _correct_positions(run: Run, experts: Recordings) -> Tensor:
    """Return what `correct_positions` returns, in the process that chooses."""
    chosen = []
    expert = lru_cache(maxsize=1)(partial(trained_expert, run, experts))  # most rows are judged by the first one
    for c, n in run.counts.items():
        order = run.source.draw(c, run.source.counts[c], run.seed, "correct")
        judges = (_judge(run, expert(number), c) for number in range(len(experts)))
        chosen.append(correct_rows(order, n, judges))
    return torch.cat(chosen)


@torch.no_grad()
def expert_labels(run: Run, experts: Recordings, config: ExpertConfig, synthetic: SyntheticSet) -> SoftLabels:
    """Return the soft labels that experts give to the decoded rows of a set.

    Args:
        run: The run.
        experts: The recorded experts.
        config: How they were trained, for the facts about them.
        synthetic: The set.
    """
    images, labels = synthetic.all()
    numbers = range(len(experts))
    logits = mean_of_correct((network_logits(trained_expert(run, experts, e), images) for e in numbers), labels)
    updates = (config.snapshots - 1) * snapshot_interval(config, len(run.source))
    facts = teacher_facts(run, ({"weights": _last_weights(experts, e)} for e in numbers), updates)
    return SoftLabels(broadcast(run.accelerator, logits), broadcast_object(run.accelerator, facts))


def trained_expert(run: Run, experts: Recordings, number: int) -> nn.Module:
    """Return an expert at the end of its training, in evaluation mode. A second call overwrites its weights."""
    network = run.network("expert", weights=_last_weights(experts, number), slot="expert").eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if norms:  # only parameters are recorded, so the statistics are computed anew, as plain means
        for module in norms:
            module.train().momentum = None
        each = statistics_rows(len(run.classes))
        network(run.source.sample(run.classes, each, run.seed, "statistics").flatten(0, 1))
    return network.eval()


def _last_weights(experts: Recordings, number: int) -> Tensor:
    """Return the weights at the end of an expert's training, on the CPU: (P,)."""
    return experts.window(number, experts.snapshots - 1, 1)[0]


def _judge(run: Run, network: nn.Module, c: int) -> Callable[[Tensor], Tensor]:
    """Return a function that says of rows of a class, by position, whether an expert classifies them right."""

    def is_right(rows: Tensor) -> Tensor:
        return (network_logits(network, run.source.at(rows)).argmax(1) == c).cpu()

    return is_right


def correct_rows(order: Tensor, n: int, judges: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Return n rows of a class: those that the first judge takes for right, then those of the next, then any.

    Args:
        order: The rows of the class in the order in which they are considered. int64 (N,).
        n: Number of rows to return. If it is above N, rows are repeated.
        judges: Functions that say of rows (m,) whether they are classified right, bool (m,). They are asked only as
            long as rows are missing.

    Returns:
        int64 (n,).

    References:
        Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024
        (arXiv:2310.05773); the walk is that of the authors' code.

    Example:
        >>> correct_rows(torch.tensor([5, 6, 7, 8]), 3, [lambda rows: rows == 7, lambda rows: rows > 7])
        tensor([7, 8, 5])
    """
    chosen, rest = order[:0], order
    for is_right in judges:
        wrong = []
        for rows in rest.split(_WALK):
            right = is_right(rows)
            chosen = torch.cat([chosen, rows[right]])
            if len(chosen) >= n:
                return chosen[:n]
            wrong.append(rows[~right])
        rest = torch.cat(wrong)
        if not len(rest):
            break
    rows = torch.cat([chosen, rest])
    return repeated(rows, n)


def mean_of_correct(logits: Iterable[Tensor], labels: Tensor) -> Tensor:
    """Return the mean logits of those networks that classify a row right; of all networks if none does.

    Args:
        logits: Logits of the rows, by network. (N, K) each.
        labels: Class of each row. int64 (N,).

    Returns:
        (N, K).

    References:
        Guo et al., ICLR 2024; where no network is right, the authors' code has no rule.

    Example:
        >>> mean_of_correct([torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 2.0]])], torch.tensor([0]))
        tensor([[4., 0.]])
    """
    right_sum = right_count = mean = torch.zeros(())
    for networks, predicted in enumerate(logits, 1):
        right = (predicted.argmax(1) == labels)[:, None].to(predicted.dtype)  # (N, 1)
        right_sum, right_count = right_sum + right * predicted, right_count + right
        mean = mean + (predicted - mean) / networks
    return torch.where(right_count > 0, right_sum / right_count.clamp_min(1), mean)
