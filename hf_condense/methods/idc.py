"""IDC: gradient matching with multi-formation, along the training of networks on real rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hf_condense.engine.forms import lean_form_values
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.options import option, redefined
from hf_condense.engine.task import Task
from hf_condense.methods._images import ALWAYS, AUGMENT_HELP, scale_by_budgets
from hf_condense.methods.dc import GradientMatching, GradientMatchingConfig
from hf_condense.networks.augment import Augmentation
from hf_condense.networks.training_recipe import TrainingRecipe, epochs_for
from hf_condense.networks.training_set import TrainingSet

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_USUAL_IPC = 10  # for which the authors' code states the image rates


@dataclass(frozen=True)
class MultiFormationConfig(GradientMatchingConfig):
    """Options of IDC."""

    init: str = redefined(GradientMatchingConfig, "init", "real")
    augment: str = redefined(
        GradientMatchingConfig,
        "augment",
        "color_crop_cutout",
        f"{AUGMENT_HELP} All families are applied, one after the other.",
    )
    batch_real: int = redefined(GradientMatchingConfig, "batch_real", 64)
    distance: str = redefined(
        GradientMatchingConfig,
        "distance",
        "mse",
        "How gradients are compared: as one vector by 'mse' (sum of squares, for colour images), 'l1' (sum of absolute "
        "values, for grey ones) or 'cosine'; or 'layerwise' (by output rows of each tensor).",
    )
    matched: str = redefined(GradientMatchingConfig, "matched", "convolutions")
    outer_loop: int = redefined(GradientMatchingConfig, "outer_loop", 100, "Updates of the images per network.")
    inner_loop: int = redefined(
        GradientMatchingConfig,
        "inner_loop",
        8,
        "Updates of the network, with batches of real rows, after each update of the images.",
    )
    batch_net: int = option(64, "Real images per update of the network in the inner loop.", ge=1)
    cutmix: float = option(0.5, "Share of the updates of the inner loop that use CutMix, in [0, 1].", ge=0, le=1)


def _is_grey(task: Task) -> bool:
    return task.image_shape[0] == 1


def _rate(task: Task) -> float:
    """Return the image rate of the authors' code, for pixels in [0, 1]: it grows with images per class and their size.

    Division by the variance converts the rate to normalised images.
    """
    rate, side = (1e-4, 28) if _is_grey(task) else (5e-3, 32)  # of images with sides of this many pixels
    return rate * (min(task.image_shape[1:]) / side) ** 2 * task.ipc / _USUAL_IPC / task.std**2


def _shared(task: Task) -> dict[str, Any]:
    return {"factor": 2, "distance": "l1" if _is_grey(task) else "mse", "lr_img": _rate(task)}


def _paper(task: Task) -> dict[str, Any]:
    # The authors' code trains the network on 2,000 rows of CIFAR after each update, and on 500 of other datasets; here,
    # 500 rows are for grey images.
    return {**_shared(task), "steps": 200_000, "batch_syn": 128, "inner_loop": 8 if _is_grey(task) else 32}


def _default(task: Task) -> dict[str, Any]:
    return {**_shared(task), "steps": 2000, "batch_syn": 128}


def _quick(task: Task) -> dict[str, Any]:
    # In so few steps the images move far enough only at larger rates; absolute differences have smaller gradients. For
    # grey images the rate was measured at 1 image per class, for colour at 1, 10 and 50, where the same one is best.
    rate = 2000 * _rate(task) if _is_grey(task) else 800 * _rate(dataclasses.replace(task, ipc=1))
    short = {"steps": 400, "outer_loop": 40, "inner_loop": 4, "batch_syn": 20, "decay": True, "network": "convnet-w32"}
    values = {**_shared(task), **short, "lr_img": rate}
    form = lean_form_values(task)
    if form["storage"] == "pixels":  # not measured, so the images are those of the paper
        return values
    del values["factor"]
    return {**values, **form}


class MultiFormationMatching(GradientMatching):
    """Gradient matching with multi-formation (IDC).

    DC with three changes: the network is trained on real rows, with CutMix, so that it does not overfit to the few
    synthetic ones; gradients of convolutions are compared, with their lengths; and presets store several smaller images
    in the space of one. All classes are updated at once, where the authors' code updates one after the other.

    References:
        Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022 (arXiv:2205.14959).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="idc",
        title="Information-intensive Dataset Condensation",
        kind="synthetic",
        summary="Matches gradients of several small images per stored one, along networks trained on real rows.",
        paper="Dataset Condensation via Efficient Synthetic-Data Parameterization",
        authors=(
            "Jang-Hyun Kim, Jinuk Kim, Seong Joon Oh, Sangdoo Yun, Hwanjun Song, Joonhyun Jeong, Jung-Woo Ha and "
            "Hyun Oh Song"
        ),
        venue="ICML",
        year=2022,
        link="https://arxiv.org/abs/2205.14959",
        cost="that of dc, with an inner loop on real rows",
    )
    version: ClassVar[int] = 2
    Config = MultiFormationConfig  # type: ignore[assignment]  # the lengths of its loops are never None
    config: MultiFormationConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("2,000 steps on 20 networks, factor 2: a hundredth of the paper's; not measured.", _default),
        "paper": Preset(
            "2,000 networks of 100 steps, factor 2, distance and rate by the number of channels, as in the authors' "
            "code for small images (ICML 2022). For MNIST, that code leaves out cutout and CutMix, which are kept "
            "here. Other colour images take the length of the inner loop from CIFAR. The momentum of the inner loop "
            "starts anew after each update.",
            _paper,
        ),
        "quick": Preset(
            "400 steps at width 32, larger and falling rates; up to 50 images per class in frequencies, else in "
            "patches: minutes on two cores.",
            _quick,
        ),
    }

    def __init__(self, config: MultiFormationConfig) -> None:
        super().__init__(config)
        self.augmentation = Augmentation.parse(config.augment, "all")

    def adjust_gradients(self, run: Run) -> None:
        """Scale gradients by the budgets of classes."""
        scale_by_budgets(run)

    def inner_training(self, run: Run) -> tuple[TrainingSet, TrainingRecipe, int | None]:
        """Return what the inner loop trains the network on, how, and for how many updates: batches of real rows."""
        config = self.config
        data = TrainingSet(run.source, run.source.labels, run.num_classes)
        families = [] if self.augmentation is None else list(self.augmentation.families)
        if config.cutmix:  # which takes the place of cutout, as in the authors' code
            families = [name for name in families if name != "cutout"]
        recipe = TrainingRecipe(
            "inner",
            epochs=epochs_for(self._inner, len(data), config.batch_net),
            batch_size=config.batch_net,
            lr=config.lr_net,
            milestones=(),
            augment="_".join(families) or None,
            always=ALWAYS,
            cutmix_probability=config.cutmix,
        )
        return data, recipe, self._inner
