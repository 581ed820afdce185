"""`method="auto"`: choose a method and its settings for a task and a budget, by a rule from shapes, and say why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from hf_condense.base.checks import number
from hf_condense.base.words import plural
from hf_condense.condensed.decoders import decoder_class
from hf_condense.engine.forms import best_form, few_images
from hf_condense.engine.picture_teacher import TEACHER, TEACHER_SIDE, scaled
from hf_condense.engine.registry import get_method
from hf_condense.engine.settings import form_and_values, settled_form
from hf_condense.engine.task import Task
from hf_condense.engine.trained_networks import BATCH_SIZE
from hf_condense.networks.factory import NetworkSpec, network_factory
from hf_condense.networks.network_facts import activation_bytes
from hf_condense.source.streamed import LARGE_SIDE

CANDIDATES = ("m3d", "rded", "esp")
"""Methods that `choose` may pick. The options that are passed with `method="auto"` must suit one of them."""

# A step processes about this many bytes of activations per second, forward and backward: with compiled code on one CPU
# core (measured), on the GPU of a laptop (a guess), and on one of a server, of 2020 or later (a guess). These constants
# meet a budget within a factor of about two. They are fixed, not measured at run time, so that the same call gives the
# same result.
_BYTES_PER_SECOND = {"cpu": 1.5e9, "mps": 3e10, "other": 2e11}
# What a run costs apart from that, in seconds of one core: a step with next to no pixels, and everything but the steps.
_SECONDS_PER_STEP = 0.012
_SECONDS_OF_SETUP = 1.0
_MOST_STEPS, _FEWEST_STEPS = 10_000, 10
_BATCH_REAL = 128  # of a class in a step of m3d, half of its own number
_DEFAULT_BUDGET = 15.0  # minutes
# Shares of the budget for the training of a teacher and for scoring crops; the rest is for reading pictures.
_SHARE_OF_TEACHER, _SHARE_OF_CROPS = 0.5, 0.25
_MOST_UPDATES, _FEWEST_UPDATES = 5000, 100  # of the teacher
_MOST_PICTURES = 300  # of a class whose crops are scored
# A pool of trained networks, and a light calibration by them, gained up to three points in 150 to 350 steps. It is
# taken where its training leaves most of the budget, and as many steps as were measured.
_POOL = {"networks": "pool", "pool_size": 10, "pool_updates": 300, "batch_pool": 128, "calibration": 0.01}
_ASKS_FOR_POOL = (*_POOL, "lr_pool", "augment_pool", "cutmix_pool")
_SHARE_OF_POOL = 1 / 3
_FEWEST_STEPS_WITH_POOL = 150
_SECONDS_PER_UPDATE = 0.002  # of a network in training, apart from its pixels
# Few whole colour images, learned along experts for a minute, led those of `m3d` by six points, but not with ten images
# per class. A run should leave a third of the steps of those that were measured.
_FEWEST_STEPS_WITH_EXPERTS = 500
_PASSES_OF_STUDENT = 10  # forward passes of the rows that a step takes about as long as, with its second derivatives
_FORM = {"storage", "expand", "factor"}
# Options that mean something else to m3d and to esp, or nothing.
_OTHER_MEANING_IN_ESP = {"steps", "batch_real", "batch_syn", "lr_img", "lr_stored", "soft_labels"}


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


@dataclass(frozen=True)
class _Case:
    """What the choice depends on: the task, the machine, and what the caller has decided.

    Attributes:
        task: ipc, classes and image shape.
        minutes: Minutes that the condensation may take.
        network: The network.
        rate: Bytes of activations that a process goes through per second, forward and backward.
        processes: Processes that share the work.
        given: The caller's options, steps and storage form by name, without those that are left open.
    """

    task: Task
    minutes: float
    network: NetworkSpec
    rate: float
    processes: int
    given: Mapping[str, Any]

    @property
    def classes_in_turn(self) -> int:
        """How many classes a process goes through, one after the other."""
        return math.ceil(self.task.num_classes / self.processes)

    @property
    def is_large(self) -> bool:
        """Whether learning the images would take hours, and composing them minutes."""
        return min(self.task.image_shape[1:]) > LARGE_SIDE

    @cached_property
    def seconds_of_forward(self) -> float:
        """What the forward pass of an image takes."""
        return self.seconds_of_forward_at(self.task.image_shape[1:])

    def seconds_of_forward_at(self, size: tuple[int, int]) -> float:
        """Return what the forward pass of an image of this (height, width) takes."""
        shape = (self.task.image_shape[0], *size)
        return _bytes_of_forward(self.network, shape, self.task.num_classes) / self.rate

    @cached_property
    def along_experts(self) -> tuple[tuple[str, int], dict[str, Any]]:
        """Storage form, `expand` and options of a run along experts: the caller's, or those of the preset."""
        method = get_method("esp")
        form, of_preset = form_and_values(method, "quick", self.given, self.task)
        return form, {**dataclasses.asdict(method.Config()), **of_preset, **self.given}

    def seconds_of_networks(self, count: int, updates: int, batch: int) -> float:
        """Return what the training of networks takes, which the processes share; options may be no numbers yet."""
        seconds = count * updates * (_SECONDS_PER_UPDATE + 3 * batch * self.seconds_of_forward)
        return float(seconds / max(1, min(self.processes, count)))

    @property
    def seconds_of_teacher(self) -> float:
        """What the training of the teacher of soft labels takes, if the caller asks for them."""
        if self.given.get("soft_labels", "none") == "none" or self.given.get("labels_from") == "experts":
            return 0.0
        updates = self.given.get("teacher_updates", _default("m3d", "teacher_updates"))
        return self.seconds_of_networks(1, updates, BATCH_SIZE)

    def form(self) -> tuple[str, int]:
        """Return the storage form that the caller asks for, else the best one, and its `expand`."""
        storage, expand = best_form(self.task)
        return settled_form(self.given, {"storage": storage, "expand": expand}, self.task)

    def steps_text(self, steps: int) -> str:
        """Say how many steps the run makes, and why."""
        if "steps" in self.given:
            steps = self.given["steps"]
            return f"{steps} {plural(steps, 'step')} (as asked for, whatever the budget of {self.minutes_text})"
        times = {
            _MOST_STEPS: f"the most; less than {self.minutes_text}",
            _FEWEST_STEPS: f"the fewest; {self.minutes_text} or more",
        }
        time = times.get(steps, f"about {self.minutes_text}")
        return f"{steps:,} {plural(steps, 'step')} ({time} on this kind of device)"

    @property
    def minutes_text(self) -> str:
        """The budget in words."""
        return f"{self.minutes:g} {plural(self.minutes, 'minute')}"


def choose(
    task: Task,
    budget: float | None,
    network: NetworkSpec | None,
    *,
    device: torch.device,
    workers: int,
    processes: int = 1,
    candidates: Sequence[str] = CANDIDATES,
    given: Mapping[str, Any] | None = None,
) -> Choice:
    """Choose the method and its settings.

    Args:
        task: ipc, classes and image shape.
        budget: Minutes that the condensation may take, > 0. None means 15.
        network: The caller's network, or None.
        device: Where the method runs.
        workers: CPU cores of a process, >= 1; 1 on other devices.
        processes: Processes that share the classes, and the networks of a pool, >= 1.
        candidates: Methods that suit the caller's options; some of `CANDIDATES`.
        given: The caller's options, steps and storage form, by name; what is None is left open. They are among the
            values of the choice, and the reason is that of the run with them.

    Raises:
        TypeError: If the budget is not a number.
        ValueError: If the budget is not positive, or the caller's storage form makes no sense.
    """
    minutes = checked_minutes(budget)
    spec = network or ("convnet-w32" if device.type == "cpu" else "convnet")
    rate = _BYTES_PER_SECOND.get(device.type, _BYTES_PER_SECOND["other"]) * workers
    case = _Case(task, minutes, spec, rate, processes, get_method("esp").Config.decided(given or {}))
    # rded needs two classes, because it trains a network to tell them apart.
    learns = "m3d" in candidates or "esp" in candidates
    if not learns or (case.is_large and "rded" in candidates and task.num_classes > 1):
        return _choice_of_rded(case)
    if "esp" in candidates and ("m3d" not in candidates or _experts_pay(case)):
        return _choice_of_esp(case)
    return _choice_of_m3d(case)


def _default(method: str, option: str) -> Any:
    """Return the default of an option of a method."""
    return getattr(get_method(method).Config(), option)


def checked_minutes(budget: float | None) -> float:
    """Return a budget in minutes, 15 if it is None; raise if it is no positive number."""
    minutes = number("budget", _DEFAULT_BUDGET if budget is None else budget)
    if not 0 < minutes < math.inf:
        raise ValueError(f"budget should be a positive number of minutes; got {budget!r}")
    return minutes


def _choice_of_rded(case: _Case) -> Choice:
    """Return how images are composed of crops."""
    task, given = case.task, case.given
    # The side at which the teacher is trained and sees crops.
    side = given.get("teacher_size", min(TEACHER_SIDE, *task.image_shape[1:]))
    seconds_of_forward = case.seconds_of_forward_at(scaled(task.image_shape[1:], side))
    crops = given.get("crops", _default("rded", "crops"))
    seconds_of_update = 3 * TEACHER.batch_size * seconds_of_forward  # by one process alone
    updates = int(min(_MOST_UPDATES, max(_FEWEST_UPDATES, 60 * case.minutes * _SHARE_OF_TEACHER / seconds_of_update)))
    seconds_of_picture = case.classes_in_turn * crops * seconds_of_forward  # of each class
    fewest = 4 * task.ipc
    pictures = int(max(fewest, min(_MOST_PICTURES, 60 * case.minutes * _SHARE_OF_CROPS / seconds_of_picture)))
    values: dict[str, Any] = {"network": case.network, "teacher_updates": updates, "pictures": pictures, "crops": crops}
    values |= {name: given[name] for name in values.keys() & given.keys()}
    trained = f"a teacher of {values['teacher_updates']:,} updates at {side} pixels"
    time = f"about {case.minutes_text}"
    decided = values["pictures"], values["teacher_updates"]
    if decided == (max(fewest, _MOST_PICTURES), _MOST_UPDATES):
        time = f"the most; {case.minutes_text} or less"
    elif decided == (fewest, _FEWEST_UPDATES):
        time = f"the fewest; {case.minutes_text} or more"
    if "teacher" in given:
        trained = "the teacher that was passed"
        del values["teacher_updates"]
    why = "pictures are large, and learning images would take hours" if case.is_large else "as the options ask for"
    reason = (
        f"rded, which composes images of crops of {values['pictures']} pictures per class ({why}), and "
        f"{trained} ({time} on this kind of device)"
    )
    return Choice("rded", "default", values, reason)


def _choice_of_m3d(case: _Case) -> Choice:
    """Return how images are learned from embeddings."""
    task, given = case.task, case.given
    storage, expand = case.form()
    rows = decoder_class(storage)(task.image_shape, expand).rows(task.ipc)
    drawn = min(given.get("batch_syn") or rows, rows)
    batch = given.get("batch_real", _BATCH_REAL)
    ipm, reuse = (given.get(name, _default("m3d", name)) for name in ("ipm", "reuse_real"))
    steps_per_embedding = ipm if reuse else 1  # of real rows
    pool = {**_POOL, **{name: value for name, value in given.items() if name in _POOL}}
    seconds_of_pool = case.seconds_of_networks(*(pool[name] for name in ("pool_size", "pool_updates", "batch_pool")))

    def affordable(seconds: float, passes: float) -> int:
        """Return the steps for the rest of the budget, if each makes `passes` forward passes of the synthetic rows."""
        forwards = case.classes_in_turn * (batch / steps_per_embedding + passes * drawn)
        return _affordable_steps(case, seconds, forwards)

    # A backward pass costs about two forward passes. The calibration takes half as long as the rest (measured).
    steps, steps_with_pool = affordable(0, 3), affordable(seconds_of_pool, 4.5 if pool["calibration"] else 3)
    pays = seconds_of_pool <= _SHARE_OF_POOL * 60 * case.minutes and steps_with_pool >= _FEWEST_STEPS_WITH_POOL
    if any(given.get(name) for name in _ASKS_FOR_POOL):  # calibration=0 does not
        has_pool = pool["networks"] == "pool"
    else:
        has_pool = pays and "steps" not in given and task.num_classes > 1 and _is_trainable(case)
    steps = steps_with_pool if has_pool else steps
    values: dict[str, Any] = {
        "network": case.network,
        "storage": storage,
        "expand": expand,
        "steps": given.get("steps", steps),
        "batch_real": batch,
        "ipm": ipm,
    }
    values |= pool if has_pool else {}
    networks = f"a pool of {pool['pool_size']} trained networks" if has_pool else "random networks"
    is_best = (storage, expand) == best_form(task)
    form = f"{_form_text(storage, expand)} ({_why_best(storage) if is_best else 'as asked for'})"
    return Choice("m3d", "quick", values, f"m3d, {form}, {networks}, {case.steps_text(steps)}")


def _experts_pay(case: _Case) -> bool:
    """Return whether a task is like those where experts led, and leaves most of the budget for the steps."""
    task, given = case.task, case.given
    is_alike = few_images(task) and task.image_shape[0] > 1 and max(task.image_shape[1:]) <= LARGE_SIDE
    asks_for_pixels = given.keys() & _FORM and case.form()[0] == "pixels"
    is_of_m3d = any(given.get(name) not in (None, "none") for name in _OTHER_MEANING_IN_ESP)
    by_epochs = given.get("snapshot_every", 1) is None  # of a length that is not known here
    if not asks_for_pixels or not is_alike or task.num_classes < 2 or is_of_m3d or by_epochs:
        return False
    if _seconds_of_experts(case) > _SHARE_OF_POOL * 60 * case.minutes or not _is_trainable(case):
        return False
    return _steps_along_experts(case) >= _FEWEST_STEPS_WITH_EXPERTS


def _choice_of_esp(case: _Case) -> Choice:
    """Return how images are learned along experts."""
    (storage, expand), options = case.along_experts
    steps = _steps_along_experts(case)
    values: dict[str, Any] = {"network": case.network, "steps": case.given.get("steps", steps)}
    form = "in the storage form of the preset"
    if case.given.keys() & _FORM:
        values |= {"storage": storage, "expand": expand}
        form = f"{_form_text(storage, expand)} (as asked for)"
    networks = f"along {options['experts']} networks in training"
    return Choice("esp", "quick", values, f"esp, {form}, {networks}, {case.steps_text(steps)}")


def _seconds_of_experts(case: _Case) -> float:
    """Return what the training of experts takes; 0 if snapshots are taken by epochs, whose length is not known."""
    _, options = case.along_experts
    updates = (options["snapshots"] - 1) * (options["snapshot_every"] or 0)
    return case.seconds_of_networks(options["experts"], updates, options["batch_expert"])


def _steps_along_experts(case: _Case) -> int:
    """Return the steps along experts that the rest of the budget allows."""
    task, ((storage, expand), options) = case.task, case.along_experts
    rows = task.num_classes * decoder_class(storage)(task.image_shape, expand).rows(task.ipc)
    forwards = _PASSES_OF_STUDENT * min(options["batch_syn"] or rows, rows)
    if options["form"] == "rollout":
        forwards *= options["student_steps"]
    if options["beside"] != "none":
        forwards += task.num_classes * options["batch_real"] + 3 * rows
    return _affordable_steps(case, _seconds_of_experts(case), forwards)


def _affordable_steps(case: _Case, seconds: float, forwards: float) -> int:
    """Return the steps for what is left of the budget after some seconds, if each takes `forwards` forward passes."""
    left = 60 * case.minutes - _SECONDS_OF_SETUP - case.seconds_of_teacher - seconds
    per_step = _SECONDS_PER_STEP + forwards * case.seconds_of_forward
    return int(min(_MOST_STEPS, max(_FEWEST_STEPS, left / per_step)))


def _form_text(storage: str, expand: int) -> str:
    """Say which storage form a run takes."""
    if storage == "pixels":
        return "whole images"
    return f"storage {storage!r} with {expand} rows in the space of one image"


def _why_best(storage: str) -> str:
    """Say why a storage form is the best one that is known."""
    if storage == "pixels":
        return "other forms were not measured for so many images, or for such small ones"
    return "it gained most at 1 and 10 images per class of 28 and 32 pixels"


def _is_trainable(case: _Case) -> bool:
    """Return whether all parameters of the network can be trained, as those of a pool and of experts are."""
    task = case.task
    network = _network(case.network, task.image_shape, task.num_classes)
    return all(parameter.requires_grad for parameter in network.parameters())


def _network(spec: NetworkSpec, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    channels, height, width = image_shape
    factory = network_factory(spec, channels=channels, image_size=(height, width), num_classes=max(2, num_classes))
    return factory.build("auto")


def _bytes_of_forward(spec: NetworkSpec, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Return the bytes of activations that the forward pass of one image keeps."""
    return activation_bytes(_network(spec, image_shape, num_classes), image_shape)
