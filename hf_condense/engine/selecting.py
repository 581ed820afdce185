"""How a coreset method chooses rows of every class."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.devices import in_float64
from hf_condense.base.processes import from_main
from hf_condense.engine.method import Selector, check_returned
from hf_condense.engine.run import Run

_CHECKED_ROWS = 65_536


def select_rows(run: Run, selector: Selector[Any], counts: dict[int, int]) -> dict[int, Tensor]:
    """Choose rows of every class with a selector.

    Args:
        run: The run.
        selector: The coreset method.
        counts: Rows to choose per class. A class with fewer rows gives all of them.

    Returns:
        The positions of the chosen rows in the source, in greedy order, by class.

    Raises:
        ValueError: If a feature is not finite (the message names its row), or a row is selected twice.
    """
    # Rounding may differ from process to process, so all take the rows that the main one chooses.
    return from_main(run.accelerator, partial(_selected, run, selector, counts))


def _selected(run: Run, selector: Selector[Any], counts: dict[int, int]) -> dict[int, Tensor]:
    """Return what `select_rows` returns, in the process that chooses."""
    features = selector.features(run)
    if features is not None:
        _check_finite(run, features)
    selected = {}
    for c, n in counts.items():
        positions = run.source.positions(c)
        rows = torch.empty(len(positions), 0)
        if features is not None:
            rows = features[positions.start : positions.stop].cpu()
        count, name = min(n, len(positions)), run.source.class_names[c]
        numbers = selector.select(rows, count, run.rng("select", name))
        check_returned("select", selector.info.name, numbers, Tensor)
        if numbers.dtype != torch.long or numbers.ndim != 1:
            raise TypeError(
                f"{selector.info.name!r} should select rows by their numbers, an int64 tensor (n,); it returned "
                f"{numbers.dtype} {tuple(numbers.shape)}"
            )
        if len(numbers) != count or len(numbers.unique()) != count:
            raise ValueError(
                f"{selector.info.name!r} should select {count} different rows of class {name!r}; it selected "
                f"{len(numbers)}, of which {len(numbers.unique())} are different"
            )
        if int(numbers.min()) < 0 or int(numbers.max()) >= len(positions):
            raise ValueError(
                f"{selector.info.name!r} should select rows in 0..{len(positions) - 1} of class {name!r}; it selected "
                f"{int(numbers.min())}..{int(numbers.max())}"
            )
        selected[c] = numbers + positions.start
    return selected


def _check_finite(run: Run, features: Tensor) -> None:
    """Raise for a feature that is not finite, or so large that its square is not: distances would mean nothing."""
    parts = features.split(_CHECKED_ROWS)  # all rows in float64 would take several times the memory of the features
    usable = torch.cat([in_float64(part).square().sum(1).isfinite() for part in parts])  # (N,)
    if not bool(usable.all()):
        worst = int((~usable).nonzero()[0])
        advice = "repair these rows, or filter them out"
        if not bool(usable.any()):
            advice = f"it is so for all rows, so the network {run.factory.name!r} is at fault; pass another network="
        raise ValueError(
            f"the features of {int((~usable).sum())} rows are not finite, or too large to compare; the first is row "
            f"{int(run.source.rows[worst])}: {features[worst].tolist()!s:.100}; {advice}"
        )
