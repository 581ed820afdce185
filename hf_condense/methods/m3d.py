"""M3D (ECHO): align all moments of real and synthetic embeddings, by the squared MMD of a kernel."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from hf_condense.base.checks import listed
from hf_condense.base.devices import to_device
from hf_condense.base.spread import repeated
from hf_condense.engine.forms import form_rate, form_values
from hf_condense.engine.method import MethodInfo, Preset
from hf_condense.engine.options import option, redefined
from hf_condense.engine.task import Task
from hf_condense.methods._embeddings import Chunk, EmbeddingConfig, EmbeddingMatching
from hf_condense.methods._kernels import (
    Kernel,
    characteristic_discrepancy,
    characteristic_function,
    gaussian_mixture,
    linear,
    normalised,
    parse_scales,
    polynomial,
    squared_distances,
    squared_mmd,
)

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

logger = logging.getLogger("hf_condense")

_FEW_ROWS = 3  # of a class


_GAUSSIAN, _CHARACTERISTIC = "gaussian", "characteristic"
_FREQUENCIES = {"kernel": (_CHARACTERISTIC,)}  # what gives options of frequencies an effect
_KERNELS: dict[str, Kernel] = {_GAUSSIAN: gaussian_mixture, "linear": linear, "polynomial": polynomial}


@dataclass(frozen=True)
class KernelMomentsConfig(EmbeddingConfig):
    """Options of M3D."""

    kernel: str = option(
        "gaussian",
        "Kernel of the discrepancy: 'gaussian' (a mixture of five widths), 'linear' (equal to DM), 'polynomial', or "
        "'characteristic' (distance of characteristic functions at random frequencies, a root per frequency; its cost "
        "is linear in the rows). The latter suits normalise=True.",
        choices=(*_KERNELS, _CHARACTERISTIC),
    )
    normalise: bool = option(False, "Compare embeddings at length 1.")
    frequencies: int = option(
        1024,
        "With kernel='characteristic': number of random frequencies, drawn anew for every draw of real batches. A "
        "larger number costs time and lessens noise.",
        ge=1,
        tiny=16,
        needs=_FREQUENCIES,
    )
    scales: str = option(
        "1",
        "With kernel='characteristic': standard deviations of the frequencies, joined by _, such as '0.5_1_2'; each "
        "has an equal share. The scale s compares rows as a Gaussian kernel of width 1/s does.",
        valid=parse_scales,
        needs=_FREQUENCIES,
    )
    amplitude_weight: float = option(
        0.5,
        "With kernel='characteristic': weight of the differences between moduli (alpha).",
        ge=0,
        needs=_FREQUENCIES,
    )
    phase_weight: float = option(
        0.5,
        "With kernel='characteristic': weight of the differences between phases (beta).",
        ge=0,
        needs=_FREQUENCIES,
    )
    augment: str = redefined(EmbeddingConfig, "augment", "color_crop_cutout")
    ipm: int = redefined(EmbeddingConfig, "ipm", 5)


def _rate(task: Task) -> float:
    """Return the image rate of derived configurations: for pixels in [0, 1], 1 for each stored image of a class.

    The mean over the images of a class divides the gradient of each image by their number, so the rate grows with that
    number. Division by the variance converts the rate to normalised images.
    """
    return task.ipc / task.std**2


def _paper(task: Task) -> dict[str, Any]:
    """Return the options of derived configurations; the authors did not publish their own."""
    shared = {"steps": 10_000, "batch_real": 128, "batch_syn": 200, "factor": 2}
    return {**shared, "lr_img": _rate(task), "reuse_real": False}


def _default(task: Task) -> dict[str, Any]:
    return {"steps": 2000, "lr_img": _rate(task)}


def _quick(task: Task) -> dict[str, Any]:
    rate = _rate(task) * form_rate(task)
    return {"steps": 1000, "lr_img": rate, "network": "convnet-w32", "decay": True, **form_values(task)}


class KernelMoments(EmbeddingMatching[KernelMomentsConfig]):
    """Minimising the maximum mean discrepancy (M3D), first published as ECHO.

    References:
        Zhang et al., "M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy", AAAI 2024, equation 6
        (arXiv:2312.15927); see `squared_mmd`.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="m3d",
        title="Minimising Maximum Mean Discrepancy",
        kind="synthetic",
        summary="Aligns all moments of real and synthetic embeddings in the space of a kernel.",
        paper="M3D: Dataset Condensation by Minimizing Maximum Mean Discrepancy",
        authors="Hansong Zhang, Shikun Li, Pengju Wang, Dan Zeng and Shiming Ge",
        venue="AAAI",
        year=2024,
        link="https://arxiv.org/abs/2312.15927",
        cost="that of dm and Gram matrices; forwards of the real batch once per network",
        aliases=("echo",),
    )
    version: ClassVar[int] = 3
    Config = KernelMomentsConfig
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("2,000 steps at width 128, five per network on the same real batch.", _default),
        "paper": Preset(
            "10,000 steps, factor 2, five per network; from configurations derived from the authors' code, as their "
            "own were not published (AAAI 2024). They update after each class and apply all families of augmentation "
            "at once; here, a step updates all classes together, and each class draws one family.",
            _paper,
        ),
        "quick": Preset(
            "1,000 steps at width 32, falling rates, the storage form that measured best: minutes on two cores for "
            "some 1,000 rows, all of which take part in each step.",
            _quick,
        ),
    }

    def __init__(self, config: KernelMomentsConfig) -> None:
        super().__init__(config)
        self._scales = torch.tensor(parse_scales(config.scales))
        self._frequencies_draw = -1  # the draw of the frequencies that are kept
        self._frequencies = torch.empty(0)
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}  # of the columns of each class in this draw, with inverses

    def also_cites(self) -> tuple[str, ...]:
        """Return also `ncfm` if characteristic functions are compared, as in its paper."""
        return (*super().also_cites(), *(("ncfm",) if self.config.kernel == _CHARACTERISTIC else ()))

    def prepare(self, run: Run) -> None:
        """Check options that depend on each other, and record the pool if the options ask for one."""
        config = self.config
        if config.frequencies < len(self._scales):
            raise ValueError(
                f"frequencies={config.frequencies} is fewer than the {len(self._scales)} scales in {config.scales!r}; "
                "each scale needs one"
            )
        if not config.amplitude_weight and not config.phase_weight:
            raise ValueError("amplitude_weight and phase_weight are both 0, so nothing would be compared; raise one")
        small = [run.source.class_names[c] for c in run.ipc if run.source.counts[c] < _FEW_ROWS]
        if small and config.kernel == _GAUSSIAN:
            logger.warning(
                "%s compares distributions, and some classes have fewer than %d rows: %s; their images may drift away "
                "from these rows. With method='dm' they stay close",
                self.info.name,
                _FEW_ROWS,
                listed(small),
            )
        super().prepare(run)

    def summary(self, chunk: Chunk, real: Tensor) -> Tensor:
        """Return the real embeddings (k, B, D), or their characteristic functions (k, 2, F).

        If later steps need the embeddings again, their products with each other, of which the kernel is a function,
        follow: (k, B, D + B). At one image per class, most of a step would go into them.
        """
        real = normalised(real) if self.config.normalise else real
        if self.config.kernel != _CHARACTERISTIC:
            if not self.keeps_real:
                return real
            within = squared_distances(real, real) if self.config.kernel == _GAUSSIAN else real @ real.mT
            return torch.cat([real, within], -1)
        pairs = zip(chunk.classes, real, strict=True)
        return torch.stack([self.characteristic_function_of(chunk, c, rows) for c, rows in pairs])

    def discrepancy(self, chunk: Chunk, real: Tensor, synthetic: Tensor, labels: Tensor) -> Tensor:
        """Return the squared MMD or the discrepancy of characteristic functions, summed over classes."""
        synthetic = normalised(synthetic) if self.config.normalise else synthetic
        amounts = self.rows_per_step(chunk.run)
        counts = [amounts[c] for c in chunk.classes]  # rows are grouped by class
        if self.config.kernel == _CHARACTERISTIC:
            parts = zip(chunk.classes, synthetic.split(counts), real, strict=True)
            return torch.stack([self._characteristic(chunk, c, s, r) for c, s, r in parts]).sum()
        if len(set(counts)) == 1:
            return self._squared_mmd(synthetic.unflatten(0, (len(chunk.classes), -1)), real)
        pairs = zip(synthetic.split(counts), real, strict=True)
        return torch.stack([self._squared_mmd(s[None], r[None]) for s, r in pairs]).sum()

    def _squared_mmd(self, synthetic: Tensor, real: Tensor) -> Tensor:
        """Return the squared MMD of embeddings (k, n, D) and what `summary` made of the real ones, (k, B, ...): ()."""
        dimension = synthetic.shape[-1]
        within = real[..., dimension:] if self.keeps_real else None
        return squared_mmd(synthetic, real[..., :dimension], _KERNELS[self.config.kernel], within)

    def characteristic_function_of(self, chunk: Chunk, c: int, embeddings: Tensor) -> Tensor:
        """Return the characteristic function of rows of a class, at frequencies that real and synthetic rows share.

        Normal numbers are drawn once for all classes, on the CPU: drawing them for each class would take longer than
        the rest of a GPU's step. Each class has their columns in an order of its own, which are normal numbers too; the
        lengths of its frequencies are those of the other classes. The inverse order of the embeddings' columns gives
        the same products, and there are seldom more embeddings than frequencies.

        Args:
            chunk: The chunk, which gives the draw.
            c: The class.
            embeddings: (n, D).

        Returns:
            (2, F).
        """
        _, inverse = self._columns(chunk, c, embeddings)
        return characteristic_function(embeddings[:, inverse], self._frequencies)

    def _columns(self, chunk: Chunk, c: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the order of a class's columns in a draw and its inverse, (D,) each; a new draw draws frequencies.

        Args:
            chunk: The chunk, which gives the draw.
            c: The class.
            like: Embeddings, which give the number of columns, their type and their device. (n, D).
        """
        run, dimension = chunk.run, like.shape[-1]
        if chunk.draw != self._frequencies_draw:
            normal = torch.randn(
                self.config.frequencies, dimension, generator=run.rng("frequencies", chunk.draw)
            )  # (F, D)
            scales = repeated(self._scales, len(normal))[:, None]  # (F, 1)
            self._frequencies = to_device((scales * normal).to(like.dtype), like.device)
            self._frequencies_draw, self._orders = chunk.draw, {}
        if c not in self._orders:
            name = run.source.class_names[c]
            order = torch.randperm(dimension, generator=run.rng("frequencies", name, chunk.draw))
            self._orders[c] = to_device(order, like.device), to_device(order.argsort(), like.device)
        return self._orders[c]

    def _characteristic(self, chunk: Chunk, c: int, synthetic: Tensor, real: Tensor) -> Tensor:
        """Return the discrepancy of a class, with a graph that does not hold its phases.

        Rows times frequencies can be larger than everything else that a step keeps. The gradient by the embeddings is
        therefore computed at once, one class after the other. It is taken by the reordered columns and put into their
        first order, because the backward pass of reordering them is slow.

        Args:
            chunk: The chunk.
            c: The class.
            synthetic: Embeddings of its rows. (n, D).
            real: Characteristic function of its real rows. (2, F).

        Returns:
            A scalar, ().
        """
        with torch.enable_grad():
            order, inverse = self._columns(chunk, c, synthetic)
            rows = synthetic.detach()[:, inverse].requires_grad_()
            function = characteristic_function(rows, self._frequencies)
            weights = self.config.amplitude_weight, self.config.phase_weight
            value = characteristic_discrepancy(function, real, *weights)
            (gradient,) = torch.autograd.grad(value, rows)
        surrogate = (synthetic * gradient[:, order]).sum()
        return value.detach() + (surrogate - surrogate.detach())
