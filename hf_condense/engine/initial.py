"""What optimisation starts from: real rows, rows that a coreset method chooses, or noise."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hf_condense.base.checks import listed, one_of
from hf_condense.base.devices import to_device
from hf_condense.base.processes import from_main
from hf_condense.base.spread import repeated
from hf_condense.condensed.decoders import Origin
from hf_condense.engine.method import Method, Selector
from hf_condense.engine.options import MethodConfig
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.run import Run
from hf_condense.engine.selecting import select_rows
from hf_condense.engine.synthetic import SyntheticSet

logger = logging.getLogger("hf_condense")

_NOISE = 0.1  # of copies of a row, in units of the standard deviation of pixels
_NAMED = 5  # classes that a warning names


def start_names() -> list[str]:
    """Return the names of all starts: real rows, noise, and the coreset methods."""
    return ["real", "noise", *_coresets()]


def check_start(cls: type[Method[Any]], config: MethodConfig) -> None:
    """Raise `ValueError` unless the option of the role `"init"`, if there is one, names a start of a method.

    Its default is right in any case, and an option that declares its choices has been checked by them.
    """
    declared = {f.name: f for f in fields(config)}.get(config.name_of_role("init") or "")
    if declared is None or declared.metadata.get("choices") or declared.metadata.get("valid"):
        return
    start = getattr(config, declared.name)
    if isinstance(start, str) and start != declared.default:
        one_of(declared.name, start, [*cls.own_starts, *start_names()])


def initial_set(run: Run, init: str | Tensor) -> SyntheticSet:
    """Return the set that optimisation starts from.

    Args:
        run: The run; its `ipc`, `decoder` and `seed` are used.
        init: `"real"` (random rows), `"noise"` (normal, in normalised units), or the name of a coreset method. As
            many real rows are taken as the set decodes into; the run's decoder stores them in its form. A method can
            also choose the rows itself: their positions in the source, sorted by class, int64 (rows,). Or it makes
            them: normalised images, sorted by class, float32 (rows, C, H, W). If a position is repeated, its copies
            differ from the real row by a little noise.

    Raises:
        ValueError: If `init` is none of these.
    """
    entries = {c: run.decoder.entries(budget) for c, budget in run.ipc.items()}
    real = None if init == "noise" else _real_rows(run, init) if isinstance(init, str) else init

    def start() -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in _stored(run, real, entries).items()}

    # Rounding may differ from process to process, so all take the tensors of the main one.
    stored = {name: tensor.to(run.device) for name, tensor in from_main(run.accelerator, start).items()}
    synthetic = SyntheticSet(stored, labels_of(entries, run.device), run.decoder, whitening=run.source.whitening)
    synthetic.project_()
    return synthetic


def _stored(run: Run, real: Tensor | None, entries: dict[int, int]) -> dict[str, Tensor]:
    """Return the stored tensors that optimisation starts from.

    Args:
        run: The run.
        real: Positions of real rows, or the rows themselves (rows, C, H, W), or None for noise.
        entries: Number of entries of every class.
    """
    origin = Origin(run.source.batches, run.rng("init", "decoder"), run.cache, run.shows_progress)
    if real is not None:
        rows = real if real.is_floating_point() else _rows_at(run, real)
        return run.decoder.start(rows, labels_of(run.counts, run.device), origin)
    names, shape = run.source.class_names, run.source.image_shape
    parts = [torch.randn(n, *shape, generator=run.rng("init", names[c])) for c, n in entries.items()]
    return run.decoder.start_from_noise(torch.cat(parts).to(run.device), labels_of(entries, run.device), origin)


def _rows_at(run: Run, positions: Tensor) -> Tensor:
    """Return real rows by their positions, sorted by class; copies get some noise: (rows, C, H, W).

    Equal rows would get equal gradients in most methods, and stay equal for the whole run.
    """
    rows = run.source.at(positions)
    if run.decoder.starts_apart:
        return rows
    noise: dict[int, Tensor] = {}  # by number of the row
    few, first = [], 0
    for c, n in run.counts.items():
        copies = _copies(positions[first : first + n].tolist())
        if copies:
            name = run.source.class_names[c]
            drawn = torch.randn(len(copies), *run.source.image_shape, generator=run.rng("copies", name))
            noise.update(zip((first + i for i in copies), _NOISE * drawn, strict=True))
            few.append(f"{name!r} has {n - len(copies)} for {n}")
        first += n
    if not few:
        return rows
    logger.warning(
        "some classes have fewer real rows than the set starts from: %s. Some of its rows start as copies with a "
        "little noise; with a smaller %s each real row is used at most once",
        listed(few, _NAMED, quoted=False),
        " or ".join(
            name for name, value in (("expand", run.decoder.expand), ("ipc", max(run.ipc.values()))) if value > 1
        ),
    )
    numbers = to_device(torch.tensor(list(noise)), rows.device)
    noisy = rows.index_select(0, numbers) + to_device(torch.stack(list(noise.values())), rows.device)
    return rows.index_copy(0, numbers, run.decoder.frame.clip_images(noisy))


def _copies(positions: list[int]) -> list[int]:
    """Return the places of all positions that occurred before."""
    places = dict(zip(reversed(positions), reversed(range(len(positions))), strict=True))  # of the first occurrences
    return [i for i, position in enumerate(positions) if places[position] != i]


def _real_rows(run: Run, init: str) -> Tensor:
    """Choose as many rows of each class as the set decodes into; a class with fewer rows repeats them."""
    name = "random" if init == "real" else init
    if name not in _coresets():
        one_of("init", init, start_names())
    cls = get_method(name)
    assert issubclass(cls, Selector)
    rows_by_class = select_rows(run, cls(cls.Config()), run.counts)
    return torch.cat([repeated(rows, run.counts[c]) for c, rows in rows_by_class.items()])


def _coresets() -> list[str]:
    return [info.name for info in list_methods() if info.kind == "coreset"]


def labels_of(counts: dict[int, int], device: torch.device) -> Tensor:
    """Repeat each class index by its count, in the order of the counts."""
    return torch.tensor([c for c, n in counts.items() for _ in range(n)], device=device)
