"""The program of each process of tests/engine/test_distributed.py: `torchrun distributed_worker.py <case> <folder>`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_condense import api
from hf_condense.base.errors import NonFiniteLossError
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.decoders import siren
from hf_condense.engine import build, plan
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.methods import _recordings
from hf_condense.networks import training
from hf_condense.testing import toy_dataset
from tests.support import half_size

PLENTY = 2**40
RECORDINGS = {"experts": 3, "snapshots": 6, "snapshot_every": 2}
TRAJECTORIES = {**RECORDINGS, "student_steps": 3}
POOL = {"pool_size": 3, "pool_updates": 4}
# With SGD where a method has a choice: AdamW would magnify the rounding of gradients that are nearly zero.
OWN_OPTIONS: dict[str, dict[str, Any]] = {
    **{method: {"outer_loop": 3, "inner_loop": 2} for method in ("dc", "dsa")},
    "idc": {"outer_loop": 3, "inner_loop": 2, "lr_img": 1.0},  # at its own rate, images would hardly move
    **{method: TRAJECTORIES for method in ("mtt", "tesla", "esp", "datm")},  # noqa: C420 - one dict for each
    # This rate moves coefficients by 0.2 (median) to 1.4; at 1.0, the rounding of larger steps can exceed the bound.
    "dance": {"optimiser": "form", "lr_img": 0.3, **POOL},
    "ncfm": {"optimiser": "form", "lr_img": 10.0, "draws": 2, "frequencies": 16, **POOL},
}
# Every method in every storage form, one class per chunk in one process.
FORMS: dict[str, tuple[dict[str, Any], list[int]]] = {
    f"{method} of {storage}": (
        {"method": method, "classes": 3, "storage": storage, **OWN_OPTIONS.get(method, {})},
        [1, PLENTY],
    )
    for storage, methods in {
        "patches": ("dc", "mtt", "tesla", "datm", "ncfm"),  # those that no scenario below has with patches
        "dct": ("m3d", "dc", "dsa", "idc", "mtt", "tesla", "esp", "datm", "dance", "ncfm"),
        "siren": ("m3d", "dc", "dsa", "idc", "mtt", "tesla", "esp", "datm", "dance", "ncfm"),
    }.items()
    for method in methods
}
# The inner loop of gradient matching takes this many images at a time, so that processes share a batch of ten rows.
SHARED_INNER_LOOPS = {
    "shared inner loop of dc": {"method": "dc", "most_images": 4},  # the last chunk is padded
    "shared inner loop of dsa": {"method": "dsa", "most_images": 5},
    "shared inner loop of idc": {"method": "idc", "most_images": 3, "factor": 2, "lr_img": 1.0},
}


def dropping_network(channels: int, num_classes: int, image_size: tuple[int, int]) -> torch.nn.Sequential:
    """Return a network with dropout."""
    features = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 8, 3), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Flatten()
    )
    size = features(torch.zeros(1, channels, *image_size)).shape[1]
    return torch.nn.Sequential(*features, torch.nn.Linear(size, num_classes))


# Options of each scenario, and the free memory that each process sees.
SCENARIOS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "even": ({"classes": 4}, [PLENTY, PLENTY]),
    "uneven": ({"classes": 5}, [PLENTY, PLENTY]),  # chunks of 3 and 2 classes
    "one class per chunk": ({"classes": 5}, [1, 1]),  # three chunks and two
    "memory differs": ({"classes": 5}, [1, PLENTY]),
    "more processes than chunks": ({"classes": 3, "network": "convnet-w8-d1-bn"}, [PLENTY, PLENTY]),
    "dropout": ({"classes": 5, "network": dropping_network}, [1, 1]),
    "dropout in gradients": (
        {"method": "dc", "classes": 5, "network": dropping_network, "outer_loop": 3, "inner_loop": 0},
        [1, 1],
    ),
    "inner loop with batch norm": (
        {"method": "dc", "classes": 3, "network": "convnet-w8-d1-bn", "outer_loop": 3, "inner_loop": 2},
        [PLENTY, PLENTY],
    ),
    "patches": ({"classes": 3, "factor": 2, "pixel_range": "free"}, [PLENTY, PLENTY]),
    "gradients": ({"method": "dsa", "classes": 5, "outer_loop": 3, "inner_loop": 2}, [PLENTY, PLENTY]),
    "learned labels": (
        {"method": "dc", "classes": 3, "soft_labels": "learned", "teacher_updates": 3, "outer_loop": 2},
        [PLENTY, PLENTY],
    ),
    "trajectories": ({"method": "mtt", "classes": 5, "lr_lr": 1e-4, **TRAJECTORIES}, [PLENTY, PLENTY]),
    "truncated trajectories": ({"method": "tesla", "classes": 5, **TRAJECTORIES}, [1, 1]),
    "a subspace": ({"method": "esp", "classes": 5, "beside": "dm", **TRAJECTORIES}, [PLENTY, PLENTY]),
    "a subspace, one class per chunk": ({"method": "esp", "classes": 5, "form": "projected", **TRAJECTORIES}, [1, 1]),
    "a point": ({"method": "esp", "classes": 5, "form": "point", "batch_syn": 3, **RECORDINGS}, [PLENTY, PLENTY]),
    "a rollout": (
        {"method": "esp", "classes": 3, "form": "rollout", "factor": 2, "average": 0.5, **TRAJECTORIES},
        [PLENTY, PLENTY],
    ),
    "trajectories, labels and whitening": (
        {
            "method": "mtt",
            "classes": 3,
            "soft_labels": "learned",
            "teacher_updates": 3,
            "zca": True,
            "pixel_range": "free",
            "batch_syn": 4,
            **TRAJECTORIES,
        },
        [PLENTY, PLENTY],
    ),
    **{
        f"{method} with more processes than chunks": (
            {"method": method, "classes": 3, "network": "convnet-w8-d1-bn", **TRAJECTORIES},
            [PLENTY, PLENTY],
        )
        for method in ("mtt", "tesla", "esp")
    },
    "frequencies": ({"method": "m3d", "classes": 5, "storage": "dct"}, [PLENTY, PLENTY]),
    "networks": ({"classes": 5, "storage": "siren"}, [1, PLENTY]),
    "networks and learned labels": (
        {
            "method": "mtt",
            "classes": 3,
            "storage": "siren",
            "soft_labels": "learned",
            "lr_label": 1e-3,
            "teacher_updates": 3,
            **TRAJECTORIES,
        },
        [1, 1],
    ),
    "frequencies and batches of rows": ({"classes": 5, "storage": "dct", "batch_syn": 3}, [PLENTY, PLENTY]),
    "gradients of batches of rows": (
        {"method": "dsa", "classes": 5, "factor": 2, "batch_syn": 3, "outer_loop": 3, "inner_loop": 2},
        [1, PLENTY],
    ),
    "labels and starts of experts": (
        {
            "method": "datm",
            "classes": 3,
            "soft_labels": "learned",
            "lr_lr": 1e-4,
            "min_start": 1,
            "first_max_start": 2,
            "max_start": 4,
            "expansion_steps": 3,
            "most_ratio": 1.0,
            **TRAJECTORIES,
        },
        [PLENTY, PLENTY],
    ),
    "training on real rows": (
        {"method": "idc", "classes": 5, **OWN_OPTIONS["idc"], "factor": 2, "batch_syn": 3},
        [PLENTY, PLENTY],
    ),
    **FORMS,
    **{
        name: ({"classes": 5, "outer_loop": 3, "inner_loop": 2, **options}, [PLENTY, PLENTY])
        for name, options in SHARED_INNER_LOOPS.items()
    },
    "early teacher": (
        {"classes": 3, "soft_labels": "teacher", "teacher_updates": 20, "early_teacher": True},
        [PLENTY, PLENTY],
    ),
    "composed": ({"method": "rded", "classes": 5, "teacher_updates": 3, "views": 2, "mosaic": 2}, [PLENTY, PLENTY]),
    "another storage form": ({"method": "m3d", "classes": 5, "storage": "half"}, [PLENTY, PLENTY]),
    "moments": ({"method": "m3d", "classes": 5, "factor": 2, "ipm": 3}, [PLENTY, PLENTY]),
    "a pool": ({"method": "dance", "classes": 5, "factor": 2, "batch_syn": 4, **POOL}, [PLENTY, PLENTY]),
    # With SGD: AdamW would magnify the rounding of gradients that are nearly zero.
    "characteristic functions": (
        {"method": "ncfm", "classes": 5, "optimiser": "form", "lr_img": 10.0, "draws": 2, "frequencies": 16, **POOL},
        [1, 1],
    ),
    "a pool with more processes than chunks": (
        {"method": "ncfm", "classes": 3, "network": "convnet-w8-d1-bn", "optimiser": "form", "lr_img": 10.0, **POOL},
        [PLENTY, PLENTY],
    ),
}


def run_scenario(name: str, rank: int = 0, **options: Any) -> CondensedDataset:
    """Run one scenario, in one or several processes."""
    scenario, memory = SCENARIOS[name]
    settings = {"network": "convnet-w8-d1", "compile": False, "progress": False, **scenario}
    method = settings.pop("method", "dm")
    config = get_method(method).Config
    for option, value in (("steps", 4), ("batch_real", 6)):
        if option in config.__dataclass_fields__ and config.unmet_need(option, settings) is None:
            settings.setdefault(option, value)
    ds = toy_dataset(tuple(range(settings.pop("classes")))).remove_columns("note")
    with pytest.MonkeyPatch.context() as patched, half_size.registered():
        patched.setattr(build, "memory_budget", lambda device: memory[rank])
        patched.setattr(siren, "_FIT_STEPS", 20)
        if "most_images" in settings:
            patched.setattr(plan, "_CPU_MOST_IMAGES", settings.pop("most_images"))
        small = api.condense_dataset(ds, method, 2, label_column="label", cache=False, **{**settings, **options})
    assert isinstance(small, CondensedDataset)
    return small


def shared_batches(name: str, rank: int) -> int:
    """Run a scenario again, and return of how many batches the processes shared out the images of a network."""
    shared: list[int] = []
    share = training._GradientByChunks._shared

    def count(*arguments: Any) -> None:
        shared.append(1)
        share(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training._GradientByChunks, "_shared", count)
        run_scenario(name, rank)
    return len(shared)


def save(small: CondensedDataset, folder: Path, name: str, rank: int) -> None:
    """Write the set that a process got back."""
    with half_size.registered():  # a recipe asks the storage form for its format version
        recipe = small.recipe.to_dict()
    facts = {"recipe": recipe, "rows": [row["label"] for row in small], "process": os.getpid()}
    (folder / f"{name}-{rank}.json").write_text(json.dumps(facts))
    save_file(small.synthetic.all(), folder / f"{name}-{rank}.safetensors")


def condense_all(folder: Path, rank: int) -> None:
    """Run every scenario, a resumed run, and runs that fail on one process alone."""
    for name in SCENARIOS:
        save(run_scenario(name, rank), folder, name, rank)
    for name in SHARED_INNER_LOOPS:
        (folder / f"{name}-{rank}.txt").write_text(str(shared_batches(name, rank)))

    checkpoints = folder / "checkpoints"
    steps_done: list[int] = []
    run_scenario("uneven", rank, steps=2, checkpoint_dir=checkpoints)
    resumed = run_scenario(
        "uneven", rank, checkpoint_dir=checkpoints, callbacks=[lambda run, done, loss: steps_done.append(done)]
    )
    assert steps_done == [3, 4]
    save(resumed, folder, "resumed", rank)
    run_scenario("uneven", rank, checkpoint_dir=folder / f"checkpoints of process {rank}")

    def spoil(run: Run, done: int, loss: float) -> None:
        if rank == 1 and done == 2:
            with torch.no_grad():
                run.synthetic.stored["images"].fill_(torch.nan)

    message = "no error"
    try:
        run_scenario("uneven", rank, callbacks=[spoil])
    except NonFiniteLossError as error:
        message = str(error)
    (folder / f"spoilt-{rank}.txt").write_text(message)

    for error in (NonFiniteLossError("the weights of an expert of process 1 are not finite"), OSError("disk full")):
        message = "no error"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(_recordings._Recorder, "record", failing_on_process_1(error, rank))
            try:
                run_scenario("trajectories", rank)
            except (NonFiniteLossError, RuntimeError, OSError) as caught:
                message = f"{type(caught).__name__}: {caught}"
        (folder / f"{type(error).__name__}-{rank}.txt").write_text(message)


def failing_on_process_1(error: Exception, rank: int) -> Callable[..., None]:
    """Return a `record` method that fails on process 1 alone."""
    record = _recordings._Recorder.record

    def record_or_fail(recorder: _recordings._Recorder, file: Path, advance: object) -> None:
        if rank == 1:
            raise error
        record(recorder, file, lambda: None)

    return record_or_fail


def run_with_separate_accelerators(folder: Path, rank: int) -> None:
    """Run with an accelerator that does not see the other process, as `Accelerator()` makes on CPUs under torchrun."""
    from accelerate import Accelerator

    accelerator = Accelerator()
    for name, options in (("joined", {}), ("given", {"accelerator": accelerator})):
        message = f"no error; {accelerator.num_processes} processes"
        try:
            run_scenario("even", rank, **options)
        except RuntimeError as error:
            message = str(error)
        (folder / f"{name}-{rank}.txt").write_text(message)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with half_size.registered():
        {"condense": condense_all, "separate": run_with_separate_accelerators}[sys.argv[1]](
            Path(sys.argv[2]), int(os.environ["RANK"])
        )
