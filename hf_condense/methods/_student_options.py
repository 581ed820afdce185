"""Options of methods whose students follow experts."""

from __future__ import annotations

from dataclasses import dataclass

from hf_condense.engine.options import option, redefined
from hf_condense.methods._experts import ExpertConfig
from hf_condense.methods._images import LearnedLabelConfig
from hf_condense.networks.augment import ALL_FAMILIES


@dataclass(frozen=True)
class TrajectoryConfig(LearnedLabelConfig, ExpertConfig):
    """Options of methods that train a student along expert trajectories."""

    lr_img: float = redefined(
        LearnedLabelConfig,
        "lr_img",
        100.0,
        "Learning rate of the images, in normalised units. It is large because objectives are ratios.",
    )
    init: str = redefined(
        LearnedLabelConfig,
        "init",
        "real",
        "Start from 'real' rows, 'correct' (rows that experts classify right at the end of their training), 'noise', "
        "or the rows of a coreset method.",
    )
    labels_from: str = option(
        "teacher",
        "Where soft labels, or the first ones if they are learned, come from: 'teacher', or 'experts' (the mean logits "
        "of the experts that classify a row right).",
        choices=("teacher", "experts"),
        needs={"soft_labels": ("teacher", "learned")},
    )
    augment: str = redefined(
        LearnedLabelConfig,
        "augment",
        ALL_FAMILIES,
        "Augmentation of the synthetic images: families joined by _, or 'none'. Each image draws its own in every "
        "student step. Leave out flip where mirroring changes the meaning of an image, as for digits.",
    )
    student_steps: int = option(10, "Steps of the student from the start of a window.", ge=1, tiny=3)
    expert_span: int = option(2, "Length of a window of the expert, in snapshots after its start.", ge=1, tiny=4)
    max_start: int | None = option(
        None, "Latest snapshot at which a window may start, exclusive; None: anywhere.", ge=1
    )
    min_start: int = option(0, "Earliest snapshot at which a window may start.", ge=0)
    first_max_start: int | None = option(
        None,
        "Latest start in the first step, exclusive; over expansion_steps it grows to max_start, so that windows come "
        "from early training first. None: max_start from the first step on.",
        ge=1,
    )
    expansion_steps: int | None = option(
        None,
        "Steps over which the latest start grows, if first_max_start is given. None: the first half of the run.",
        ge=1,
    )
    most_ratio: float | None = option(
        None,
        "Updates are skipped in steps whose objective is above this value, because the student diverged there. In "
        "mtt and tesla, a student that does not move has objective 1. None: no update is skipped.",
        gt=0,
    )
    batch_syn: int | None = option(
        None,
        "Decoded rows of all classes together per student step. Batches are taken from permutations of the set; None: "
        "the whole set.",
        ge=1,
    )
    average: float = option(
        0.0,
        "Decay of an exponential moving average of the images, in [0, 1); the average is returned, beside the last "
        "values of what else is learned. Warmed up as min(average, t / (t + 10)). 0 returns the last images.",
        ge=0,
        lt=1,
    )
    zca: bool = option(
        False,
        "Learn images in whitened (ZCA) space; the matrix is stored with the set. Requires pixel_range='free' and "
        "storage='pixels'.",
    )
