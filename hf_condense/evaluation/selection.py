"""Coreset methods as baselines: they choose rows of a real training set that has been read already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_condense.engine.build import build_run
from hf_condense.engine.method import Selector
from hf_condense.engine.registry import get_method
from hf_condense.engine.selecting import select_rows
from hf_condense.engine.settings import settle
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkSpec
from hf_condense.source.class_source import ClassSource

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Selection:
    """What coreset methods choose rows from, and with.

    Attributes:
        source: The real training set's images by class, on the device, in its own normalisation.
        network: Network that gives features.
        seed: Seed of every draw.
        accelerator: Devices and processes.
        cache: Whether features may be cached.
        progress: Whether progress bars are shown.
    """

    source: ClassSource
    network: NetworkSpec
    seed: int
    accelerator: Accelerator
    cache: bool
    progress: bool

    def positions(self, method: str, rows_per_class: dict[int, int]) -> Tensor:
        """Choose the rows that `condense_dataset` would choose, without reading the dataset again.

        Args:
            method: Name of a coreset method.
            rows_per_class: Rows to choose from every class, by class index of the source; classes left out give none.

        Returns:
            Positions in the source, class by class. int64 (n,).

        Raises:
            ValueError: If a class has fewer rows than should be chosen.
        """
        counts = self.source.counts
        for c, n in rows_per_class.items():
            if n > counts[c]:
                raise ValueError(
                    f"baseline {method!r} should choose {n} rows of class {self.source.class_names[c]!r}, "
                    f"but source has {counts[c]} to choose from; leave it out of baselines"
                )
        cls = get_method(method)
        assert issubclass(cls, Selector)
        ipc = {c: rows_per_class[c] for c in sorted(rows_per_class)}
        settings = settle(cls, None, {"network": self.network}, Task.of(ipc, self.source))
        run = build_run(
            settings,
            source=self.source,
            accelerator=self.accelerator,
            seed=self.seed,
            ipc=ipc,
            cache=self.cache,
            progress=self.progress,
        )
        return torch.cat(list(select_rows(run, cls(cls.Config.build(settings.options)), ipc).values()))
