"""NCFM: match characteristic functions of embeddings under blends of first and trained networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_condense.engine.forms import form_rate, form_values
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.options import redefined
from hf_condense.engine.task import Task
from hf_condense.methods._pool import PAPER_POOL
from hf_condense.methods.m3d import KernelMoments, KernelMomentsConfig

_MATCHING_WEIGHT = 300  # of the discrepancy beside the calibration, in the authors' code


@dataclass(frozen=True)
class CharacteristicMatchingConfig(KernelMomentsConfig):
    """Options of NCFM."""

    networks: str = redefined(KernelMomentsConfig, "networks", "pool")
    kernel: str = redefined(
        KernelMomentsConfig,
        "kernel",
        "characteristic",
        "What compares embeddings: 'characteristic' (distance of characteristic functions at random frequencies, a "
        "root per frequency), or a kernel of m3d: 'gaussian', 'linear', 'polynomial'.",
    )
    normalise: bool = redefined(KernelMomentsConfig, "normalise", True)
    scales: str = redefined(
        KernelMomentsConfig,
        "scales",
        "0.5_1_2_4",
        "Standard deviations of the frequencies, joined by _; each has an equal share. The scale s compares rows as a "
        "Gaussian kernel of width 1/s does.",
    )
    calibration: float = redefined(KernelMomentsConfig, "calibration", 1 / _MATCHING_WEIGHT)
    optimiser: str = redefined(KernelMomentsConfig, "optimiser", "adamw")
    lr_img: float = redefined(
        KernelMomentsConfig,
        "lr_img",
        0.03,
        "Learning rate of the images, in normalised units: about what a number moves per step.",
    )


def _paper(task: Task) -> dict[str, Any]:
    """Return the options of the authors' configurations for CIFAR, in normalised units.

    References:
        Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025
        (arXiv:2502.20653); the values are those of the authors' code.
    """
    values: dict[str, Any] = {
        "steps": 20_000,
        "batch_real": 1024,
        "factor": 2,
        "frequencies": 4096,
        "scales": "1",
        "ipm": 1,
    }
    # In an iteration, the authors' AdamW makes two steps for each class, to match it and to calibrate it. Images of the
    # other classes have no gradient there, which makes the second moment smaller and steps longer: n steps, two of them
    # with a gradient of their own, move a number by about the root of n times the rate. Here, an iteration is one step.
    # It also removes the authors' share of a number: rate times decay, n times.
    longer = math.sqrt(2 * task.num_classes)
    optimiser: dict[str, Any] = {"lr_img": longer * 0.001 / task.std, "weight_decay": longer * 5e-4 * task.std}
    is_small = min(task.image_shape[1:]) <= 32  # the authors' configurations for Tiny ImageNet keep AdamW
    if task.num_classes >= 50 and task.ipc >= 10 and is_small:  # CIFAR-100
        optimiser = {"optimiser": "form", "momentum": 0.5, "lr_img": 0.01 * _MATCHING_WEIGHT / task.std**2}
    return {**values, **optimiser, **PAPER_POOL, "decay": True}


def _default(task: Task) -> dict[str, Any]:
    return {"steps": 2000, "lr_img": 0.01 / task.std, "decay": True}


def _quick(task: Task) -> dict[str, Any]:
    rate = 0.01 / task.std * form_rate(task)
    return {**_default(task), "lr_img": rate, "steps": 1000, "network": "convnet-w32", **form_values(task)}


class CharacteristicMatching(KernelMoments):
    """Neural characteristic function matching (NCFM), without its sampling network.

    The sampling network would choose the frequencies. The authors' configurations leave it out, and a mixture of scales
    stands in its place.

    References:
        Wang et al., CVPR 2025, equations 7 and 8.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ncfm",
        title="Neural Characteristic Function Matching",
        kind="synthetic",
        summary="Matches characteristic functions of embeddings under networks between first and trained weights, at "
        "random frequencies.",
        paper="Dataset Distillation with Neural Characteristic Function: A Minmax Perspective",
        authors=("Shaobo Wang, Yicun Yang, Zhiyuan Liu, Chenghao Sun, Xuming Hu, Conghui He and Linfeng Zhang"),
        venue="CVPR",
        year=2025,
        link="https://arxiv.org/abs/2502.20653",
        cost="a pool of networks once; that of m3d, and another forward and backward of the synthetic set",
    )
    version: ClassVar[int] = 3
    Config = CharacteristicMatchingConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("2,000 steps at width 128, five per pair of networks, falling rates.", _default),
        "paper": Preset(
            "20,000 steps, factor 2, 4,096 frequencies, 20 networks of 60 epochs of 50,000 images, as in the authors' "
            "code for CIFAR (CVPR 2025), which has no sampling network either. They update all images after each class "
            "and each calibration, halve the rate on plateaus and apply all families of augmentation at once; here, a "
            "step updates all classes together, the calibration sees the rows as the comparison does, the rate falls "
            "linearly, and each class draws one family. Weight decay draws pixels to the mean colour, not to black; it "
            "and the rate are scaled, as one step here stands for their two for each class.",
            _paper,
        ),
        "quick": Preset(
            "1,000 steps at width 32, falling rates, the storage form that was best with `m3d`: minutes on two cores "
            "for some 1,000 rows, all of which take part in each step.",
            _quick,
        ),
    }
