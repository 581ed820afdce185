"""From what a caller asked for to a run: the checks that need no data, the run itself, and its plan."""

from __future__ import annotations

import dataclasses
import logging
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from hf_condense.base.checks import byte_text
from hf_condense.base.devices import has_compiler
from hf_condense.base.memory import free_memory, memory_budget
from hf_condense.condensed.decoders import Frame, decoder_class
from hf_condense.engine.auto import CANDIDATES, checked_minutes
from hf_condense.engine.checkpoint import Checkpoint
from hf_condense.engine.initial import check_start, initial_set
from hf_condense.engine.method import Method
from hf_condense.engine.plan import Plan, Workload, make_plan
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import Settings, check_learning, check_preset, check_values
from hf_condense.networks.factory import network_factory
from hf_condense.source.class_source import ClassSource

logger = logging.getLogger("hf_condense")


def check_request(
    method: str,
    preset: str | None,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    budget: float | None = None,
    *,
    arguments: Iterable[str] = (),
) -> tuple[str, ...]:
    """Check what does not depend on the data. What is not given is passed over: a preset may set it.

    Args:
        method: Name of a method, or `"auto"`.
        preset: Name of a preset, or None.
        options: Options of the method.
        given: The caller's settings of the run by name: steps, network, storage form and so on; None stands for no
            value, and other names are passed over.
        budget: The caller's minutes for `"auto"`, or None.
        arguments: Names of the arguments of a call that are no options, one of which may have been meant.

    Returns:
        The method, or those that `"auto"` may pick.

    Raises:
        TypeError: If an option is unknown, a value is of the wrong type, the preset is no text, or the budget is no
            number.
        ValueError: If there is no such method or preset, a value is out of its range, or settings or the budget are for
            other methods.
    """
    if budget is not None and (method != "auto" or preset is not None):
        given_preset = "" if preset is None else f" and preset={preset!r}"
        raise ValueError(
            "budget is for method='auto' without a preset, which chooses the steps; got it with "
            f"method={method!r}{given_preset}: pass steps= in its place"
        )
    checked_minutes(budget)
    check_values(given)
    suitable: list[str] = []
    problems: list[tuple[bool, Exception]] = []
    for name in CANDIDATES if method == "auto" else (method,):
        cls = get_method(name)
        try:
            config = cls.Config.build(options, arguments)
            check_preset(cls, preset)
            if issubclass(cls, Method):
                check_start(cls, config)
        except (TypeError, ValueError) as error:
            problems.append((options.keys() <= cls.Config.__dataclass_fields__.keys(), error))
        else:
            suitable.append(name)
    if not suitable:  # what a method says whose options these are helps most
        raise max(problems, key=lambda problem: problem[0])[1]
    if method != "auto":
        check_learning(get_method(method), given)
    elif given.get("steps") is not None:  # only what learns images has steps
        suitable = [name for name in suitable if issubclass(get_method(name), Method)] or suitable
    return tuple(suitable)


def text_options(method: str) -> dict[str, bool]:
    """Return the options of a method, or of those that `"auto"` may pick, that take text, and whether None is one."""
    configs = [get_method(name).Config for name in (CANDIDATES if method == "auto" else (method,))]
    hints = {name: hint for config in configs for name, hint in typing.get_type_hints(config).items()}
    takes = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items()}
    return {name: type(None) in kinds for name, kinds in takes.items() if str in kinds}


def build_run(settings: Settings, *, source: ClassSource, **facts: Any) -> Run:
    """Return the run of some settings.

    Args:
        settings: Network, storage form and pixel range.
        source: The real images by class.
        **facts: Further attributes of `Run`. Its plan depends on the method too; see `plan_run`.
    """
    channels, height, width = source.image_shape
    factory = network_factory(
        settings.network, channels=channels, image_size=(height, width), num_classes=len(source.class_names)
    )
    frame = Frame(source.mean, source.std, clip=settings.pixel_range == "valid")
    decoder = decoder_class(settings.storage)(source.image_shape, settings.expand, frame)
    return Run(source=source, factory=factory, decoder=decoder, make_start=initial_set, **facts)


def plan_run(run: Run, method: Method[Any], steps: int, checkpoint: Checkpoint | None = None) -> Plan:
    """Return how the work of a step is cut, for a method and a number of steps.

    Args:
        run: The run.
        method: The method.
        steps: Number of updates.
        checkpoint: The checkpoint that the run resumes from, if any. Its plan is kept, because another one would give
            other bits, unless it was made for another number of processes or needs more memory than there is, the
            caller decides about compiling otherwise, or there is no compiler.
    """
    workload = workload_of(run, method)
    if checkpoint is not None and (reason := _reason_against(checkpoint, run, workload)) is None:
        return _resumed_plan(checkpoint, run)
    budget = memory_budget(run.device)
    plan = make_plan(workload, steps=steps, device=run.device, budget=budget, compile=run.compile)
    needed, free = workload.step_bytes(plan), free_memory(run.device)
    logger.info("plan: %s; a step needs about %s of memory", plan, byte_text(needed))
    # Other processes add up in another order, even by an equal plan.
    if checkpoint is not None and (plan, run.accelerator.num_processes) != (checkpoint.plan, checkpoint.processes):
        logger.warning(
            "the checkpoint's plan of a step is replaced, because %s; the result differs by rounding, and by the draws "
            "of dropout if there is any, from that of an uninterrupted run",
            reason,
        )
    if needed > free:
        memory = "a step needs about %s of memory, but may use %s; it is tried all the same. If it fails: %s"
        logger.warning(memory, byte_text(needed), byte_text(free), method.memory_remedy)
    return plan


def workload_of(run: Run, method: Method[Any]) -> Workload:
    """Return what a step of a run works on by a method, from which its plan and its memory follow."""
    network = run.network_facts
    real_rows, most_rows = run.most_real(method.batch_real), method.most_rows(run)
    return Workload(
        class_rows=tuple(method.rows_per_step(run).values()),
        most_rows=most_rows,
        images_per_step=real_rows * len(run.ipc) + most_rows,
        num_processes=run.accelerator.num_processes,
        activation_bytes=network.activation_bytes,
        batch_statistics=network.batch_statistics,
        cost_in_forwards=method.cost_in_forwards,
        decoding_bytes=run.decoder.row_bytes(),
        gradient_bytes=method.gradients_per_class * network.parameter_bytes,
        real_bytes=4 * 4 * math.prod(run.source.image_shape) * real_rows,  # float32, and copies that are augmented
        parameter_bytes=network.parameter_bytes,
        passes=method.passes,
        cuts=method.cuts,
    )


def smaller_plan(run: Run, method: Method[Any]) -> Plan | None:
    """Return a plan whose steps need less memory than those of the present one, or None if there is none."""
    if run.network_facts.batch_statistics:
        return None
    return run.plan.halved(max(method.batch_real, *method.rows_per_step(run).values()), method.cuts)


def _resumed_plan(checkpoint: Checkpoint, run: Run) -> Plan:
    """Return the plan of a checkpoint, compiled or not as the caller says, or as before if that is possible here."""
    plan = checkpoint.plan
    if run.compile == plan.compile:
        return plan
    if run.compile != "auto":
        change = f"compile={run.compile} is not what the run had before"
    elif plan.compile and run.device.type == "cpu" and not has_compiler():
        change = "the run was compiled before, and g++ or Python's headers are missing here"
    else:
        return plan
    logger.warning("%s; the result differs by rounding from that of an uninterrupted run", change)
    return dataclasses.replace(plan, compile=run.compile is True)


def _reason_against(checkpoint: Checkpoint, run: Run, workload: Workload) -> str | None:
    """Return why the plan of a checkpoint does not suit a run, or None if it does."""
    processes = run.accelerator.num_processes
    if checkpoint.processes != processes:
        return f"it was made for {checkpoint.processes} processes and there are {processes}"
    needed, free = workload.step_bytes(checkpoint.plan), free_memory(run.device)
    if needed > free and workload.cuts:
        return f"it needs about {byte_text(needed)} of memory and may use {byte_text(free)}"
    return None
