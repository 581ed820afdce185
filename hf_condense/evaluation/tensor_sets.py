"""Sets that other programs made: tensors of images and labels, in memory or in a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import safetensors
import torch
from torch import Tensor

from hf_condense.base.paths import local_path
from hf_condense.condensed.files.names import FACTS

TensorSet = tuple[Tensor, Tensor]  # images and labels

_PICKLES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})
_LOWEST, _HIGHEST = -1.0, 2.0  # of pixels: sets that were learned without a limit go beyond [0, 1], but not far


def is_tensor_file(path: str | Path) -> bool:
    """Return whether a name is that of a file of tensors, also of a kind that `read_tensor_set` refuses."""
    return Path(path).suffix.lower() in {".safetensors", *_PICKLES}


def _refuse_pickle(file: Path) -> None:
    """Refuse a file that runs the code in it when it is opened, and say how to convert it."""
    if file.suffix.lower() in _PICKLES:
        raise ValueError(
            f"{file} is a pickle, which can run code when it is opened, so it is not read; convert it once in Python, "
            f"where weights_only lets in nothing but tensors: data = torch.load({file.name!r}, weights_only=True), "
            "then "
            'safetensors.torch.save_file({"images": images, "labels": labels}, '
            f'"{file.stem}.safetensors") with the images (N, C, H, W) in data, 0 black and 1 white, and their classes '
            "(N,)"
        )


def read_tensor_set(path: str | Path) -> TensorSet:
    """Read the tensors `images` and `labels` of a safetensors file; `evaluate` takes them as they are.

    Args:
        path: The file. Other tensors in it are ignored.

    Returns:
        Both, as they are stored. `check_tensor_set` says what they should be.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a safetensors file, or lacks one of them. Pickles are never opened.
    """
    file = local_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} (looked for {file.absolute()})")
    _refuse_pickle(file)
    if (file.parent / FACTS).is_file():
        raise ValueError(f"{file} belongs to a condensed set, whose recipe says how to read it; pass {file.parent}")
    try:
        with safetensors.safe_open(file, framework="pt") as tensors:
            names = sorted(tensors.keys())
            if missing := sorted({"images", "labels"} - {*names}):
                raise ValueError(
                    f"{file} should hold the tensors images and labels; {' and '.join(missing)} are missing, it holds "
                    f"{', '.join(names) or 'none'}"
                )
            return tensors.get_tensor("images"), tensors.get_tensor("labels")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def check_tensor_set(train: TensorSet, num_classes: int) -> TensorSet:
    """Return images in pixel units, float32 (N, C, H, W), and classes, int64 (N,), or logits, float32 (N, K).

    Args:
        train: Images in pixel units (0 black, 1 white), or uint8, (N, C, H, W) with 1 or 3 channels; and the class of
            each image, integers (N,), or soft labels as logits, floats (N, K).
        num_classes: Number K of classes.

    Raises:
        TypeError: If one of them is no tensor.
        ValueError: If shapes, values or types do not fit.
    """
    if len(train) != 2 or not all(isinstance(tensor, Tensor) for tensor in train):
        kinds = ", ".join(type(value).__name__ for value in train)
        raise TypeError(f"train should be a dataset, or two tensors (images, labels); got ({kinds})")
    images, labels = (tensor.detach().cpu() for tensor in train)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images should be (N, C, H, W) with 1 or 3 channels; got {tuple(images.shape)}")
    return _pixels(images), _labels(labels, len(images), num_classes)


def _pixels(images: Tensor) -> Tensor:
    """Check the values of images."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images should be floats in [0, 1], or uint8; got {images.dtype}")
    images = images.float()
    if not images.isfinite().all():
        raise ValueError("images should be finite; got NaN or infinite pixels")
    low, high = images.aminmax()
    if -1.01 <= low <= -0.99 and high <= 1.01:
        raise ValueError(
            f"images should be in pixel units, 0 black and 1 white; got values from {low:.3g} to {high:.3g}, which "
            "look like [-1, 1]; pass (images + 1) / 2"
        )
    if low < _LOWEST or high > _HIGHEST:
        raise ValueError(
            f"images should be in pixel units, 0 black and 1 white; got values from {low:.3g} to {high:.3g}; if they "
            "are normalised, undo it: images * std + mean, by channel; if they go up to 255, divide them by 255"
        )
    return images


def _labels(labels: Tensor, rows: int, num_classes: int) -> Tensor:
    """Check the classes or the soft labels of images."""
    if labels.is_floating_point():
        if labels.shape != (rows, num_classes) or not labels.isfinite().all():
            raise ValueError(
                f"soft labels should be finite logits ({rows}, {num_classes}), a row for each image and a column for "
                f"each class; got {tuple(labels.shape)}"
            )
        numbers = labels.float()
        if numbers.min() >= 0 and torch.allclose(numbers.sum(1), torch.ones(rows), atol=1e-3):
            raise ValueError(
                "soft labels should be logits; got probabilities, which add up to 1; pass their logarithms, "
                "labels.clamp(min=1e-6).log(), or for one-hot rows the classes, labels.argmax(1)"
            )
        return numbers
    if labels.dtype == torch.bool or labels.shape != (rows,):
        raise ValueError(
            f"labels should be integers ({rows},), the class of each image, or logits ({rows}, {num_classes}); got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels should be in 0..{num_classes - 1}, in the order of the classes of source or test; got "
            f"{int(labels.min())}..{int(labels.max())}"
        )
    return labels
