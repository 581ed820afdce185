"""DATM: match trajectories whose difficulty grows, with labels and first images that experts choose."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from hf_condense.engine.forms import few_images, is_large_set
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.task import Task
from hf_condense.methods._images import ADVICE_FOR_DIGITS_AND_EXPERTS
from hf_condense.methods._student_presets import (
    default_values,
    few_rows,
    limited_rows,
    long_windows,
    nearest_ipc,
    paper_batch,
    paper_kind,
    short_run,
    student_form,
)
from hf_condense.methods.tesla import ConstantMemoryMatching
from hf_condense.networks.augment import ALL_FAMILIES
from hf_condense.source.whitening import LARGEST_WHITENED

# The table of the authors' code: options by kind of task and images per class, as in the table of MTT. A batch of None
# is the whole set, where theirs is that of ten classes.
_PAPER: dict[tuple[str, int], tuple[int, int, int, int | None, int, int, float, int | None, float, float]] = {
    #                    student_steps, span, min_start, first_max, max, expansion, lr_img, batch, lr_label, lr_lr
    ("few classes",    1): (       80,    2,         0,      None,   4,         1,    100,  None,        5,  1e-7),
    ("few classes",   10): (       80,    2,         0,        10,  20,      1000,    100,  None,        2,  1e-5),
    ("few classes",   50): (       80,    2,         0,        20,  40,      2000,   1000,  None,        2,  1e-5),
    ("few classes",  500): (       40,    2,        40,      None,  60,         1,     50,  1000,       10,  1e-5),
    ("few classes", 1000): (      100,    2,        40,      None,  60,         1,     50,  1000,       10,  1e-5),
    ("many classes",   1): (       40,    3,         0,        10,  20,      1000,   1000,  1000,       10,  1e-5),
    ("many classes",  10): (       80,    2,         0,        30,  50,      2000,   1000,  1000,       10,  1e-5),
    ("many classes",  50): (       80,    2,        20,      None,  70,         1,   1000,  1000,       10,  1e-5),
    ("many classes", 100): (       80,    2,        30,      None,  70,         1,     50,  1000,       10,  1e-5),
    ("large",          1): (       40,    2,         0,        15,  20,      2000,    1e4,  1000,       10,  1e-4),
    ("large",         10): (       40,    2,        10,      None,  50,         1,    100,   500,       10,  1e-4),
    ("large",         50): (       20,    2,        40,      None,  70,         1,    100,  1000,       10,  1e-4),
}  # fmt: skip
_LABELS = {"soft_labels": "learned", "labels_from": "experts", "momentum_label": 0.9}


def _paper(task: Task) -> dict[str, Any]:
    """Return the options of the authors' table for the row that is nearest to a task."""
    kind = paper_kind(task)
    row = kind, nearest_ipc((ipc for k, ipc in _PAPER if k == kind), task)
    steps, span, min_start, first, last, expansion, lr_img, batch, lr_label, lr_lr = _PAPER[row]
    return {
        **_LABELS,
        "steps": 10_000,
        "student_steps": steps,
        "expert_span": span,
        "min_start": min_start,
        "first_max_start": first,
        "max_start": last,
        "expansion_steps": None if first is None else expansion,
        "most_ratio": 1.1 if row == ("few classes", 1) else 1.0,
        "init": "real" if row == ("many classes", 50) else "correct",
        "lr_img": lr_img,
        "lr_label": lr_label,
        "lr_student": 0.01,
        "lr_lr": lr_lr,
        "batch_syn": paper_batch(batch, task),
        "zca": math.prod(task.image_shape) <= LARGEST_WHITENED,  # as in the authors' code, where images are larger
        "pixel_range": "free",
        "experts": 100,
        "snapshots": 101,
        "augment_expert": ALL_FAMILIES,
        "flatness": 0.01,
        "surrogate_gap": 0.3,
    }


def _quick(task: Task) -> dict[str, Any]:
    """Return MTT's values with the parts of this method; the experts are the same, so they are recorded once."""
    if not few_images(task):
        return {**_short(task), **(few_rows(task) or limited_rows(task))}
    windows = long_windows(task, steps=150)
    if windows:  # a lower rate lets students pass the guard, and windows may come from later training
        windows |= {"lr_student": 0.02, "first_max_start": 6, "max_start": 15}
    return {**_short(task), **student_form(task), **windows}


def _short(task: Task) -> dict[str, Any]:
    shared = short_run(task)
    changes = {"first_max_start": 4, "most_ratio": 1.0, "init": "correct"}
    if few_images(task):
        # Learned labels cost about three points here (measured with pixels). With hard ones, students at the rate of
        # `mtt` diverge at first, so no update would be made.
        changes |= {"soft_labels": "none", "lr_label": 5.0, "lr_student": 0.012}
        return {**shared, **_LABELS, **changes}
    labels = "none" if is_large_set(task) else "learned"  # they gained a point at 10 per class, and cost three at 50
    return {**shared, **_LABELS, **changes, "soft_labels": labels, "lr_label": 20.0}


def _default(task: Task) -> dict[str, Any]:
    return default_values(_short(task), task)


class DifficultyAlignedMatching(ConstantMemoryMatching):
    """Difficulty-aligned trajectory matching (DATM).

    The method is TESLA with four options: windows come from early training first and from later training afterwards
    (`first_max_start`), the first rows are such that experts classify them right (`init="correct"`), soft labels start
    from these experts' logits and are learned (`labels_from`, `soft_labels`), and updates of students that diverged are
    skipped (`most_ratio`).

    References:
        Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR 2024
        (arXiv:2310.05773), section 3.2 on windows.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="datm",
        title="Difficulty-Aligned Trajectory Matching",
        kind="synthetic",
        summary="Matches experts' early training first and later training afterwards, and learns soft labels.",
        paper="Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching",
        authors="Ziyao Guo, Kai Wang, George Cazenavette, Hui Li, Kaipeng Zhang and Yang You",
        venue="ICLR",
        year=2024,
        link="https://arxiv.org/abs/2310.05773",
        cost="that of tesla",
    )
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset(
            "`quick` at width 128, with pixels, at most 500 in a step, 50 experts and twice the steps; not measured.",
            _default,
        ),
        "paper": Preset(
            "100 experts trained with GSAM for 100 epochs, 10,000 steps; options by classes, ipc and image size, as in "
            "the authors' table (ICLR 2024). The experts' sharpness-aware steps are not adaptive, gradients are those "
            f"of TESLA, and labels always start from all experts. {ADVICE_FOR_DIGITS_AND_EXPERTS}",
            _paper,
        ),
        "quick": Preset(
            "150 to 400 steps at width 32 with the experts of `mtt` and windows that expand; from 4 to 10 images per "
            "class, labels are learned: minutes.",
            _quick,
        ),
    }
