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


@dataclass(frozen=True)
class Workload:
    """What a step of a run works on, and what that costs.

    Attributes:
        class_rows: Decoded synthetic rows of every class that a step differentiates at most (`Method.rows_per_step`).
        most_rows: The same of all classes together (`Method.most_rows`), at most the sum.
        images_per_step: Real and synthetic images that a step embeds.
        num_processes: Processes that share the classes.
        activation_bytes: Bytes that the forward pass of one image keeps.
        batch_statistics: Whether the network normalises over the batch. If so, batches are not cut.
        cost_in_forwards: Cost of differentiating an image, in memory and in time (`Method.cost_in_forwards`).
        decoding_bytes: Bytes that decoding a row keeps.
        real_bytes: Bytes that the real images of one class take in a step.
        gradient_bytes: Bytes of the gradients of one class that a chunk keeps (`Method.gradients_per_class`).
        parameter_bytes: Bytes of the network's parameters; each kept graph holds weights and a gradient.
        passes: How often a step goes over all its images with graphs that it may keep (`Method.passes`).
        cuts: Attributes of a plan that can cut the step (`Method.cuts`).
    """

    class_rows: tuple[int, ...]
    most_rows: int
    images_per_step: int
    num_processes: int
    activation_bytes: int
    batch_statistics: bool
    cost_in_forwards: int = 1
    decoding_bytes: int = 0
    real_bytes: int = 0
    gradient_bytes: int = 0
    parameter_bytes: int = 0
    passes: int = 1
    cuts: tuple[str, ...] = CUTS

    @property
    def classes_per_process(self) -> int:
        """Classes of a process, at most."""
        return math.ceil(len(self.class_rows) / self.num_processes)

    @property
    def row_bytes(self) -> int:
        """Bytes that the graph of a synthetic row keeps."""
        return self.cost_in_forwards * self.activation_bytes + self.decoding_bytes

    @property
    def class_bytes(self) -> int:
        """Bytes of a class in a chunk, whatever rows it has."""
        return self.real_bytes + self.gradient_bytes

    def step_bytes(self, plan: Plan) -> int:
        """Return about how many bytes a step keeps: graphs, real images and gradients of a chunk, or of all classes."""
        keeps_all = plan.keep_graphs or not self.cuts
        rows = sorted(self.class_rows)[-(self.classes_per_process if keeps_all else plan.classes_per_chunk) :]
        graph = min(sum(rows), self.most_rows) * self.row_bytes
        by_class = len(rows) * self.class_bytes
        return self.passes * (graph + 2 * self.parameter_bytes) + by_class if keeps_all else graph + by_class


def make_plan(
    workload: Workload, *, steps: int, device: torch.device, budget: int, compile: CompileOption = "auto"
) -> Plan:
    """Return the plan of a run. A pure function: the same arguments give the same plan everywhere.

    Args:
        workload: What a step works on.
        steps: Updates of the images.
        device: Where the work runs.
        budget: Bytes that a step may use (`memory_budget`). On a CPU, all processes share them.
        compile: True, False, or "auto", which compiles on a CPU with g++ and Python's headers when it saves time.
    """
    if workload.batch_statistics:
        return Plan(len(workload.class_rows), 0, compile=compile is True)
    if device.type == "cpu":
        budget //= workload.num_processes
    share, largest_class_rows = workload.classes_per_process, max(workload.class_rows)
    row_bytes, class_bytes = workload.row_bytes, workload.class_bytes
    most_rows = min(share * largest_class_rows, workload.most_rows)
    whole = most_rows * row_bytes + share * class_bytes
    # A batch can be smaller than the rows of its classes.
    fits = share if whole <= budget else budget // max(1, largest_class_rows * row_bytes + class_bytes)
    most_classes = max(1, min(share, fits))
    if device.type == "cpu" and workload.real_bytes:
        most_classes = min(most_classes, max(1, _CPU_REAL_BYTES // workload.real_bytes))
    classes = _even_chunk(most_classes, workload)
    passes = workload.passes if "keep_graphs" in workload.cuts else 1
    keeps = 1 < passes <= budget // max(1, whole + 2 * workload.parameter_bytes)
    activation_bytes, images_per_step = workload.activation_bytes, workload.images_per_step
    if device.type == "cpu":
        images = max(1, min(_CPU_MOST_IMAGES, _CPU_CACHE_BYTES // max(1, activation_bytes)))
        work = steps * images_per_step * workload.cost_in_forwards * activation_bytes
        pays = compiling_pays(work, device, shapes=2)
        return Plan(classes, images, pays if compile == "auto" else compile, keeps)
    images = min(budget, _GPU_MOST_BYTES) // max(1, activation_bytes)
    images = 0 if images >= images_per_step else max(1, images)
    return Plan(classes, images, compile is True, keeps)


def _even_chunk(most: int, workload: Workload) -> int:
    """Return how many classes to take together, at most `most`: about equal chunks, if the busiest process gains."""

    def busiest(size: int) -> int:
        """Return the classes of the process that has most, which is the first one: chunks are dealt out in turn."""
        classes = len(workload.class_rows)
        return sum(min(size, classes - start) for start in range(0, classes, size * workload.num_processes))

    share = workload.classes_per_process
    even = math.ceil(share / math.ceil(share / most))
    return even if busiest(even) <= busiest(most) else most
