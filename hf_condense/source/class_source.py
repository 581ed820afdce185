"""A dataset's images, sorted by class, and how batches are drawn from them."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import datasets
import torch
from torch import Tensor

from hf_condense.base.cache import content_key
from hf_condense.base.devices import to_device
from hf_condense.base.memory import free_memory
from hf_condense.base.rng import Key, keyed_generator
from hf_condense.source.chosen import ChosenImages
from hf_condense.source.columns import LabelValue
from hf_condense.source.decode import Size
from hf_condense.source.streamed import StreamedPictures
from hf_condense.source.whitening import Whitening

_BATCH_NUMBERS = 2**25  # of the images of a class that are read at a time
_MOST_COMPARED_BYTES = 2**31  # some seconds
_HELD_OUT_SHARE = 10  # one row in this many of a class is held out
_MOST_HELD_OUT = 1000  # rows in all, but at least one of each class that has two


@dataclass(frozen=True)
class ClassSource:
    """A dataset's images, sorted by class.

    Attributes:
        dataset: The dataset they were read from, without any formatting or transform.
        images: uint8 (N, C, H, W), sorted by class; memory-mapped if they are cached, or on a device. Or what
            stands for them, and reads or decodes pictures when it is indexed.
        labels: Class of every image, an index into `class_names`. int64 (N,), sorted, on the CPU.
        rows: Row number in the dataset of every image. int64 (N,), on the CPU.
        class_names: Names of all classes, including those without images.
        label_values: What the label column holds for each class.
        image_column: Name of the image column.
        label_column: Name of the label column.
        image_size: The (height, width) that the caller asked for, or None.
        mean: Mean of each channel over all pixels, in pixel units (0 black, 1 white). float32 (C,).
        std: Standard deviation of each channel over all pixels, in pixel units; 1 where all pixels are equal.
            float32 (C,).
        content_hash: Hash of pictures, labels and class names; equal for equal content.
        device: Where `at` and `sample` put their results.
        whitening: The map that replaces normalisation, or None.
    """

    dataset: datasets.Dataset
    images: Tensor | ChosenImages | StreamedPictures
    labels: Tensor
    rows: Tensor
    class_names: tuple[str, ...]
    label_values: tuple[LabelValue, ...]
    image_column: str
    label_column: str
    image_size: Size | None
    mean: Tensor
    std: Tensor
    content_hash: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whitening: Whitening | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        _, c, h, w = self.images.shape
        return (c, h, w)

    @cached_property
    def _amounts(self) -> list[int]:
        """The number of images of every class. Draws ask for it again and again, and counting reads all labels."""
        amounts: list[int] = torch.bincount(self.labels, minlength=len(self.class_names)).tolist()
        return amounts

    @cached_property
    def _starts(self) -> list[int]:
        """The position of the first image of every class, and where those of the last class end."""
        return [0, *itertools.accumulate(self._amounts)]

    @property
    def counts(self) -> dict[int, int]:
        """Return the number of images of every class that has images."""
        return {c: n for c, n in enumerate(self._amounts) if n}

    @property
    def classes(self) -> tuple[int, ...]:
        """Return the classes that have images."""
        return tuple(self.counts)

    @property
    def streams(self) -> bool:
        """Whether pictures are decoded whenever they are asked for."""
        return isinstance(self.images, StreamedPictures)

    def positions(self, c: int) -> range:
        """Return the positions of a class's images in `images`."""
        return range(self._starts[c], self._starts[c + 1])

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels to zero mean and unit variance over the source, or whiten them if it has a whitening.

        Args:
            pixels: uint8 in [0, 255] or floats in [0, 1]. (n, C, H, W)

        Returns:
            float32 (n, C, H, W).
        """
        if self.whitening is not None:
            return self.whitening(pixels.float() if pixels.is_floating_point() else pixels.float() / 255)
        scale = 1 / self.std if pixels.is_floating_point() else 1 / (255 * self.std)
        shape = (1, -1, 1, 1)
        numbers = pixels.float()
        scaled = numbers.mul(scale.reshape(shape)) if numbers is pixels else numbers.mul_(scale.reshape(shape))
        return scaled.sub_((self.mean / self.std).reshape(shape))

    def at(self, index: Tensor) -> Tensor:
        """Return the images at some positions (n,), normalised, on the source's device: (n, C, H, W)."""
        pixels: Tensor = self.images[to_device(index, self.images.device)]  # (n, C, H, W)
        return self.normalise(to_device(pixels, self.device))

    def batches(self, c: int) -> Iterator[Tensor]:
        """Yield all images of a class, normalised, on the source's device: batches of at most 1,024 (n, C, H, W)."""
        size = max(1, min(1024, _BATCH_NUMBERS // math.prod(self.image_shape)))
        for positions in torch.tensor(self.positions(c), device="cpu").split(size):
            yield self.at(positions)

    def all_images(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, normalised, on the source's device: batches of at most `size` (n, C, H, W)."""
        for start in range(0, len(self), size):
            yield self.at(torch.arange(start, min(start + size, len(self)), device="cpu"))

    def sample(self, classes: Sequence[int], n: int, *key: Key) -> Tensor:
        """Draw `n` images of each class, without repeats as long as the class has enough.

        A class with fewer images is drawn in whole permutations, one after the other. What is drawn depends on the
        key and the name of the class alone, not on the other classes or on the process.

        Args:
            classes: Classes to draw from.
            n: Images per class, >= 1.
            *key: Address of the draw, for example `(seed, "real", step)`.

        Returns:
            Normalised images, (len(classes), n, C, H, W).
        """
        positions = torch.cat([self.draw(c, n, *key) for c in classes])  # (len(classes) * n,)
        return self.at(positions).reshape(len(classes), n, *self.image_shape)

    def draw(self, c: int, n: int, *key: Key) -> Tensor:
        """Return the positions of the images that `sample` draws of one class, int64 (n,), on the CPU."""
        positions = self.positions(c)
        generator = keyed_generator(*key, self.class_names[c])
        rounds = math.ceil(n / len(positions))
        offsets = torch.cat([torch.randperm(len(positions), generator=generator, device="cpu") for _ in range(rounds)])
        return offsets[:n] + positions.start

    def held_out(self, *key: Key, among: Tensor | None = None) -> Tensor:
        """Choose rows for a decision that neither training nor test rows may make.

        Args:
            *key: Address of the draw.
            among: Whether each image may be chosen, bool (N,); default: all may.

        Returns:
            Positions of a tenth of the images of every class, at least one of a class that has two, and at most 1,000
            in all or one per class. Sorted, int64 (n,), on the CPU.
        """
        classes = self.classes if among is None else self.labels[among].unique()
        most = max(1, _MOST_HELD_OUT // max(1, len(classes)))
        parts = []
        for c, n in self.counts.items():
            count = min(most, max(n // _HELD_OUT_SHARE, int(n > 1)))
            order = self.draw(c, n, *key)
            parts.append((order if among is None else order[among[order]])[:count])
        return torch.cat(parts).sort().values

    def others(self, positions: Tensor) -> Tensor:
        """Return the positions that are not among some: sorted, int64 (n,)."""
        is_left = torch.ones(len(self), dtype=torch.bool)
        is_left[positions] = False
        return is_left.nonzero()[:, 0]

    def count_also_in(self, other: ClassSource) -> int:
        """Return how many of the images have the pixels of one of `other`.

        It is 0 where this would take long: if either would have to be decoded, or `other` has more than 2 GiB.
        """
        if self.streams or other.streams or len(other) * math.prod(other.image_shape) > _MOST_COMPARED_BYTES:
            return 0
        own = Counter(self.digests())
        return sum(own.pop(digest, 0) for digest in other.digests())

    def digests(self) -> Iterator[bytes]:
        """Yield a hash of the pixels of every image."""
        for positions in torch.arange(len(self), device="cpu").split(1024):
            pixels: Tensor = self.images[to_device(positions, self.images.device)]  # (n, C, H, W)
            yield from pixel_digests(pixels)

    def part(self, positions: Tensor, *, decoded: bool = True) -> ClassSource:
        """Return a source of the images at some positions, sorted, int64 (n,). It keeps the constants.

        The images stay where they are, in a mapped file for example.

        Args:
            positions: Positions in `images`.
            decoded: Whether pictures that would be decoded whenever they are asked for are decoded now, and held in
                memory.
        """
        digest = hashlib.blake2b(positions.numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()
        images: Tensor | ChosenImages | StreamedPictures
        if isinstance(self.images, StreamedPictures):
            images = self.images[positions] if decoded else self.images.part(positions)
        else:
            images = ChosenImages(self.images, positions)
        return replace(
            self,
            images=images,
            labels=self.labels[positions],
            rows=self.rows[positions],
            content_hash=content_key(content=self.content_hash, positions=digest),
        )

    def to(self, device: torch.device | str) -> ClassSource:
        """Return a source that hands out tensors on `device`; images that take less than half of it move there."""
        device = torch.device(device)
        images = self.images
        if device.type == "cuda" and isinstance(images, Tensor) and images.numel() < free_memory(device) // 2:
            images = images.to(device)
        whitening = self.whitening and self.whitening.to(device)
        mean, std = self.mean.to(device), self.std.to(device)
        return replace(self, images=images, mean=mean, std=std, device=device, whitening=whitening)


def pixel_digests(images: Tensor) -> Iterator[bytes]:
    """Yield a hash of the pixels of every image, uint8 (n, C, H, W)."""
    for image in images.cpu().contiguous().numpy():
        yield hashlib.blake2b(image, digest_size=16).digest()
