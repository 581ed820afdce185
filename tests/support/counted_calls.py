"""What torch is asked to compute in a block: operations, and the sizes of their results."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CountedCalls(TorchDispatchMode):
    """Counts operations by name, and the new tensors that they return by number of values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.names[name] += 1
        if isinstance(out, Tensor) and not func.is_view and not name.endswith("_"):
            self.sizes[out.numel()] += 1
        return out
