"""SIREN: every row is stored as a small network that maps coordinates to colours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_condense.base.cache import cached_or_made, content_key
from hf_condense.base.devices import to_device
from hf_condense.base.progress import progress_bar
from hf_condense.condensed.decoders.base import Decoder, Layout, Origin

CACHE_VERSION = 1  # version of the cached fits; increment when the same rows start to give other networks

_LEAST_WIDTH, _DEFAULT_WIDTH, _LARGE_WIDTH = 2, 6, 20
_LARGE_SIDE = 64  # pixels; from here on networks have three hidden layers and a higher frequency
_FIRST_FREQUENCY = 30.0
_RATE, _BETAS = 0.001, (0.5, 0.99)  # of Adam while a set is learned
_FIT_STEPS, _FIT_RATE = 500, 0.02
_FIT_ROWS = 512  # networks that are fitted at once, at most
_FIT_BYTES = 2**30  # that their graph may take; it does not depend on the machine, which would change bits


class Siren(Decoder):
    """Stores a coordinate network with sine activations for every row: (y, x) in [-1, 1]^2 to a normalised colour.

    `expand` decides the width: the largest one with which `expand` networks hold at most `C * H * W` numbers. Images
    with a side of 64 pixels or more have three hidden layers, smaller ones two. All networks are evaluated together, in
    batched matrix products. They start from fits to real rows, and are learned by Adam at a rate of its own.

    The stored tensor is `weights` (rows, P): layer after layer, first the matrix, then the bias.

    References:
        Shin et al., "Distilling Dataset into Neural Field", ICLR 2025, section 3 (DDiF, arXiv:2503.04835); Sitzmann et
        al., "Implicit Neural Representations with Periodic Activation Functions", NeurIPS 2020 (arXiv:2006.09661).

    Example:
        >>> form = Siren((3, 32, 32), 37)
        >>> form.width, form.layout(37, 1)
        (6, {'weights': ('F32', [37, 81])})
    """

    name: ClassVar[str] = "siren"
    own_rate: ClassVar[float | None] = _RATE
    starts_apart: ClassVar[bool] = True  # each network is fitted from weights of its own
    content: ClassVar[str] = "a small network for each image, which computes the colour at every point"
    papers: ClassVar[tuple[str, ...]] = (
        "Storage form siren (DDiF): Donghyeok Shin, HeeSun Bae, Gyuwon Sim, Wanmo Kang and Il-Chul Moon, "
        '"Distilling Dataset into Neural Field", ICLR 2025, https://arxiv.org/abs/2503.04835',
        "Storage form siren (SIREN): Vincent Sitzmann, Julien N. P. Martel, Alexander W. Bergman, David B. Lindell and "
        'Gordon Wetzstein, "Implicit Neural Representations with Periodic Activation Functions", NeurIPS 2020, '
        "https://arxiv.org/abs/2006.09661",
    )

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return a number of rows whose networks have hidden layers of at least two units.

        By default they have 6 (37 rows for each colour image of 32 x 32 pixels), and 20 for large images.
        """
        least = _size(image_shape, _LEAST_WIDTH)
        most = math.prod(image_shape) // least
        if not most:
            raise ValueError(
                f"storage='siren' needs images of at least {least} numbers; those of shape {image_shape} have "
                f"{math.prod(image_shape)}. Pass storage='pixels'"
            )
        if expand is None:
            width = _LARGE_WIDTH if _is_large(image_shape) else _DEFAULT_WIDTH
            expand = max(1, math.prod(image_shape) // _size(image_shape, width))
        if not 1 <= expand <= most:
            raise ValueError(
                f"storage='siren' stores {image_shape[1]}x{image_shape[2]} images as networks of at least "
                f"{least} weights, so expand should be in 1..{most}; got {expand!r}"
            )
        return expand

    @property
    def width(self) -> int:
        """Units of every hidden layer."""
        most = math.prod(self.image_shape) // self.expand
        width = _LEAST_WIDTH
        while _size(self.image_shape, width + 1) <= most:
            width += 1
        return width

    def check(self) -> None:
        """Raise `ValueError` unless the networks have at least two units."""
        most = math.prod(self.image_shape) // _size(self.image_shape, _LEAST_WIDTH)
        if not 1 <= self.expand <= most:
            right = f"it should be in 1..{most}" if most else "they are too small for any"
            raise ValueError(
                f"expand of storage 'siren' is out of range for images of shape {self.image_shape}: {right}; got "
                f"{self.expand}"
            )

    def optimiser(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """Return Adam, because weights of different layers have gradients of very different sizes.

        Groups that are added later, of soft labels or a student's learning rate, take steps of SGD.
        """
        return _AdamThenSgd(groups, momentum)

    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return networks that are fitted to the rows by their mean squared error."""
        weights = self._fresh(len(real), origin.generator).to(real)
        digest = hashlib.sha256(real.cpu().contiguous().numpy().tobytes() + weights.cpu().numpy().tobytes())
        key = content_key(
            format=CACHE_VERSION,
            content=digest.hexdigest(),
            shape=list(real.shape),
            steps=_FIT_STEPS,
            rate=_FIT_RATE,
            device=real.device.type,
            torch=torch.__version__,
        )

        def fit() -> dict[str, Tensor]:
            return {"weights": self._fitted(weights, real, origin.progress).cpu()}

        return {"weights": cached_or_made("siren", key, fit, enabled=origin.cache)["weights"].to(real)}

    def start_from_noise(self, noise: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return fresh networks: no network of this size can show noise."""
        return {"weights": self._fresh(len(noise), origin.generator).to(noise)}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the networks' values at the centres of the pixels, clipped if the frame clips."""
        weights = stored["weights"] if rows is None else stored["weights"].index_select(0, rows)
        return self.frame.clip_images(self._evaluate(weights))

    def decoding_bytes(self) -> int:
        """Return the bytes of the largest tensor while a row is decoded: the values of a layer at every pixel."""
        channels, height, width = self.image_shape
        return 4 * max(channels, self.width) * height * width

    def layout(self, entries: int, classes: int) -> Layout:
        """Return the layout of `weights`: (entries, P)."""
        return {"weights": ("F32", [entries, _size(self.image_shape, self.width)])}

    def _evaluate(self, weights: Tensor) -> Tensor:
        """Return the images of networks: (n, P) -> (n, C, H, W)."""
        _, height, width = self.image_shape
        shapes = _layers(self.image_shape, self.width)
        parts = weights.split([out * (inputs + 1) for out, inputs in shapes], dim=1)
        points = _coordinates(height, width, weights.dtype, weights.device)
        values = points.expand(len(weights), -1, -1)  # (n, 2, H * W)
        for i, (part, (out, inputs)) in enumerate(zip(parts, shapes, strict=True)):
            matrix, bias = part[:, : out * inputs].unflatten(1, (out, inputs)), part[:, out * inputs :, None]
            values = torch.baddbmm(bias, matrix, values)  # (n, out, H * W)
            if i < len(shapes) - 1:
                values = torch.sin(values * (_FIRST_FREQUENCY if i == 0 else self._frequency))
        images: Tensor = values.unflatten(2, (height, width))
        return images

    @property
    def _frequency(self) -> float:
        """Factor in the sines of all hidden layers but the first."""
        return 40.0 if _is_large(self.image_shape) else 10.0

    def _fresh(self, n: int, generator: torch.Generator) -> Tensor:
        """Return random weights of n networks, uniform within the bounds of the SIREN paper: (n, P)."""
        parts = []
        for i, (out, inputs) in enumerate(_layers(self.image_shape, self.width)):
            bound = 1 / inputs if i == 0 else math.sqrt(6 / inputs) / self._frequency
            matrix = torch.empty(n, out * inputs).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(n, out).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
            parts += [matrix, bias]
        return torch.cat(parts, 1)

    def _fitted(self, weights: Tensor, real: Tensor, progress: bool) -> Tensor:
        """Return networks after their fits to rows, as many at a time as fit into the memory: (n, P)."""
        at_once = max(1, min(_FIT_ROWS, _FIT_BYTES // max(1, self.row_bytes())))
        pairs = list(zip(weights.split(at_once), real.split(at_once), strict=True))
        with progress_bar(len(pairs) * _FIT_STEPS, "Fitting", "step", shown=progress) as bar, torch.enable_grad():
            return torch.cat([self._fit(start, images, bar) for start, images in pairs])

    def _fit(self, start: Tensor, images: Tensor, bar: Any) -> Tensor:
        """Fit networks to images by Adam, at a rate that falls to zero: (n, P)."""
        weights = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([weights], lr=_FIT_RATE)
        for step in range(_FIT_STEPS):
            optimiser.param_groups[0]["lr"] = _FIT_RATE * (1 - step / _FIT_STEPS)
            # The sum over networks of each one's mean: they do not depend on each other.
            loss = (self._evaluate(weights) - images).square().mean((1, 2, 3)).sum()
            (weights.grad,) = torch.autograd.grad(loss, weights)
            optimiser.step()
            bar.update()
        return weights.detach()


class _AdamThenSgd(torch.optim.Adam):
    """Adam for the groups that it is made with, SGD for those that are added later, whose rates are meant for it.

    Args:
        groups: Parameter groups of the weights.
        momentum: Momentum of SGD.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, betas=_BETAS)
        self._first, self._momentum = len(groups), momentum

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter."""
        groups, later = self.param_groups, self.param_groups[self._first :]
        self.param_groups = groups[: self._first]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in later:
            for tensor in group["params"]:
                state = self.state[tensor]
                if not state:  # the step is never read, but Adam expects one in every state that it loads
                    state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(tensor))
                momentum = group.get("momentum", self._momentum)  # learned labels have one of their own
                buffer = state["momentum_buffer"].mul_(momentum).add_(tensor.grad)
                tensor.sub_(group["lr"] * buffer)


def _is_large(image_shape: tuple[int, int, int]) -> bool:
    return max(image_shape[1:]) >= _LARGE_SIDE


def _layers(image_shape: tuple[int, int, int], width: int) -> list[tuple[int, int]]:
    """Return the (outputs, inputs) of every layer."""
    hidden = 3 if _is_large(image_shape) else 2
    return [(width, 2), *[(width, width)] * (hidden - 1), (image_shape[0], width)]


def _size(image_shape: tuple[int, int, int], width: int) -> int:
    """Return the number of weights of a network."""
    return sum(out * (inputs + 1) for out, inputs in _layers(image_shape, width))


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a graph cannot keep tensors that are made in it
def _coordinates(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (y, x) of the centre of every pixel, in [-1, 1]: (2, H * W)."""
    y, x = ((2 * torch.arange(n, dtype=torch.float64, device="cpu") + 1) / n - 1 for n in (height, width))
    points = torch.stack(torch.meshgrid(y, x, indexing="ij")).flatten(1)
    return to_device(points.to(dtype), device)
