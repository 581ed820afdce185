"""Values that presets of methods share whose students follow experts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hf_condense.engine.forms import few_images, is_large_set, lean_form_values
from hf_condense.engine.task import Task

_MANY_ROWS = 8  # of a storage form, for each image of the budget
_MOST_PAPER_ROWS = 1000
_FEW_ROWS = 128
_MOST_ROWS = 500  # in a student step; the graph of all steps of a student is in memory together in some methods


def shared_quick_values(task: Task) -> dict[str, Any]:
    """Return the values that presets `quick` of all trajectory methods share: experts, windows and learning rates.

    The experts are the same, so they are recorded once. They are many and short, because the images soon overfit to a
    few. A larger set can follow longer windows. So can a form of many rows follow later ones, which gained mtt and esp
    one or two points with 'dct'.
    """
    shared = {"snapshot_every": 4, "lr_expert": 0.05, "batch_expert": 128, "lr_img": 1000.0, "decay": True}
    if few_images(task) and task.expand >= _MANY_ROWS:
        return {**shared, "experts": 16, "snapshots": 25, "expert_span": 4, "max_start": 12, "lr_student": 0.03}
    if few_images(task):
        return {**shared, "experts": 24, "snapshots": 13, "expert_span": 4, "max_start": 8, "lr_student": 0.03}
    return {**shared, "experts": 16, "snapshots": 25, "expert_span": 12, "max_start": 8, "lr_student": 0.1}


def long_windows(task: Task, steps: int) -> dict[str, Any]:
    """Return longer windows for runs of minutes on few images with many rows each in frequencies; {} for others.

    There they gained one to three points over the windows of `shared_quick_values`, on grey and on colour images.

    Args:
        task: ipc, classes, image shape and storage form.
        steps: Updates of the images, which are fewer because each takes longer.
    """
    if not (few_images(task) and task.storage == "dct" and task.expand >= _MANY_ROWS):
        return {}
    return {"steps": steps, "expert_span": 10, "student_steps": 20, "lr_student": 0.05}


def student_form(task: Task, rows: int = 4) -> dict[str, Any]:
    """Return the storage form of presets `quick`: the one that measured best where it was measured, else pixels.

    Every student step pays for its rows, so it takes some of the 16 (few colour images) or 8 rows for each image of the
    budget. Batches of the whole set gave lower accuracy.

    Args:
        task: ipc, classes and image shape.
        rows: Rows in a student step for each image of the budget, at most 500 in all; for large sets, `few_rows`.
    """
    batch = few_rows(task) or {"batch_syn": min(_MOST_ROWS, rows * task.ipc * task.num_classes)}
    return {**lean_form_values(task), **batch}


def few_rows(task: Task) -> dict[str, Any]:
    """Return the rows of a student step for a set so large that more steps count more; {} for others.

    At 50 images per class, 128 rows gave `mtt` three points more than all 500 in the same time (measured with pixels).
    """
    return {"batch_syn": _FEW_ROWS} if is_large_set(task) else {}


def short_run(task: Task) -> dict[str, Any]:
    """Return the options of a run of minutes, without a storage form."""
    changes: dict[str, Any] = {"steps": 400, "student_steps": 8}
    if not few_images(task):
        # A student step is expensive, so there are fewer updates over a shorter window. Each image has a smaller share
        # in the gradient, so the rate is larger.
        changes |= {"steps": 150, "expert_span": 4, "max_start": 12, "lr_student": 0.03, "lr_img": 1e4}
    return {**shared_quick_values(task), **changes, "network": "convnet-w32"}


def default_values(quick: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the values of presets `default`: those of `quick` with the usual width, 50 experts and twice the steps.

    Args:
        quick: The values of `quick` without a storage form.
        task: ipc, classes and image shape.
    """
    return {**quick, **limited_rows(task), "network": "convnet", "experts": 50, "steps": 2 * quick["steps"]}


def limited_rows(task: Task) -> dict[str, Any]:
    """Return a limit to the rows of a student step if the set decodes into more."""
    return {"batch_syn": _MOST_ROWS} if task.expand * task.ipc * task.num_classes > _MOST_ROWS else {}


def paper_row(task: Task) -> tuple[str, int]:
    """Return the row of the paper's table that is nearest to a task: kind of task and images per class."""
    return paper_kind(task), nearest_ipc((1, 10, 50), task)


def paper_kind(task: Task) -> str:
    """Return the kind of task in papers that a task is nearest to, by the size of images and the number of classes."""
    if min(task.image_shape[1:]) >= 48:
        return "large"
    return "many classes" if task.num_classes >= 50 else "few classes"


def nearest_ipc(published: Iterable[int], task: Task) -> int:
    """Return the published number of images per class whose ratio to that of a task is nearest to 1."""
    return min(published, key=lambda n: abs(math.log(n / task.ipc)))


def paper_batch(published: int | None, task: Task) -> int | None:
    """Return the rows in a student step: those published. None, the whole set, was published for 1,000 rows at most."""
    rows = task.num_classes * task.ipc
    return _MOST_PAPER_ROWS if published is None and rows > _MOST_PAPER_ROWS else published
