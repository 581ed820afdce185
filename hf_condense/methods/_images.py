"""Shared parts of methods that learn images: options, falling learning rates, soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from hf_condense.base.devices import to_device
from hf_condense.engine.method import Method
from hf_condense.engine.options import MethodConfig, option, redefined
from hf_condense.engine.soft_labels import SoftLabels, teacher_labels, train_teacher_first
from hf_condense.networks.augment import ALL_FAMILIES, Augmentation

if TYPE_CHECKING:
    from hf_condense.engine.run import Run
    from hf_condense.engine.synthetic import SyntheticSet

# Families that every real image gets while networks are trained on them, if they are listed; of others it gets one.
ALWAYS = ("flip", "color", "cutout")

AUGMENT_HELP = (
    "Siamese augmentation: some of color, crop, cutout, flip, scale and rotate, joined by _, or 'none'. Leave out flip "
    "where mirroring changes the meaning of an image, as for digits."
)
ADVICE_FOR_DIGITS = "For digits they leave out flips: pass augment='color_crop_cutout_scale_rotate'."
ADVICE_FOR_DIGITS_AND_EXPERTS = (
    "For digits they leave out flips: pass augment= and augment_expert='color_crop_cutout_scale_rotate'."
)

# What gives options of soft labels an effect.
_UNTRAINED = "use a method that needs no trained network, such as 'dm' or 'm3d'"
_SOFT = {"soft_labels": ("teacher", "learned")}
_LEARNED = {"soft_labels": ("learned",)}
_TEACHER = {**_SOFT, "labels_from": ("teacher",)}

_STATISTICS_ROWS, _MOST_STATISTICS_ROWS = 16, 1600  # of a class, and of all classes together


@dataclass(frozen=True)
class ImageConfig(MethodConfig):
    """Options of methods that learn images."""

    steps: int = option(1000, "Updates of the images.", ge=1, tiny=4)
    lr_img: float = option(1.0, "Learning rate of the images, in normalised units.", gt=0, role="image_rate")
    lr_stored: float | None = option(
        None,
        "Learning rate of the stored numbers themselves. None: derived from lr_img by the storage form (for 'pixels' "
        "and 'patches' the same, for 'dct' lr_img times expand, for 'siren' 0.001 by Adam).",
        gt=0,
        role="stored_rate",
    )
    momentum: float = option(
        0.5,
        "Momentum of the images' optimiser, in [0, 1). The form 'siren' learns its numbers by Adam, without it.",
        ge=0,
        lt=1,
        role="momentum",
    )
    decay: bool = option(
        False, "Decrease the learning rates linearly to zero over the steps, so that short runs end with less noise."
    )
    init: str = option("real", "Start from 'real' rows, 'noise', or the rows of a coreset method.", role="init")
    augment: str = option(ALL_FAMILIES, AUGMENT_HELP, role="augment")
    soft_labels: str = option(
        "none",
        "'teacher': label the finished images with a network trained on the real data, and store its logits.",
        choices=("none", "teacher"),
    )
    temperature: float = option(1.0, "Temperature of the soft labels in training.", gt=0, needs=_SOFT)
    teacher_updates: int = option(
        1000, "Training updates of the teacher of soft labels, for at most 300 epochs.", ge=1, needs=_TEACHER
    )
    early_teacher: bool = option(
        False,
        "Stop the teacher early. Of its states after teacher_updates, half as many, a quarter and so on, that one is "
        "chosen whose labels train a network best. This is measured on training rows that the teacher does not see; "
        "where a class has few rows, the set may start from some of them.",
        needs=_TEACHER,
    )


@dataclass(frozen=True)
class LearnedLabelConfig(ImageConfig):
    """Options of methods that can learn soft labels with the images."""

    soft_labels: str = redefined(
        ImageConfig,
        "soft_labels",
        "none",
        "'teacher': label the images with a network trained on the real data (before condensing if the method trains "
        "on soft labels, otherwise after). 'learned': start from the teacher's logits and optimise them together with "
        "the images.",
        choices=("none", "teacher", "learned"),
    )
    lr_label: float = option(
        1.0,
        "Learning rate of learned soft labels (logits); it is multiplied by expand, as losses are means over rows.",
        gt=0,
        needs=_LEARNED,
    )
    momentum_label: float | None = option(
        None, "Momentum of learned soft labels, in [0, 1); None: that of the images.", ge=0, lt=1, needs=_LEARNED
    )


ImageT = TypeVar("ImageT", bound=ImageConfig)


class ImageMethod(Method[ImageT]):
    """Base class of methods that learn images."""

    trained_labels: ClassVar[tuple[str, ...]] = ("learned",)
    """Values of `soft_labels` with which the first images are labelled and the labels are used while condensing."""

    def __init__(self, config: ImageT) -> None:
        super().__init__(config)
        self.augmentation = Augmentation.parse(config.augment)

    @property
    def label_temperature(self) -> float | None:
        """Temperature of the soft labels; None for hard labels."""
        return None if self.config.soft_labels == "none" else self.config.temperature

    def identity(self, run: Run) -> dict[str, Any]:
        """Return the number of steps if the learning rates depend on it."""
        return {"steps": self.config.steps if self.config.decay else None}

    def initialise(self, run: Run) -> SyntheticSet:
        """Return the first images, with soft labels if the method uses them while condensing.

        Raises:
            ValueError: If labels of a teacher are asked for, and the dataset has one class, or the teacher diverges, or
                it should stop early and there are no rows to hold out for that.
        """
        config = self.config
        if config.soft_labels != "none" and run.num_classes < 2:
            raise ValueError(
                f"soft_labels={config.soft_labels!r} trains a network to tell classes apart, but the dataset has one "
                f"class, {run.source.class_names[0]!r}; leave soft_labels out"
            )
        if config.soft_labels != "none" and config.soft_labels not in self.trained_labels:
            train_teacher_first(run, config.teacher_updates, early=config.early_teacher)
        synthetic = self.first_set(run)
        if self.config.soft_labels in self.trained_labels:
            self._label(run, synthetic)
            assert synthetic.soft_labels is not None
            synthetic.soft_labels.requires_grad_(self.config.soft_labels == "learned")
        return synthetic

    def first_set(self, run: Run) -> SyntheticSet:
        """Return the set that optimisation starts from, without soft labels."""
        return super().initialise(run)

    def labels(self, run: Run, synthetic: SyntheticSet) -> SoftLabels:
        """Return the soft labels that the teacher gives to the decoded rows of a set."""
        config = self.config
        return teacher_labels(
            run, synthetic, config.teacher_updates, early=config.early_teacher, temperature=config.temperature
        )

    def _label(self, run: Run, synthetic: SyntheticSet) -> None:
        synthetic.soft_labels, synthetic.teacher, synthetic.labeller = self.labels(run, synthetic)

    def optimiser(self, run: Run) -> torch.optim.Optimizer:
        """Return the optimiser of the images and of learned soft labels."""
        optimiser = super().optimiser(run)
        if isinstance(self.config, LearnedLabelConfig) and self.config.soft_labels == "learned":
            # Losses are means over rows: where an image of the budget gives several, each has a share of the gradient.
            rate = self.config.lr_label * run.decoder.expand
            group: dict[str, Any] = {"params": [run.synthetic.soft_labels], "lr": rate}
            if self.config.momentum_label is not None:
                group["momentum"] = self.config.momentum_label
            optimiser.add_param_group(group)
        return optimiser

    def rate(self, t: int, values: Sequence[float]) -> float:
        """Return 1, or the share of the steps that remains if the learning rates fall."""
        return 1 - t / self.config.steps if self.config.decay else 1.0

    def finish(self, run: Run) -> None:
        """Label the finished images with the teacher, if the options ask for it."""
        if self.config.soft_labels == "teacher" and run.synthetic.soft_labels is None:
            self._label(run, run.synthetic)

    @property
    def loss_temperature(self) -> float:
        """Temperature of losses on the synthetic set; 1 if its labels are hard."""
        return self.config.temperature if self.config.soft_labels in self.trained_labels else 1.0


def statistics_rows(num_classes: int) -> int:
    """Return from how many real rows of each class batch norm takes its statistics: 16, or fewer above 100 classes.

    The whole batch goes through the network at once. With very many classes it would not fit into memory.

    References:
        16 rows: the authors' code of Zhao et al., ICLR 2021, for up to 100 classes.
    """
    return max(1, min(_STATISTICS_ROWS, _MOST_STATISTICS_ROWS // num_classes))


def batch_rows(run: Run, batch_syn: int | None) -> dict[int, int]:
    """Return how many rows of every class a batch of `batch_syn` rows has at most; None: of all rows."""
    return {c: min(batch_syn or n, n) for c, n in run.counts.items()}


def check_two_classes(run: Run, method: str, instead: str = _UNTRAINED) -> None:
    """Raise unless networks have two classes to tell apart: with one class, no gradient of a loss moves them.

    Args:
        run: The run.
        method: Name of the method.
        instead: What to do, for the message.

    Raises:
        ValueError: If the dataset has one class. Of several, one alone may have rows.
    """
    if run.num_classes < 2:
        raise ValueError(
            f"{method!r} trains networks to tell classes apart, but the dataset has one class, "
            f"{run.source.class_names[0]!r}: their weights would never move; {instead}"
        )


def check_trainable(run: Run, instead: str = _UNTRAINED) -> None:
    """Raise `ValueError` if the network has frozen parameters; `instead` says what to do."""
    if frozen := run.network_facts.frozen:
        raise ValueError(
            f"{len(frozen)} parameters of the network are frozen ({frozen[0]}, ...), but this method trains all of "
            f"them; pass a network without frozen parameters, or {instead}"
        )


def scale_by_budgets(run: Run) -> None:
    """Scale the gradients of every class by its share of the largest ipc.

    The mean over the images of a class divides the gradient of each image by their number, so most presets choose an
    image rate that grows with ipc, and take the largest one. Each class then learns at the rate that suits its own
    number. The rate of a caller is treated likewise: it is that of the classes with most images.
    AdamW, and Adam for the form 'siren', divide gradients by their size, so they move all classes alike.
    """
    most = max(run.ipc.values())
    if min(run.ipc.values()) == most:
        return
    by_class = torch.tensor([run.ipc.get(c, 0) / most for c in range(run.num_classes)])
    shares = to_device(by_class, run.device).index_select(0, run.synthetic.labels)  # (entries,)
    for tensor in run.synthetic.learned().values():
        if tensor.grad is not None:
            tensor.grad.mul_(shares.view(-1, *[1] * (tensor.ndim - 1)))
