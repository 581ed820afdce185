"""DCT: every row is stored as the cosine coefficients that matter most for its class, as JPEG spends its bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from hf_condense.base.devices import in_float64, to_device
from hf_condense.condensed.decoders.base import Decoder, Layout, Origin

_MANY_ROWS, _FEW_ROWS = 16, 8  # by default, for colour images of small budgets, and for all others
FEW_IMAGES = 4  # per class; below, rows are few, and every further one counts
_TRANSFORMED = 2**24  # numbers of real rows that are transformed at a time
# Orthonormal opponent colours: brightness, red against blue, and green against both. Rows are normalised in `_colours`.
_OPPONENTS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


class Dct(Decoder):
    """Stores for every row the discrete cosine transform at its class's best places, `C * H * W // expand` numbers.

    A place is one frequency of one opponent colour. Each class has its own places: those with the largest mean square
    over all its real rows, so no other choice loses less of these rows. Colours and frequencies are transformed by
    orthonormal matrices. Storing a real row is therefore a projection, and the length of a step in coefficients is that
    of the same step in pixels.

    The stored tensors are `coefficients` (rows, n), `places` (classes, n), as positions in (C, H, W) in rising order,
    and `counts` (classes,), the rows of each class.

    References:
        After Shin et al., "Frequency Domain-based Dataset Distillation", NeurIPS 2023, section 3 (FreD,
        arXiv:2311.08819), which has one set of frequencies for all colours, chosen by variance, and no clipping.

    Example:
        >>> form = Dct((3, 8, 8), 16)
        >>> form.rows(2), form.layout(32, 1)["coefficients"]
        (32, ('F32', [32, 12]))
    """

    name: ClassVar[str] = "dct"
    reads_classes: ClassVar[bool] = True
    content: ClassVar[str] = "the cosine coefficients that matter most for the class, as JPEG does"
    papers: ClassVar[tuple[str, ...]] = (
        "Storage form dct (after FreD): Donghyeok Shin, Seungjae Shin and Il-Chul Moon, "
        '"Frequency Domain-based Dataset Distillation", NeurIPS 2023, https://arxiv.org/abs/2311.08819',
    )

    @classmethod
    def settle_expand(cls, expand: int | None, image_shape: tuple[int, int, int], ipc: int) -> int:
        """Return a number of rows that leaves each a coefficient or more.

        By default it is 16 for colour images and budgets below four images, and 8 otherwise.
        """
        most = math.prod(image_shape)
        if expand is None:
            return min(most, _MANY_ROWS if image_shape[0] > 1 and ipc < FEW_IMAGES else _FEW_ROWS)
        if not 1 <= expand <= most:
            raise ValueError(
                f"storage='dct' keeps {most:,} numbers for each image of the budget, so expand should be in "
                f"1..{most:,}; got {expand!r}"
            )
        return expand

    @property
    def kept(self) -> int:
        """Coefficients of a row."""
        return math.prod(self.image_shape) // self.expand

    def check(self) -> None:
        """Raise `ValueError` unless every row has a coefficient."""
        most = math.prod(self.image_shape)
        if not 1 <= self.expand <= most:
            raise ValueError(f"expand of storage 'dct' should be in 1..{most}; got {self.expand}")

    def rate(self, image_rate: float) -> float:
        """Return the image rate times `expand`: a mean over that many more rows divides the gradient of each by it."""
        return image_rate * self.expand

    def start_from_noise(self, noise: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return coefficients of a projection, enlarged so that the decoded noise has the variance that it had."""
        stored = self.start(noise, labels, origin)
        return {**stored, "coefficients": stored["coefficients"] * math.sqrt(math.prod(self.image_shape) / self.kept)}

    @torch.no_grad()
    def start(self, real: Tensor, labels: Tensor, origin: Origin) -> dict[str, Tensor]:
        """Return the projections of the rows onto the best places of their classes."""
        classes, counts = labels.unique_consecutive(return_counts=True)
        places = torch.stack([self._best_places(origin, c) for c in classes.tolist()]).to(real.device)  # (classes, n)
        coefficients = self.transform(real).flatten(1).gather(1, places[_classes(counts, len(real))])
        return {"coefficients": coefficients, "places": places.int(), "counts": counts.int()}

    def decode(self, stored: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Return the inverse transform of the coefficients, with zero everywhere else, clipped if the frame clips."""
        coefficients = stored["coefficients"]
        classes = _classes(stored["counts"], len(coefficients))
        if rows is not None:  # the places of all rows of a large set would fill the memory
            coefficients, classes = coefficients.index_select(0, rows), classes.index_select(0, rows)
        places = stored["places"].index_select(0, classes).long()  # (rows, n)
        spectrum = coefficients.new_zeros(len(coefficients), math.prod(self.image_shape))
        spectrum = spectrum.scatter_(1, places, coefficients).unflatten(1, self.image_shape)
        colours, down, across = _matrices(self.image_shape, spectrum.dtype, spectrum.device)
        images = (colours.mT @ (down.mT @ spectrum @ across).flatten(2)).unflatten(2, self.image_shape[1:])
        return self.frame.clip_images(images)

    def transform(self, images: Tensor) -> Tensor:
        """Return the coefficients of images, of the same shape: opponent colours by vertical by horizontal frequency.

        Args:
            images: (n, C, H, W).
        """
        colours, down, across = _matrices(self.image_shape, images.dtype, images.device)
        return down @ (colours @ images.flatten(2)).view_as(images) @ across.mT

    def layout(self, entries: int, classes: int) -> Layout:
        """Return the layout of coefficients, places and counts."""
        return {
            "coefficients": ("F32", [entries, self.kept]),
            "places": ("I32", [classes, self.kept]),
            "counts": ("I32", [classes]),
        }

    def one_entry(self) -> dict[str, Tensor]:
        """Return stored tensors of one entry of one class, which counts one; every image has the place 0."""
        stored = super().one_entry()
        return {**stored, "places": torch.zeros_like(stored["places"])}

    def check_stored(self, stored: Mapping[str, Tensor], labels: Tensor) -> None:
        """Raise `ValueError` unless places rise within the image, and counts are those of the labels."""
        places, counts = stored["places"].long(), stored["counts"].tolist()
        most = math.prod(self.image_shape)
        if bool((places < 0).any() | (places >= most).any() | (places.diff(dim=1) <= 0).any()):
            raise ValueError(f"places of each class should be different positions in 0..{most - 1}, in rising order")
        rows: list[int] = labels.unique_consecutive(return_counts=True)[1].tolist()
        if counts != rows:
            raise ValueError(f"counts should be the rows of each class, {rows!s:.80}; got {counts!s:.80}")

    def combine(self, parts: Sequence[Mapping[str, Tensor]], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the tensors of several sets in one, with the places of every class once.

        Raises:
            ValueError: If sets store the same class at different places.
        """
        places: dict[int, Tensor] = {}
        for stored, classes in zip(parts, labels, strict=True):
            for c, own in zip(classes.unique_consecutive().tolist(), stored["places"], strict=True):
                if not torch.equal(places.setdefault(c, own), own):
                    raise ValueError(
                        "sets in the form 'dct' store a class at the frequencies that are strongest in its source; "
                        "a class may be in several of them only if they were made from the same source"
                    )
        order = torch.cat(list(labels)).argsort(stable=True)
        return {
            "coefficients": torch.cat([stored["coefficients"] for stored in parts])[order],
            "places": torch.stack([places[c] for c in sorted(places)]),
            "counts": torch.cat(list(labels)).unique(return_counts=True)[1].int(),
        }

    def _best_places(self, origin: Origin, c: int) -> Tensor:
        """Return the places with the largest mean square over all real rows of a class, rising: (n,), on the CPU."""
        if c not in origin.memo:
            energy = sum(self._energies(origin.rows_of(c)), start=torch.zeros(()))
            # A stable sort, so that equal energies give the same places on every device.
            best = energy.flatten().cpu().sort(descending=True, stable=True).indices[: self.kept]
            origin.memo[c] = best.sort().values
        return origin.memo[c]

    def _energies(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield sums of squares of coefficients over some rows, few enough for the memory: (C, H, W)."""
        for batch in batches:
            for rows in batch.split(max(1, _TRANSFORMED // math.prod(self.image_shape))):
                yield in_float64(self.transform(rows)).square().sum(0)


def _classes(counts: Tensor, rows: int) -> Tensor:
    """Return for every row which of the classes that have rows it belongs to: int64 (rows,)."""
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=rows)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a graph cannot keep tensors that are made in it
def _matrices(
    image_shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the transforms of colours (C, C), of columns (H, H) and of rows (W, W)."""
    channels, height, width = image_shape
    matrices = _colours(channels), cosines(height), cosines(width)
    colours, down, across = (to_device(matrix.to(dtype), device) for matrix in matrices)
    return colours, down, across


def cosines(size: int) -> Tensor:
    """Return the orthonormal matrix of the DCT-II: (size, size), float64, a row for each frequency.

    Example:
        >>> matrix = cosines(5)
        >>> bool((matrix @ matrix.mT - torch.eye(5)).abs().max() < 1e-12)
        True
    """
    points = torch.arange(size, dtype=torch.float64, device="cpu")
    angles = torch.pi / size * points[:, None] * (points + 0.5)
    matrix: Tensor = torch.cos(angles) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _colours(channels: int) -> Tensor:
    """Return the orthonormal matrix of opponent colours, or of grey: (C, C), float64."""
    if channels == 1:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    matrix = torch.tensor(_OPPONENTS, dtype=torch.float64, device="cpu")
    orthonormal: Tensor = matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    return orthonormal
