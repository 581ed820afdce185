"""Classifiers of the user's own that give soft labels: what images they expect, and what their classes are called."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_condense.base.checks import integer, listed
from hf_condense.base.devices import to_device
from hf_condense.base.memory import is_out_of_memory

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 64  # images in one forward pass
_MOST_NAMES = 12  # of each list in a message
_NAME_LOGITS = "Give the teacher the names of its classes in the order of its logits: Teacher(predict, classes=[...])"
_LEAVE_OUT_NAMES = (
    "If the dataset has no rows of the unknown classes, leave these names out of the ClassLabel: "
    "names = ds.features['label'].int2str(ds['label'][:]); "
    "ds = ds.remove_columns('label').add_column('label', names).class_encode_column('label')"
)


class Teacher:
    """A trained classifier, with the names of its classes. It scores pictures and gives soft labels.

    Its classes are matched with those of a dataset by name, never by number. It may know more classes than the dataset.

    Attributes:
        predict: Turns normalised images (n, C, H, W) into logits (n, number of classes).
        classes: Names of the classes, in the order of the logits.
        name: Name of the classifier, for recipes and cards.
        mean: Mean of the normalisation that it expects, per channel, for pixels in [0, 1].
        std: Standard deviation of that normalisation, per channel.
        image_size: The (height, width) that images are resized to for it, or None if it takes any size.

    Example:
        >>> import torch
        >>> teacher = Teacher(lambda images: images.mean((2, 3)), ["red", "green", "blue"])
        >>> teacher.logits(torch.eye(3).reshape(3, 3, 1, 1)).argmax(1)
        tensor([0, 1, 2])
        >>> teacher.in_order(["blue", "red"])(torch.eye(3).reshape(3, 3, 1, 1))[0]
        tensor([0., 1.])
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        classes: Iterable[str],
        *,
        name: str | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Wrap a classifier.

        Args:
            predict: A module, or any function, from normalised images (n, C, H, W) to logits (n, number of classes). A
                module is put into evaluation mode and moved to the device of the images. The output may also be an
                object with an attribute `logits`, as that of a model of `transformers`.
            classes: Name of the class of every logit, in their order.
            name: Name for recipes and cards. Default: that of the class or the function.
            mean: Mean of the normalisation that it expects, for pixels in [0, 1]: one number, or one per channel.
            std: Standard deviation of that normalisation, > 0.
            image_size: Side, or (height, width), that it needs. Default: it takes images of any size.

        Raises:
            TypeError: If `predict` cannot be called, or `classes` is no list of names.
            ValueError: If a name of a class comes twice, a standard deviation is not positive, or the size is neither
                a side nor (height, width).
        """
        if not callable(predict):
            raise TypeError(
                f"a teacher should be a function or a module; got {predict!r:.80} ({type(predict).__name__})"
            )
        self.predict = predict.eval() if isinstance(predict, nn.Module) else predict
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise TypeError(
                f"classes should be the names of a teacher's classes, a list of text; got {classes!r:.80} "
                f"({type(classes).__name__})"
            )
        self.classes = tuple(map(str, classes))
        if len(set(self.classes)) < len(self.classes) or not self.classes:
            raise ValueError(f"the classes of a teacher should have different names; got {list(self.classes)!r:.200}")
        self.name = str(name or getattr(predict, "__name__", type(predict).__name__))
        self.mean, self.std = (torch.atleast_1d(torch.tensor(value, dtype=torch.float32)) for value in (mean, std))
        if not bool((self.std > 0).all()):
            raise ValueError(f"std of a teacher should be positive; got {std!r}")
        size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
        if len(size) != 2:
            raise ValueError(f"image_size should be a side or (height, width); got {image_size!r}")
        self.image_size = None if image_size is None else tuple(integer("image_size", side, least=1) for side in size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # it may be large, and it does not change

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, {len(self.classes)} classes)"

    @classmethod
    def from_torchvision(
        cls, name: str, weights: str | Path, classes: Iterable[str], *, image_size: int | None = None
    ) -> Teacher:
        """Return a network of torchvision with weights from a file, normalised as for ImageNet.

        Args:
            name: A name in `torchvision.models.list_models()`, such as `"resnet18"`.
            weights: File of its state dict: `.safetensors`, or what `torch.save` wrote.
            classes: Name of the class of every logit, in their order.
            image_size: Side that images are resized to. Default: their own size.

        Raises:
            ValueError: If there is no such network, or the weights are those of another one.
        """
        from torchvision import models

        classes = tuple(classes)
        net = models.get_model(name, weights=None, num_classes=len(classes))
        _load_weights(net, Path(weights), name)
        return cls(net, classes, name=name, mean=_IMAGENET_MEAN, std=_IMAGENET_STD, image_size=image_size)

    @classmethod
    def from_timm(cls, name: str, weights: str | Path, classes: Iterable[str]) -> Teacher:
        """Return a network of timm with weights from a file, with the normalisation and the size that timm gives it.

        Args:
            name: A name in `timm.list_models()`.
            weights: File of its state dict: `.safetensors`, or what `torch.save` wrote.
            classes: Name of the class of every logit, in their order.

        Raises:
            ImportError: If timm is not installed.
            ValueError: If the weights are those of another network.
        """
        import timm

        classes = tuple(classes)
        net = timm.create_model(name, pretrained=False, num_classes=len(classes))
        _load_weights(net, Path(weights), name)
        facts = timm.data.resolve_model_data_config(net)
        size: tuple[int, int] = tuple(facts["input_size"][1:])
        return cls(net, classes, name=name, mean=facts["mean"], std=facts["std"], image_size=size)

    @classmethod
    def from_transformers(cls, path: str | Path, *, name: str | None = None) -> Teacher:
        """Return an image classifier of `transformers`; its config names its classes.

        Args:
            path: What `from_pretrained` of `transformers` takes: a folder, or a repository.
            name: Name for recipes and cards. Default: the last part of the path.

        Raises:
            ImportError: If transformers is not installed.
            OSError: If there is no such model, or it cannot be read.
            ValueError: If it is no image classifier, or its processor does to pictures what a teacher does not, such as
                another order of channels.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        wanted = (
            "a teacher by name should be a folder, or a repository of the Hub, that holds an image classifier of "
            f"transformers; got {str(path)!r}"
        )
        try:
            model = AutoModelForImageClassification.from_pretrained(path)
            processor = AutoImageProcessor.from_pretrained(path).to_dict()
        except OSError as error:
            raise OSError(f"{wanted}, which cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(f"{wanted}: {error}") from error
        _check_processor(processor, str(path))
        crops = processor.get("do_center_crop", True) and processor.get("crop_size")
        size = processor["crop_size"] if crops else processor.get("size") or {}
        side = size.get("shortest_edge")
        image_size = (int(size["height"]), int(size["width"])) if "height" in size else side
        normalises = processor.get("do_normalize", True)
        return cls(
            model,
            [model.config.id2label[i] for i in range(model.config.num_labels)],
            name=name or Path(path).name,
            mean=processor.get("image_mean", 0.0) if normalises else 0.0,
            std=processor.get("image_std", 1.0) if normalises else 1.0,
            image_size=image_size,
        )

    @property
    def content_hash(self) -> str:
        """Hash of the weights; of the names alone if the classifier is a function."""
        weights = self.predict.state_dict() if isinstance(self.predict, nn.Module) else {}
        return weights_hash([weights], self.name, *self.classes)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of images.

        Args:
            pixels: Images in pixel units, 0 for black and 1 for white. Grey ones are repeated for a classifier of
                colour pictures. (n, C, H, W).

        Returns:
            float32 (n, number of classes), on the device of the images.

        Raises:
            ValueError: If the classifier returns something else than one logit per class.
        """
        if isinstance(self.predict, nn.Module) and _devices(self.predict) != {pixels.device}:
            self.predict.to(pixels.device)
        return torch.cat([self._logits(part) for part in pixels.split(_BATCH)])

    def _logits(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] == 1 and len(self.mean) > 1:
            pixels = pixels.expand(-1, len(self.mean), -1, -1)
        if self.image_size is not None and tuple(pixels.shape[2:]) != self.image_size:
            pixels = resize(pixels, self.image_size)
        mean, std = (to_device(value, pixels.device).reshape(1, -1, 1, 1) for value in (self.mean, self.std))
        try:
            output = self.predict((pixels - mean) / std)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"the teacher {self.name!r} cannot take images of shape {tuple(pixels.shape[1:])}: {error}. If it "
                "needs another size, pass image_size= to Teacher"
            ) from error
        logits = getattr(output, "logits", output)
        expected = (len(pixels), len(self.classes))
        if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the teacher {self.name!r} has {len(self.classes)} classes, so it should return logits {expected}; it "
                f"returned {shape}"
            )
        return logits.float()

    def in_order(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Return a function from pixels (n, C, H, W) to logits (n, K) in the order of a dataset's class names.

        Names are compared without regard to case, and `_`, `-` and spaces are the same.

        Args:
            names: Class names of the dataset, in label order.

        Raises:
            ValueError: If the teacher lacks one of them; the message shows both lists.
        """
        columns = self._columns(names)
        if missing := [name for name, column in zip(names, columns, strict=True) if column < 0]:
            names_are_right = set(range(len(self.classes))) <= set(columns)  # the dataset has them all, and more
            advice = _LEAVE_OUT_NAMES if names_are_right else _NAME_LOGITS
            raise ValueError(
                f"the classes of the teacher {self.name!r} are not those of the dataset: it does not know "
                f"{listed(missing, _MOST_NAMES)}. Classes are matched by name.\n{_side_by_side(names, self.classes)}\n"
                f"{advice}"
            )
        chosen = torch.tensor(columns)
        if columns == list(range(len(self.classes))):
            return self.logits
        return lambda pixels: self.logits(pixels)[:, to_device(chosen, pixels.device)]

    def _columns(self, names: Sequence[str]) -> list[int]:
        """Return which logit is that of each name, -1 for a name that is not known."""
        exact = {name: i for i, name in enumerate(self.classes)}
        alike = {_plain(name): i for name, i in exact.items()}
        if len(alike) < len(exact):  # some of its own names are alike, so they must be the same to the letter
            alike = {}
        columns = [exact.get(name, -1) for name in names]
        for i, name in enumerate(names):
            if columns[i] < 0 and (column := alike.get(_plain(name), -1)) not in columns:
                columns[i] = column
        return columns


def resize(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return images (n, C, H, W) in another height and width (bilinear, antialiased where they shrink)."""
    height, width = size
    shrinks = height < pixels.shape[2] or width < pixels.shape[3]
    return F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=shrinks)


def weights_hash(weights: Iterable[dict[str, Tensor]], *names: str) -> str:
    """Return a hash of the tensors of some networks, and of some texts."""
    digest = hashlib.blake2b(digest_size=16)
    for text in names:
        digest.update(text.encode())
    for tensors in weights:
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_infinite(name: str, logits: Tensor) -> None:
    """Raise `ValueError` if logits of a teacher are not finite: no network can be trained with them."""
    if not bool(logits.isfinite().all()):
        raise ValueError(
            f"the teacher {name!r} gives logits that are NaN or infinite; pass one whose training did not diverge, and "
            "that takes images of this kind"
        )


def _check_processor(processor: dict[str, Any], path: str) -> None:
    """Raise `ValueError` if a processor of transformers does more than resize, crop and normalise pixels in [0, 1]."""
    other = {name: processor.get(name) for name in ("do_flip_channel_order", "include_top", "rescale_offset")}
    other = {name: value for name, value in other.items() if value}
    if processor.get("do_rescale", True) and not math.isclose(processor.get("rescale_factor", 1 / 255), 1 / 255):
        other["rescale_factor"] = processor["rescale_factor"]
    if not processor.get("do_rescale", True):
        other["do_rescale"] = False
    if other:
        listed = ", ".join(f"{name}={value!r}" for name, value in other.items())
        raise ValueError(
            f"the processor of {path!r} has {listed}, which Teacher.from_transformers does not do; pass a function "
            "that does: Teacher(predict, classes)"
        )


def _load_weights(net: nn.Module, file: Path, name: str) -> None:
    """Load a state dict from a file, without running code from it."""
    if file.suffix == ".safetensors":
        import safetensors.torch

        state: dict[str, Tensor] = safetensors.torch.load_file(file)
    else:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{file} is not a file of weights alone: it is damaged, or holds other objects, which are not read "
                f"because that may run code; save the state dict of the network: {error!s:.200}"
            ) from None
        if isinstance(state, dict):
            state = state.get("state_dict", state)  # type: ignore[assignment]  # as training scripts save it
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{file} does not hold the weights of {name!r}: {error!s:.400}") from None


def _devices(net: nn.Module) -> set[torch.device]:
    """Return where the tensors of a network are. To ask takes half the time of moving them where they are."""
    return {tensor.device for tensor in itertools.chain(net.parameters(), net.buffers())}


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _side_by_side(names: Sequence[str], others: Sequence[str]) -> str:
    """Return two lists of class names, one pair in a line."""
    most = min(_MOST_NAMES, max(len(names), len(others)))
    left = [str(name) for name in names[:most]] + [""] * (most - len(names))
    right = [str(name) for name in others[:most]] + [""] * (most - len(others))
    width = max(map(len, ["dataset", *left]))
    rows = [f"{a:<{width}} | {b}" for a, b in zip(["dataset", *left], ["teacher", *right], strict=True)]
    return "\n".join([*rows, "..."] if most < max(len(names), len(others)) else rows)
