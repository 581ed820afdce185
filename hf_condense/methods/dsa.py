"""DSA: gradient matching with differentiable siamese augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.options import redefined
from hf_condense.methods._images import ADVICE_FOR_DIGITS
from hf_condense.methods.dc import GradientMatching, GradientMatchingConfig
from hf_condense.networks.augment import ALL_FAMILIES


@dataclass(frozen=True)
class SiameseGradientMatchingConfig(GradientMatchingConfig):
    """Options of DSA: those of DC, with augmentation and a start from real rows by default."""

    init: str = redefined(GradientMatchingConfig, "init", "real")
    augment: str = redefined(GradientMatchingConfig, "augment", ALL_FAMILIES)


class SiameseGradientMatching(GradientMatching):
    """Gradient matching with differentiable siamese augmentation (DSA).

    References:
        Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021, section 3.3
        (arXiv:2102.08259).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dsa",
        title="Differentiable Siamese Augmentation",
        kind="synthetic",
        summary="Matches gradients as DC does, of real and synthetic batches that are augmented alike.",
        paper="Dataset Condensation with Differentiable Siamese Augmentation",
        authors="Bo Zhao and Hakan Bilen",
        venue="ICML",
        year=2021,
        link="https://arxiv.org/abs/2102.08259",
        cost="that of dc",
    )
    Config = SiameseGradientMatchingConfig
    presets: ClassVar[dict[str, Preset]] = {
        **GradientMatching.presets,
        "paper": Preset(
            f"1,000 networks and unclamped pixels, as the authors' code runs it (ICML 2021). {ADVICE_FOR_DIGITS}",
            GradientMatching.presets["paper"].values,
        ),
    }
