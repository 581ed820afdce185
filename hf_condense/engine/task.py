"""The facts about a condensation that presets and `method="auto"` depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_condense.source.class_source import ClassSource


@dataclass(frozen=True)
class Task:
    """The facts that a preset may depend on.

    Attributes:
        ipc: Images per class that may be stored; the largest number if classes differ.
        num_classes: Number of classes that are condensed.
        image_shape: (channels, height, width).
        std: Standard deviation of pixels in [0, 1], averaged over channels that vary: the unit of normalised images.
        storage: Storage form, or None where a preset is asked which one it takes.
        expand: Rows that the form decodes into for each image of the budget.
    """

    ipc: int
    num_classes: int
    image_shape: tuple[int, int, int]
    std: float = 0.25
    storage: str | None = None
    expand: int = 1

    @classmethod
    def of(cls, amounts: Mapping[int, int], source: ClassSource) -> Task:
        """Return the facts that are known before a storage form is settled.

        Args:
            amounts: Images to store of every class that is condensed, by class index.
            source: The source.
        """
        varying = source.std[source.std < 1]  # that of a channel without any variation is set to 1
        spread = float(varying.mean()) if len(varying) else 1.0
        return cls(max(amounts.values()), len(amounts), source.image_shape, spread)
