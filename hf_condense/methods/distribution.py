"""DM: align the mean embeddings of real and synthetic images under random networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hf_condense.augment import Augmentation
from hf_condense.method import Loss, Method, MethodConfig, MethodInfo, Preset, Setting, option

if TYPE_CHECKING:
    from hf_condense.run import Run


def mean_discrepancy(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance between class means of embeddings, summed over classes.

    Args:
        real: Mean real embedding of each class.
        synthetic: Mean synthetic embedding of each class.

    Shapes:
        (K, D), (K, D) -> ()

    Reference:
        Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, equation 4 (arXiv:2110.04181).

    Example:
        >>> float(mean_discrepancy(torch.zeros(2, 3), torch.ones(2, 3)))
        6.0
    """
    return (real - synthetic).square().sum()


def class_means(embedded: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Average the rows of each class: (n, D), (n,), (k,) -> (k, D), in the order of `classes`."""
    member = (labels[None, :] == classes[:, None]).to(embedded.dtype)  # (k, n)
    return (member / member.sum(1, keepdim=True)) @ embedded


@dataclass(frozen=True)
class DistributionMatchingConfig(MethodConfig):
    """Options of DM."""

    steps: int = option(1000, "Updates of the images.", ge=1)
    lr_img: float = option(1.0, "Learning rate of the images, in normalised units.", gt=0)
    momentum: float = option(0.5, "Momentum of the images' SGD.", ge=0)
    batch_real: int = option(256, "Real images per class and step.", ge=1)
    init: str = option("real", "Start from 'real' rows, 'noise', or the rows of a coreset method.")
    augment: str = option(
        "color_crop_cutout_flip_scale_rotate",
        "Siamese augmentation: families joined by _, or 'none'. Leave out flip for digits and other sets where a "
        "mirror image means something else.",
    )


def _paper(setting: Setting) -> dict[str, object]:
    """Settings of the paper's code for an ipc."""
    return {"steps": 20_000, "lr_img": 10.0 if setting.ipc >= 100 else 1.0, "pixel_range": "free"}


class DistributionMatching(Method[DistributionMatchingConfig]):
    """Distribution matching (DM)."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dm",
        title="Distribution Matching",
        kind="synthetic",
        summary="Aligns the mean embeddings of real and synthetic images under fresh random networks.",
        paper="Dataset Condensation with Distribution Matching",
        authors="Bo Zhao and Hakan Bilen",
        venue="WACV",
        year=2023,
        link="https://arxiv.org/abs/2110.04181",
        cost="one forward of the real batch, one forward and backward of the synthetic set",
    )
    Config = DistributionMatchingConfig
    presets: ClassVar[dict[str, Preset]] = {
        "paper": Preset("20,000 steps and unclamped pixels, as the authors' code runs it (WACV 2023).", _paper),
        "quick": Preset("300 steps: minutes on two cores.", lambda _: {"steps": 300, "network": "convnet-w32"}),
    }

    def __init__(self, config: DistributionMatchingConfig) -> None:
        """Keep the options and parse the augmentation."""
        super().__init__(config)
        self.augmentation = Augmentation.parse(config.augment)

    def losses(self, run: Run, t: int) -> Iterator[Loss]:
        """Yield the squared distances of the class means, one chunk of classes at a time."""
        run.network("network", t)
        transform = None
        if self.augmentation is not None:
            # One set of parameters a class, the same for its real and its synthetic images (siamese).
            transform = self.augmentation.draw(run.num_classes, run.rng("augment", t))
        for classes in run.chunks():
            wanted = torch.tensor(classes, device=run.device)
            real = run.real(classes, self.config.batch_real, t).flatten(0, 1)  # (k * B, C, H, W)
            real_labels = wanted.repeat_interleave(self.config.batch_real)
            images, labels = run.synthetic.of(classes)
            if transform is not None:
                real, images = transform(real, real_labels), transform(images, labels)
            with torch.no_grad():
                target = class_means(run.embed(real), real_labels, wanted)  # (k, D)
            loss = mean_discrepancy(target, class_means(run.embed(images), labels, wanted))
            yield loss, loss.detach()
