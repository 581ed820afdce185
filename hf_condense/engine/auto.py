"""`method="auto"`: which method and settings suit a task and a budget, by a rule from shapes, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_condense.engine.method import Setting
from hf_condense.networks.factory import NetworkSpec, activation_bytes, network_factory

# Bytes of activations that a step gets through in a second, forward and backward: compiled on one core of a CPU,
# and on a GPU of 2020 or later (the latter is a guess that was not measured). A budget is kept to within a factor of
# about two by them; that they are constants keeps the same call to the same result.
_BYTES_PER_SECOND = {"cpu": 1.5e9, "other": 2e11}
_MOST_STEPS, _FEWEST_STEPS = 10_000, 100
_LARGEST_FACTOR_IPC = 50
_DEFAULT_BUDGET = 15.0  # minutes


@dataclass(frozen=True)
class Choice:
    """What is run in place of `"auto"`.

    Attributes:
        method: Canonical name.
        values: Options and settings of the run, where the caller left them open.
        reason: Why, in a sentence for people.
    """

    method: str
    values: dict[str, Any]
    reason: str


def choose(
    setting: Setting, budget: float | None, network: NetworkSpec | None, *, device: torch.device, cores: int
) -> Choice:
    """Pick method and settings.

    Args:
        setting: ipc, classes and image shape.
        budget: Minutes that the condensation may take, > 0; None: 15.
        network: The caller's network, or None.
        device: Where it runs.
        cores: Cores of a CPU that may be used, >= 1.

    Raises:
        TypeError: If the budget is no number.
        ValueError: If the budget is not positive.
    """
    minutes = _DEFAULT_BUDGET if budget is None else budget
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)):
        raise TypeError(f"budget should be minutes as a number; got {minutes!r} ({type(minutes).__name__})")
    if not 0 < minutes < math.inf:
        raise ValueError(f"budget should be a positive number of minutes; got {minutes!r}")
    spec = network or ("convnet-w32" if device.type == "cpu" else "convnet")
    factor = 2 if setting.ipc <= _LARGEST_FACTOR_IPC and min(setting.image_shape[1:]) >= 16 else 1
    each = _bytes_of_an_image(spec, setting)
    rate = _BYTES_PER_SECOND["cpu"] * cores if device.type == "cpu" else _BYTES_PER_SECOND["other"]
    batch, ipm = 128, 5
    # A backward costs about two forwards; real rows are embedded once in `ipm` steps.
    images = setting.num_classes * (batch / ipm + 3 * setting.ipc * factor**2)
    steps = int(min(_MOST_STEPS, max(_FEWEST_STEPS, 60 * minutes * rate / (images * each))))
    values = {"network": spec, "factor": factor, "steps": steps, "batch_real": batch, "ipm": ipm}
    why = (
        "cut in four, few images were worth most by far when we measured"
        if factor > 1
        else "images so many or so small are worth more whole"
    )
    reason = f"m3d, factor {factor} ({why}), {steps:,} steps (about {minutes:g} minutes on this kind of device)"
    return Choice("m3d", values, reason)


def _bytes_of_an_image(spec: NetworkSpec, setting: Setting) -> int:
    """Return the bytes of activations of one image's forward."""
    channels, height, width = setting.image_shape
    factory = network_factory(
        spec, channels=channels, image_size=(height, width), num_classes=max(2, setting.num_classes)
    )
    return activation_bytes(factory.build("auto"), setting.image_shape)
