"""DANCE: DM under blends of first and trained networks, and a calibration by the trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_condense.engine.forms import form_rate, form_values
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.options import redefined
from hf_condense.engine.task import Task
from hf_condense.methods._pool import PAPER_POOL
from hf_condense.methods.dm import DistributionMatching, DistributionMatchingConfig


@dataclass(frozen=True)
class DualViewConfig(DistributionMatchingConfig):
    """Options of DANCE."""

    networks: str = redefined(DistributionMatchingConfig, "networks", "pool")
    calibration: float = redefined(DistributionMatchingConfig, "calibration", 1.0)
    augment: str = redefined(DistributionMatchingConfig, "augment", "color_crop_cutout")


def _rate(task: Task) -> float:
    """Return the authors' image rate: 0.01 per stored image of a class, converted from pixels in [0, 1]."""
    return 0.01 * task.ipc / task.std**2


def _paper(task: Task) -> dict[str, Any]:
    """Return the options of the authors' code for CIFAR, in normalised units."""
    shared = {"steps": 10_000, "batch_real": 128, "batch_syn": 200, "factor": 2}
    return {**shared, "lr_img": _rate(task), **PAPER_POOL}


def _default(task: Task) -> dict[str, Any]:
    return {"steps": 2000, "lr_img": _rate(task), "ipm": 5}


def _quick(task: Task) -> dict[str, Any]:
    rate = {"lr_img": _rate(task) * form_rate(task), "decay": True}
    return {"steps": 1000, **rate, "ipm": 5, "network": "convnet-w32", **form_values(task)}


class DualViewAlignment(DistributionMatching):
    """Dual-view distribution alignment (DANCE).

    References:
        Zhang et al., "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024
        (arXiv:2406.01063), on pseudo long-term distribution alignment and on distribution calibration.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dance",
        title="Dual-View Distribution Alignment",
        kind="synthetic",
        summary="Aligns mean embeddings under networks between first and trained weights, and keeps images in their "
        "class for trained ones.",
        paper="DANCE: Dual-View Distribution Alignment for Dataset Condensation",
        authors="Hansong Zhang, Shikun Li, Fanzhao Lin, Weiping Wang, Zhenxing Qian and Shiming Ge",
        venue="IJCAI",
        year=2024,
        link="https://arxiv.org/abs/2406.01063",
        cost="a pool of networks once; that of dm, and another forward and backward of the synthetic set",
    )
    Config = DualViewConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("2,000 steps at width 128, five per pair of networks.", _default),
        "paper": Preset(
            "10,000 steps, factor 2, 20 networks of 60 epochs of 50,000 images, as in the authors' code for CIFAR "
            "(IJCAI 2024). They update after each class and apply all families of augmentation at once; here, a step "
            "updates all classes together, and each class draws one family.",
            _paper,
        ),
        "quick": Preset(
            "1,000 steps at width 32, falling rates, the storage form that was best with `m3d`: minutes on two cores "
            "for some 1,000 rows, all of which take part in each step.",
            _quick,
        ),
    }
