"""What is asked of a method, as far as presets and `method="auto"` depend on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What a preset may depend on.

    Attributes:
        ipc: Images per class that may be stored (the largest number, if classes differ).
        num_classes: Classes that are condensed.
        image_shape: (channels, height, width).
        std: Standard deviation of the pixels in [0, 1], mean over channels: the unit of normalised images.
    """

    ipc: int
    num_classes: int
    image_shape: tuple[int, int, int]
    std: float = 0.25
