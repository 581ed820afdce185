"""What optimisation starts from: real rows, rows that a coreset method chooses, or noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.errors import did_you_mean
from hf_condense.engine.method import Selector
from hf_condense.engine.registry import get_method, list_methods
from hf_condense.engine.run import Run
from hf_condense.engine.synthetic import SyntheticSet


def initial_set(run: Run, init: str) -> SyntheticSet:
    """Make the set that optimisation starts from.

    Args:
        run: The run; its `ipc`, `factor` and `seed` are used.
        init: `"real"` (random rows), `"noise"` (normal, in normalised units), or the name of a coreset method.
            With a factor f, every stored image is put together from `f**2` down-sampled rows.

    Raises:
        ValueError: If `init` is neither.
    """
    if init == "noise":
        names, shape = run.source.class_names, run.source.image_shape
        parts = [torch.randn(n, *shape, generator=run.rng("init", names[c])) for c, n in run.ipc.items()]
        images = torch.cat(parts).to(run.device)
    else:
        images = run.source.at(_tiled_rows(run, init))
        images = _mosaic(images, run.factor)
    labels = torch.tensor([c for c, n in run.ipc.items() for _ in range(n)], device=run.device)
    made = SyntheticSet(
        images=images.clone(),
        labels=labels,
        mean=run.source.mean,
        std=run.source.std,
        factor=run.factor,
        clamped=run.clamped,
        whitening=run.source.whitening,
    )
    made.clamp_()
    return made


def _tiled_rows(run: Run, init: str) -> Tensor:
    """Choose `ipc * factor**2` rows of each class; a class with fewer gives them again."""
    coresets = [info.name for info in list_methods() if info.kind == "coreset"]
    name = "random" if init == "real" else init
    if name not in coresets:
        known = ["real", "noise", *coresets]
        raise ValueError(
            f"init should be one of {', '.join(map(repr, known))}; got {init!r}{did_you_mean(init, known)}"
        )
    cls = get_method(name)
    assert issubclass(cls, Selector)
    wanted = {c: n * run.factor**2 for c, n in run.ipc.items()}
    chosen = select_rows(run, cls(cls.Config()), wanted)
    return torch.cat([rows.repeat(-(-wanted[c] // len(rows)))[: wanted[c]] for c, rows in chosen.items()])


def select_rows(run: Run, selector: Selector[Any], wanted: dict[int, int]) -> dict[int, Tensor]:
    """Let a selector choose rows of every class.

    Args:
        run: The run.
        selector: The coreset method.
        wanted: Rows for each class; at most as many as the class has are chosen.

    Returns:
        For every class, positions in the source, in greedy order.
    """
    features = selector.features(run)
    chosen = {}
    for c, n in wanted.items():
        own = run.source.positions(c)
        rows = torch.empty(len(own), 0) if features is None else features[own.start : own.stop].cpu()
        picked = selector.select(rows, min(n, len(own)), run.rng("select", run.source.class_names[c]))
        chosen[c] = picked + own.start
    return chosen


def _mosaic(images: Tensor, factor: int) -> Tensor:
    """Put each `factor**2` neighbours together to one image: (n * f**2, C, H, W) -> (n, C, H, W)."""
    if factor == 1:
        return images
    _, c, h, w = images.shape
    ph, pw = -(-h // factor), -(-w // factor)
    small = F.interpolate(images, size=(ph, pw), mode="bilinear", antialias=True, align_corners=False)
    tiles = small.reshape(-1, factor, factor, c, ph, pw).permute(0, 3, 1, 4, 2, 5)  # (n, C, f, ph, f, pw)
    return tiles.reshape(-1, c, factor * ph, factor * pw)[:, :, :h, :w].contiguous()
