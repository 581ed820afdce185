"""Plan how the work of a step is cut into chunks, by a rule from shapes, device and memory, before the first step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hf_condense.base.devices import CompileOption, compiling_pays

# On a CPU, forward passes are fastest while their activations stay in the cache. Measured on two cores with images of
# 32 x 32 pixels, the best number of images is about 64 at width 32, and 32 at width 128.
_CPU_CACHE_BYTES = 64 * 2**20
_CPU_MOST_IMAGES = 64
# The real images of a chunk are in memory at once. More of them than this save no time on a CPU.
_CPU_REAL_BYTES = 2**30
# Kernels of a GPU may fail on tensors of more than 2^31 elements. The activations of a forward pass are counted as if
# they were one tensor of float32.
_GPU_MOST_BYTES = 4 * 2**31

CUTS = ("keep_graphs", "classes_per_chunk", "images_per_forward")
"""Attributes of a plan that cut a step, in the order in which they are made smaller."""


@dataclass(frozen=True)
class Plan:
    """How the work of a step is cut.

    Attributes:
        classes_per_chunk: Classes whose losses share one graph.
        images_per_forward: Images in one forward pass; 0 stands for all at once.
        compile: Whether forward passes are compiled, if they are differentiated at most once.
        keep_graphs: Whether a step that goes over its chunks twice keeps all graphs of the first pass for the second.
    """

    classes_per_chunk: int
    images_per_forward: int
    compile: bool
    keep_graphs: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    def halved(self, images: int, cuts: Collection[str] = CUTS) -> Plan | None:
        """Return the next smaller plan, or None if nothing can be cut.

        Args:
            images: Images of one class in a forward pass.
            cuts: Attributes that may be made smaller; some of `CUTS`.
        """
        if self.keep_graphs and "keep_graphs" in cuts:
            return replace(self, keep_graphs=False)
        if self.classes_per_chunk > 1 and "classes_per_chunk" in cuts:
            return replace(self, classes_per_chunk=math.ceil(self.classes_per_chunk / 2))
        present = min(self.images_per_forward or images, images)
        if present > 1 and "images_per_forward" in cuts:
            return replace(self, images_per_forward=math.ceil(present / 2))
        return None


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
    decoding_bytes: int = 0,
    real_bytes: int = 0,
    passes: int = 1,
    parameter_bytes: int = 0,
    most_rows: int | None = None,
    compile: CompileOption = "auto",
) -> Plan:
    """Return the plan of a run. A pure function: the same arguments give the same plan everywhere.

    Args:
        num_classes: Classes that are condensed.
        num_processes: Processes that share the classes.
        rows_per_class: Decoded synthetic images per class, whose graph is kept in memory; the largest number if classes
            differ.
        rows_per_step: Real and synthetic images that a step embeds.
        steps: Updates of the images.
        activation_bytes: Bytes that the forward pass of one image keeps.
        batch_statistics: Whether the network normalises over the batch. If so, batches are not cut.
        device: Where the work runs.
        budget: Bytes that a step may use (`memory_budget`). On a CPU, all processes share them.
        cost_in_forwards: Cost of differentiating an image, in memory and in time (`Method.cost_in_forwards`).
        decoding_bytes: Bytes that decoding a row keeps.
        real_bytes: Bytes that the real images of one class take in a step.
        passes: How often a step goes over all its images with graphs that it may keep (`Method.passes`).
        parameter_bytes: Bytes of the network's parameters; each kept graph holds weights and a gradient.
        most_rows: Decoded synthetic images whose graph is kept, of all classes together at most; None: as many as there
            are of every class.
        compile: True, False, or "auto", which compiles on a CPU with g++ and Python's headers when it saves time.
    """
    if batch_statistics:
        return Plan(num_classes, 0, compile=compile is True)
    if device.type == "cpu":
        budget //= num_processes
    bytes_per_row = cost_in_forwards * activation_bytes + decoding_bytes
    share = math.ceil(num_classes / num_processes)
    most_rows = min(share * rows_per_class, most_rows or share * rows_per_class)
    classes_that_fit = budget // max(1, rows_per_class * bytes_per_row + real_bytes)
    if most_rows * bytes_per_row + share * real_bytes <= budget:  # a batch that is smaller than the rows of its classes
        classes_that_fit = share
    classes_that_fit = max(1, classes_that_fit)
    if device.type == "cpu" and real_bytes:
        classes_that_fit = min(classes_that_fit, max(1, _CPU_REAL_BYTES // real_bytes))
    bytes_per_pass = most_rows * bytes_per_row + share * real_bytes + 2 * parameter_bytes
    keeps = 1 < passes <= budget // max(1, bytes_per_pass)
    if device.type == "cpu":
        images = max(1, min(_CPU_MOST_IMAGES, _CPU_CACHE_BYTES // max(1, activation_bytes)))
        pays = compiling_pays(steps * rows_per_step * cost_in_forwards * activation_bytes, device, shapes=2)
        return Plan(min(classes_that_fit, share), images, pays if compile == "auto" else compile, keeps)
    images = min(budget, _GPU_MOST_BYTES) // max(1, activation_bytes)
    images = 0 if images >= rows_per_step else max(1, images)
    return Plan(min(classes_that_fit, share), images, compile is True, keeps)
