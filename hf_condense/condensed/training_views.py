"""A condensed set as training data for plain PyTorch and for the `Trainer` of transformers."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from hf_condense.base.checks import boolean
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset, check_condensed


class TrainingViews(Dataset[dict[str, Tensor]]):
    """The decoded rows of a condensed set with probabilities as labels, one row at a time or in batches.

    If the set has soft labels of views, each access gives a random view of the row with the label of that view. The
    views are drawn from torch's global generator, which `DataLoader` seeds in every worker. Rows are decoded when they
    are asked for, so the set may be large.

    Args:
        small: The set: one that was just made, or that `load_condensed` returned.
        normalise: Whether images are normalised as the recipe says; otherwise they are pixels in [0, 1].
        soft: Whether labels are the soft ones of the set, if it has any. Otherwise they are one-hot, of whole rows.

    Attributes:
        temperature: What networks should divide their logits by before the loss: the temperature of the soft labels, or
            1 for hard labels.
        num_classes: Number K of classes.

    Raises:
        TypeError: If `small` is no `CondensedDataset`, or a switch is neither True nor False.
        ValueError: If the set was made in whitened space, whose images are whitened as a whole.

    Example:
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=2, progress=False)
        >>> loader = torch.utils.data.DataLoader(TrainingViews(small), batch_size=5, shuffle=True)
        >>> batch = next(iter(loader))
        >>> batch["pixel_values"].shape, batch["labels"].shape
        (torch.Size([5, 1, 28, 28]), torch.Size([5, 10]))
    """

    @plain_torch()
    def __init__(self, small: CondensedDataset, *, normalise: bool = True, soft: bool = True) -> None:
        check_condensed("small", small)
        normalise, soft = boolean("normalise", normalise), boolean("soft", soft)
        if small.synthetic.zca_matrix is not None:
            raise ValueError("this set was made in whitened space: train on small.synthetic.decoded() after whitening")
        self._tensors, recipe = small.synthetic, small.recipe
        self._views = self._tensors.view_labels if soft else None
        self._soft_labels = self._tensors.soft_labels if soft else None
        self.temperature = (recipe.temperature or 1.0) if soft and self._tensors.has_soft_labels else 1.0
        self.num_classes = len(recipe.class_names)
        shape = (1, -1, 1, 1)
        self._mean = torch.tensor(recipe.mean if normalise else [0.0]).reshape(shape)
        self._std = torch.tensor(recipe.std if normalise else [1.0]).reshape(shape)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._tensors.num_rows

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return `pixel_values`, float32 (C, H, W), and `labels`, the class probabilities, float32 (K,)."""
        try:
            row = operator.index(row)  # samplers may give integers of NumPy or torch
        except TypeError:
            raise TypeError(
                f"row should be one integer; got {row!r:.80} ({type(row).__name__}); "
                "for several rows take torch.utils.data.Subset or a DataLoader"
            ) from None
        (item,) = self.__getitems__([row])
        return item

    @plain_torch()
    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return several rows, as `DataLoader` asks for a batch."""
        total = len(self)
        for row in rows:
            if not -total <= row < total:
                raise IndexError(f"row should be in {-total}..{total - 1}; got {row}")
        index = torch.as_tensor(rows) % total
        images, labels = self._tensors.decoded(index)
        if self._views is not None:
            numbers = torch.randint(self._views.num_views, (len(index),))
            images, targets = self._views.seen(images, index, numbers, self.temperature)
        elif self._soft_labels is not None:
            targets = (self._soft_labels[index] / self.temperature).softmax(1)
        else:
            targets = F.one_hot(labels, self.num_classes).float()
        images = (images - self._mean) / self._std
        return [{"pixel_values": x, "labels": y} for x, y in zip(images, targets, strict=True)]
