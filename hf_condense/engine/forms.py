"""Which storage form to take for a task: the one that measured best."""

from __future__ import annotations

from typing import Any

from hf_condense.condensed.decoders.dct import FEW_IMAGES
from hf_condense.engine.task import Task

_SMALLEST_SIDE = 16  # pixels; smaller images have nothing to save
_MEDIUM_IPC, _LARGEST_IPC = 10, 50
_MANY_IMAGES = 8  # per class; between 5, where 16 rows were best, and 10, where 8 were
_SHORT_RUN_RATE = 4.0  # in units of the method's rate; measured for dm, m3d, dance and ncfm over 130 to 350 steps


def few_images(task: Task) -> bool:
    """Return whether a task has so few images per class that presets treat it like 1; measured at 1 and 10."""
    return task.ipc < FEW_IMAGES


def is_large_set(task: Task) -> bool:
    """Return whether a set has more images per class than 10, up to which short runs were measured first."""
    return task.ipc > _MEDIUM_IPC


def best_form(task: Task) -> tuple[str, int]:
    """Return the storage form and the `expand` for presets `quick` and `method="auto"`.

    The rule was measured on MNIST and CIFAR-10 at 1 and 10 images per class, and on CIFAR-10 at 3, 5 and 50
    (examples/benchmarks/README.md). A few frequencies of opponent colours say most of a colour image. Strokes of grey
    images need high frequencies, so that fewer rows share the numbers.

    Args:
        task: ipc and image shape.
    """
    channels, height, width = task.image_shape
    if task.ipc > _LARGEST_IPC or min(height, width) < _SMALLEST_SIDE:
        return "pixels", 1
    if channels == 1 or task.ipc >= _MANY_IMAGES:
        return "dct", 8
    return "dct", 32 if few_images(task) else 16


def form_values(task: Task) -> dict[str, Any]:
    """Return the settings of a preset that takes the best form: `storage` and `expand`."""
    storage, expand = best_form(task)
    return {"storage": storage, "expand": expand}


def lean_form_values(task: Task) -> dict[str, Any]:
    """Return what `form_values` does for methods whose steps pay for every row; measured at 1, 10 and 50 per class."""
    storage, expand = best_form(task)
    return {"storage": storage, "expand": min(expand, 16 if few_images(task) else 8)}


def form_rate(task: Task) -> float:
    """Return the factor of the image rate for short runs in the task's storage form.

    At 1 image per class, runs ended best with it; at 10 images per class, no worse than with the method's own rate; at
    50, m3d did better with its own.
    """
    return _SHORT_RUN_RATE if task.storage == "dct" and not is_large_set(task) else 1.0
