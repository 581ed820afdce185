"""The facts about a condensation that presets and `method="auto"` depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """The facts that a preset may depend on.

    Attributes:
        ipc: Images per class that may be stored; the largest number if classes differ.
        num_classes: Number of classes that are condensed.
        image_shape: (channels, height, width).
        std: Standard deviation of pixels in [0, 1], averaged over channels: the unit of normalised images.
        storage: Storage form, or None where a preset is asked which one it takes.
        expand: Rows that the form decodes into for each image of the budget.
    """

    ipc: int
    num_classes: int
    image_shape: tuple[int, int, int]
    std: float = 0.25
    storage: str | None = None
    expand: int = 1
