"""RDED: mosaics of the crops of real pictures that a teacher recognises best, with the teacher's soft labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_condense.base.devices import to_device
from hf_condense.base.processes import shared_out
from hf_condense.base.progress import progress_bar
from hf_condense.condensed.decoders import decoder_class
from hf_condense.condensed.views import MOST_CLASSES, MOST_VIEWS, ViewLabels, random_crops
from hf_condense.engine.method import Composer, MethodInfo, Preset
from hf_condense.engine.options import MethodConfig, option
from hf_condense.engine.picture_teacher import TEACHER_SIDE, settle_teacher
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.engine.task import Task
from hf_condense.methods._images import check_two_classes
from hf_condense.networks.teachers import Teacher, resize

if TYPE_CHECKING:
    from hf_condense.engine.run import Run

_PICTURES = 16  # pictures that are cut up at a time
_ROWS = 16  # rows of the set that a process labels at a time
_GATHERED = 2**28  # bytes of chosen crops that stay on the device
# Pixels; from here on an image holds four crops by default. At 32, four crops were far worse than one (measured). At
# exactly 64, which was not measured, the paper's preset differs: the authors take one crop for Tiny ImageNet.
_MOSAIC_SIDE = 64

# What gives options an effect: soft labels, and a teacher that is trained here.
_SOFT = {"soft_labels": ("teacher",)}
_OWN_TEACHER = {"teacher": (None,)}


@dataclass(frozen=True)
class RealisticConfig(MethodConfig):
    """Options of RDED."""

    teacher: str | Teacher | None = option(  # noqa: RUF009 - `option` declares a field
        None,
        "Classifier that scores crops and gives soft labels: a Teacher, or the folder or Hub repository of an image "
        "classifier of transformers; None: the run's network is trained on the source.",
    )
    teacher_size: int | None = option(
        None,
        f"Shorter side of the images on which a teacher is trained, in pixels; None: {TEACHER_SIDE}, or that of the "
        "images if they are smaller. Larger ones cost more.",
        ge=8,
        needs=_OWN_TEACHER,
    )
    teacher_updates: int = option(
        2000, "Updates of the training of a teacher, for at most 300 epochs.", ge=1, tiny=3, needs=_OWN_TEACHER
    )
    mosaic: int | None = option(
        None,
        f"Crops along each side of an image; None: 2 for images of {_MOSAIC_SIDE} pixels or more that are stored as "
        "pixels, else 1.",
        ge=1,
    )
    pictures: int = option(
        300,
        "Random pictures of a class from which crops are taken; at least as many as "
        "there are crops to choose, if the class has them.",
        ge=1,
        tiny=6,
    )
    crops: int = option(5, "Random crops of each picture, of which the best one is kept.", ge=1, tiny=2)
    crop_area: float = option(0.08, "Smallest share of a picture's area that a crop has, in (0, 1].", gt=0, le=1)
    padded: bool = option(
        False,
        "Score a crop in the middle of an empty image of full size, as the authors do; otherwise the crop alone, which "
        "costs less with a teacher that does not resize images.",
    )
    augment: str = option(
        "crop_flip",
        "Augmentation of a teacher's training: families joined by _, or 'none'. Views are mirrored if flip is among "
        "them; leave it out where mirroring changes the meaning of an image, as for digits.",
        role="augment",
    )
    soft_labels: str = option(
        "teacher", "'teacher': store the teacher's labels for views of the images.", choices=("none", "teacher")
    )
    temperature: float = option(20.0, "Temperature of the soft labels in training.", gt=0, needs=_SOFT)
    views: int = option(10, "Random crops of every image that are labelled.", ge=1, le=MOST_VIEWS, tiny=2, needs=_SOFT)
    top_k: int = option(10, "Logits that are stored for each view; the others share what is left.", ge=1, needs=_SOFT)
    view_area: float = option(0.5, "Smallest share of the area of a view, in (0, 1].", gt=0, le=1, needs=_SOFT)


def _values(task: Task) -> dict[str, Any]:
    """Return 8-bit numbers for the forms that store images: the crops have no more."""
    return {"store_dtype": "uint8"} if decoder_class(task.storage or "pixels").stores_images else {}


def _paper(task: Task) -> dict[str, Any]:
    values = {**_values(task), "padded": True}
    if min(task.image_shape[1:]) > _MOSAIC_SIDE:
        return values
    return {**values, "view_area": 1.0, "mosaic": 1}


def _is_large(image_shape: tuple[int, int, int]) -> bool:
    return min(image_shape[1:]) >= _MOSAIC_SIDE


class RealisticDistillation(Composer[RealisticConfig]):
    """Compose images of the crops of real pictures that a teacher recognises best.

    The method looks at random pictures of a class, a few at a time. It takes random crops of each and keeps the one
    with the lowest cross-entropy, then the best of these crops over the class. An image is a mosaic of them.

    References:
        Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
        CVPR 2024 (arXiv:2312.03526), on the score of crops, on mosaics and on relabelling.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="rded",
        title="RDED",
        kind="composed",
        summary="Composes each image of the crops of real pictures that a teacher recognises best, and stores the "
        "teacher's soft labels of views of it.",
        paper="On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm",
        authors="Peng Sun, Bei Shi, Daiwei Yu and Tao Lin",
        venue="CVPR",
        year=2024,
        link="https://arxiv.org/abs/2312.03526",
        cost="the training of a teacher, unless one is given, and a forward pass for each crop; no updates of images",
    )
    Config = RealisticConfig
    streams: ClassVar[bool] = True
    presets: ClassVar[dict[str, Preset]] = {
        "default": Preset("Stores 8 bits per channel, as the real pictures have.", _values),
        "paper": Preset(
            "Crops, views and mosaics as in the authors' code (CVPR 2024): crops are scored in the middle of an empty "
            "image; images of 64 pixels or less are whole crops, whose views are only mirrored. For the rest as there, "
            "pass a teacher that was trained on the whole source, as theirs was, and evaluate with relabel=True: they "
            "label every batch anew. They also shuffle the tiles of a mosaic then, which is left out here.",
            _paper,
        ),
    }

    @property
    def label_temperature(self) -> float | None:
        """Temperature of the soft labels; None for hard labels."""
        return None if self.config.soft_labels == "none" else self.config.temperature

    def label_views(self, num_classes: int) -> tuple[int | None, int | None]:
        """Return how many views have soft labels, and how many logits of each are stored."""
        if self.config.soft_labels == "none":
            return None, None
        if num_classes > MOST_CLASSES:
            raise ValueError(
                f"soft labels of views hold at most {MOST_CLASSES:,} classes; got {num_classes:,}. Pass "
                "soft_labels='none'"
            )
        return self.config.views, min(self.config.top_k, num_classes)

    def compose(self, run: Run) -> SyntheticSet:
        """Return the set. The classes, and then the rows that are labelled, are divided among the processes."""
        config = self.config
        check_two_classes(run, self.info.name)
        teacher, facts = settle_teacher(
            run, config.teacher, size=config.teacher_size, updates=config.teacher_updates, augment=config.augment
        )
        logits_of = teacher.in_order(run.source.class_names)
        score = _padded(logits_of, teacher, run.source.image_shape) if config.padded else logits_of

        def choose(share: range) -> dict[int, Tensor]:
            rows = {}
            with progress_bar(len(share), "Choosing crops", "class", shown=run.shows_progress) as bar:
                for i in share:
                    rows[i] = self.images_of(run, run.classes[i], score)
                    bar.update(1)
            return rows

        rows = shared_out(run.accelerator, len(run.classes), choose)
        images = torch.cat([rows.pop(i) for i in range(len(run.classes))])  # uint8 (rows, C, H, W)
        synthetic = run.start(run.source.normalise(images.to(run.device)))
        synthetic.teacher, synthetic.labeller = facts, logits_of
        if config.soft_labels == "teacher":
            synthetic.view_labels = self._label(run, synthetic, logits_of)
        return synthetic

    def images_of(self, run: Run, c: int, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the images of a class: uint8 (rows, C, H, W).

        Args:
            run: The run.
            c: The class.
            score: Returns logits (n, K) of crops (n, C, h, w) in pixel units.

        References:
            Sun et al., CVPR 2024, on mosaics; the order of the crops is that of the authors' code.
        """
        channels, height, width = run.source.image_shape
        side = self._mosaic(run)
        tile = (math.ceil(height / side), math.ceil(width / side))
        count = run.counts[c]
        crops = self._best_crops(run, c, count * side**2, tile, score)
        # Image j holds the crops j, j + count, j + 2 * count, ..., so that all images are about equally good.
        mosaic = crops.reshape(side, side, count, channels, *tile).permute(2, 3, 0, 4, 1, 5)
        return mosaic.reshape(count, channels, side * tile[0], side * tile[1])[:, :, :height, :width]

    def _mosaic(self, run: Run) -> int:
        if self.config.mosaic is not None:
            return min(self.config.mosaic, *run.source.image_shape[1:])
        return 2 if run.decoder.name == "pixels" and _is_large(run.source.image_shape) else 1

    def _best_crops(
        self, run: Run, c: int, needed: int, tile: tuple[int, int], score: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the crops of a class that the teacher recognises best, the best one first: uint8 (needed, C, h, w).

        Each picture gives one crop, as long as there are enough pictures; otherwise also its second best, and so on.

        References:
            Sun et al., CVPR 2024, on the score of crops; in the authors' code, no picture gives a second one.
        """
        source, name = run.source, run.source.class_names[c]
        positions = source.positions(c)
        generator = run.rng("crops", name)
        order = torch.randperm(len(positions), generator=generator)[: max(self.config.pictures, needed)]
        each = math.ceil(needed / len(order))  # crops that a picture gives
        crops = max(self.config.crops, each)
        boxes = crop_boxes(len(order) * crops, source.image_shape[1:], self.config.crop_area, generator)
        losses, pixels, gathered = [], [], []
        for index, of_pictures in zip(order.split(_PICTURES), boxes.split(_PICTURES * crops), strict=True):
            pictures = to_device(source.images[to_device(index + positions.start, source.images.device)], run.device)
            cut = cut_crops(pictures, of_pictures, tile)  # (n * crops, C, h, w)
            targets = torch.full((len(cut),), c, device=run.device)
            loss = F.cross_entropy(score(cut.float() / 255), targets, reduction="none").reshape(-1, crops)
            best = loss.argsort(dim=1, stable=True)[:, :each]  # (n, each)
            losses.append(loss.gather(1, best))
            kept = best + crops * torch.arange(len(best), device=best.device)[:, None]
            pixels.append(cut[kept])
            if sum(part.nbytes for part in pixels) > _GATHERED:  # those of many large pictures could fill a GPU
                gathered.append(torch.cat(pixels).cpu())
                pixels = []
        gathered += [torch.cat(pixels).cpu()] if pixels else []
        # (pictures, each), (pictures, each, C, h, w)
        values, candidates = torch.cat(losses).cpu(), torch.cat(gathered)
        chosen = [candidates[values[:, i].argsort(dim=0, stable=True), i] for i in range(each)]
        return torch.cat(chosen)[:needed]

    def _label(self, run: Run, synthetic: SyntheticSet, logits_of: Callable[[Tensor], Tensor]) -> ViewLabels:
        """Return the teacher's labels of random views of every row.

        References:
            Sun et al., CVPR 2024, on relabelling; the authors' code labels each batch while a network trains on it.
        """
        config, size = self.config, run.source.image_shape[1:]
        rows = len(synthetic.row_labels)
        views, top = self.label_views(run.num_classes)
        assert views is not None
        assert top is not None
        crops = random_crops(rows * views, size, config.view_area, run.rng("views"), mirror="flip" in config.augment)
        crops = crops.reshape(rows, views, -1)
        parts = torch.arange(rows).split(_ROWS)

        def label(share: range) -> dict[int, ViewLabels]:
            labels = {}
            with progress_bar(len(share), "Labelling", "batch", shown=run.shows_progress) as bar:
                for number in share:
                    index = parts[number]
                    with torch.no_grad():
                        rows_of_part = synthetic.at(to_device(index, run.device))[0]
                        images = synthetic.decoder.frame.to_pixels(rows_of_part).clamp(0, 1)
                    labels[number] = ViewLabels.of_images(images, logits_of, crops[index], top)
                    bar.update(1)
            return labels

        labels = shared_out(run.accelerator, len(parts), label)
        return ViewLabels.joined([labels[number] for number in range(len(parts))])


def crop_boxes(n: int, size: tuple[int, int], least_area: float, generator: torch.Generator) -> Tensor:
    """Draw crops of pictures that have the shape of the whole picture: top, left, height, width. int64 (n, 4).

    Args:
        n: Number of crops.
        size: Height and width of the pictures.
        least_area: Smallest share of the area; the share is uniform from there to 1.
        generator: Generator of the draws.
    """
    sides = torch.tensor(size)
    scale = torch.empty(n, 1).uniform_(least_area, 1, generator=generator).sqrt()
    lengths = (scale * sides).round().long().clamp(min=1)
    places = (torch.rand(n, 2, generator=generator) * (sides - lengths + 1)).long()
    return torch.cat([places, lengths], 1)


def cut_crops(pictures: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut crops out of pictures and bring them to one size (bilinear, antialiased).

    Args:
        pictures: uint8 (n, C, H, W).
        boxes: Top, left, height and width of the crops of the first picture, then those of the second, and so on.
            int64 (n * crops, 4).
        size: Height and width of the result.

    Returns:
        uint8 (n * crops, C, h, w).
    """
    each = len(boxes) // len(pictures)
    crops = []
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = pictures[i // each, :, top : top + height, left : left + width]
        if (height, width) != size:
            crop = resize(crop[None].float(), size)[0].round_().clamp_(0, 255).to(torch.uint8)
        crops.append(crop)
    return torch.stack(crops)


def _padded(
    logits_of: Callable[[Tensor], Tensor], teacher: Teacher, shape: tuple[int, int, int]
) -> Callable[[Tensor], Tensor]:
    """Return a function that scores crops in the middle of an image that is empty, in the teacher's units."""
    channels, height, width = shape

    def score(crops: Tensor) -> Tensor:
        mean = teacher.mean if len(teacher.mean) in (1, channels) else teacher.mean.mean(0, keepdim=True)
        canvas = mean.to(crops).reshape(1, -1, 1, 1).repeat(len(crops), channels // len(mean), height, width)
        top, left = (height - crops.shape[2]) // 2, (width - crops.shape[3]) // 2
        canvas[:, :, top : top + crops.shape[2], left : left + crops.shape[3]] = crops
        return logits_of(canvas)

    return score
