"""`method="auto"`: choose a method and its settings for a task and a budget, by a rule from shapes, and say why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_condense.base.checks import number
from hf_condense.condensed.decoders import decoder_class
from hf_condense.engine.forms import best_form
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkSpec, activation_bytes, network_factory

CANDIDATES = ("m3d",)
"""Methods that `choose` may pick. An option that is passed with `method="auto"` must be an option of one of them."""

# A step processes about this many bytes of activations per second, forward and backward: with compiled code on one CPU
# core (measured), on the GPU of a laptop (a guess), and on one of a server, of 2020 or later (a guess). These constants
# meet a budget within a factor of about two. They are fixed, not measured at run time, so that the same call gives the
# same result.
_BYTES_PER_SECOND = {"cpu": 1.5e9, "mps": 3e10, "other": 2e11}
# What a run costs beside that, in seconds of one core: a step with next to no pixels, and everything but the steps.
_SECONDS_PER_STEP = 0.012
_SECONDS_OF_SETUP = 1.0
_MOST_STEPS, _FEWEST_STEPS = 10_000, 10
_DEFAULT_BUDGET = 15.0  # minutes


@dataclass(frozen=True)
class Choice:
    """What `method="auto"` decided.

    Attributes:
        method: Canonical name.
        preset: Preset whose values apply where neither the caller nor `values` says otherwise.
        values: Options and settings of the run. They apply where the caller left them open.
        reason: Why these were chosen, as one line for the log.
    """

    method: str
    preset: str
    values: dict[str, Any]
    reason: str


def choose(
    task: Task, budget: float | None, network: NetworkSpec | None, *, device: torch.device, cores: int
) -> Choice:
    """Choose the method and its settings.

    Args:
        task: ipc, classes and image shape.
        budget: Minutes that the condensation may take, > 0. None means 15.
        network: The caller's network, or None.
        device: Where the method runs.
        cores: CPU cores that may be used, >= 1.

    Raises:
        TypeError: If the budget is not a number.
        ValueError: If the budget is not positive.
    """
    minutes = number("budget", _DEFAULT_BUDGET if budget is None else budget)
    if not 0 < minutes < math.inf:
        raise ValueError(f"budget should be a positive number of minutes; got {budget!r}")
    spec = network or ("convnet-w32" if device.type == "cpu" else "convnet")
    storage, expand = best_form(task)
    rows = decoder_class(storage)(task.image_shape, expand).rows(task.ipc)
    rate = _BYTES_PER_SECOND.get(device.type, _BYTES_PER_SECOND["other"]) * (cores if device.type == "cpu" else 1)
    batch, ipm = 128, 5
    # Real rows are embedded once in `ipm` steps. A backward pass costs about two forward passes.
    forwards = task.num_classes * (batch / ipm + 3 * rows)
    seconds_per_step = _SECONDS_PER_STEP + forwards * _bytes_of_forward(spec, task) / rate
    affordable = (60 * minutes - _SECONDS_OF_SETUP) / seconds_per_step
    steps = int(min(_MOST_STEPS, max(_FEWEST_STEPS, affordable)))
    values = {
        "network": spec,
        "storage": storage,
        "expand": expand,
        "steps": steps,
        "batch_real": batch,
        "ipm": ipm,
    }
    form = (
        "whole images (other forms were not measured for so many images, or for such small ones)"
        if storage == "pixels"
        else f"storage {storage!r} with {expand} rows in the space of one image (it gained most in our measurements)"
    )
    reason = f"m3d, {form}, {steps:,} steps (about {minutes:g} minutes on this kind of device)"
    return Choice("m3d", "quick", values, reason)


def _bytes_of_forward(spec: NetworkSpec, task: Task) -> int:
    """Return the bytes of activations that the forward pass of one image keeps."""
    channels, height, width = task.image_shape
    factory = network_factory(spec, channels=channels, image_size=(height, width), num_classes=max(2, task.num_classes))
    return activation_bytes(factory.build("auto"), task.image_shape)
