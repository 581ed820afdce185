"""Which storage form to take for a task: the one that measured best."""

from __future__ import annotations

from hf_condense.engine.task import Task

_SMALLEST_SIDE = 16  # pixels; smaller images have nothing to save
_LARGEST_IPC = 50
_FEW_IMAGES = 4  # below, rows are few, and every further one counts


def best_form(task: Task) -> tuple[str, int]:
    """Return the storage form and the `expand` for presets `quick` and `method="auto"`.

    The rule was measured on MNIST and CIFAR-10 at 1 and 10 images per class (examples/benchmarks/README.md). A few
    frequencies of opponent colours say most of a colour image. Strokes of grey images need high frequencies, so that
    fewer rows share the numbers.

    Args:
        task: ipc and image shape.
    """
    channels, height, width = task.image_shape
    if task.ipc > _LARGEST_IPC or min(height, width) < _SMALLEST_SIDE:
        return "pixels", 1
    return "dct", 32 if channels > 1 and task.ipc < _FEW_IMAGES else 8
