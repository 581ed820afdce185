"""How the work of a step is cut into chunks, by a rule from shapes, device and memory, before the first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hf_condense.base.devices import CompileOption, compiling_pays

# On a CPU, activations that stay in cache win: about 64 images at width 32, 32 at width 128 (two cores, 32 x 32).
_CPU_CACHE_BYTES = 64 * 2**20
_CPU_MOST_IMAGES = 64


@dataclass(frozen=True)
class Plan:
    """How the work of a step is cut.

    Attributes:
        classes_per_chunk: Classes whose losses share one graph.
        images_per_forward: Images in one forward pass; 0 means all at once.
        compile: Whether forwards are compiled, those that are differentiated no more than once.
    """

    classes_per_chunk: int
    images_per_forward: int
    compile: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def make_plan(
    *,
    num_classes: int,
    num_processes: int,
    rows_per_class: int,
    rows_per_step: int,
    steps: int,
    activation_bytes: int,
    batch_statistics: bool,
    device: torch.device,
    budget: int,
    cost_in_forwards: int = 1,
    compile: CompileOption = "auto",
) -> Plan:
    """Cut the work of a step. A pure function: the same arguments give the same plan everywhere.

    Args:
        num_classes: Classes that are condensed.
        num_processes: Processes that share the classes.
        rows_per_class: Decoded synthetic images per class, whose graph is kept (the largest, if classes differ).
        rows_per_step: Real and synthetic images embedded in a step.
        steps: Updates of the images.
        activation_bytes: Bytes that one image's forward keeps.
        batch_statistics: Whether the network normalises over the batch; then nothing may be cut.
        device: Where the work runs.
        budget: Bytes that a step may use (`memory_budget`); on a CPU, all processes together.
        cost_in_forwards: What differentiating an image costs, in memory and in time (`Method.cost_in_forwards`).
        compile: True, False, or "auto": on a CPU, when it pays for itself and a C++ compiler is there.
    """
    if batch_statistics:
        return Plan(num_classes, 0, compile=compile is True)
    if device.type == "cpu":
        budget //= num_processes
    fits = max(1, budget // max(1, rows_per_class * cost_in_forwards * activation_bytes))
    share = -(-num_classes // num_processes)
    if device.type == "cpu":
        images = max(1, min(_CPU_MOST_IMAGES, _CPU_CACHE_BYTES // max(1, activation_bytes)))
        pays = compiling_pays(steps * rows_per_step * cost_in_forwards * activation_bytes, device, shapes=2)
        return Plan(min(fits, share), images, compile=pays if compile == "auto" else compile)
    images = budget // max(1, activation_bytes)
    return Plan(min(fits, share), 0 if images >= rows_per_step else max(1, images), compile=compile is True)
