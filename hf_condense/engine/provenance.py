"""Write down as a recipe how a run makes its set."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets.naming import camelcase_to_snakecase
from huggingface_hub import constants

from hf_condense.base.cache import content_key
from hf_condense.base.devices import convolution_precision
from hf_condense.condensed.recipe import Recipe
from hf_condense.engine.method import Composer, Method, MethodInfo, Selector
from hf_condense.engine.registry import canonical_name, get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import Settings
from hf_condense.networks.augment import families_of
from hf_condense.networks.network_facts import parameter_count
from hf_condense.networks.teachers import Teacher

# `datasets` caches what it loads from the Hub in such a folder. No attribute of a dataset names its repository.
_CACHE_PATH = re.compile(r"/(?P<owner>[^/]+)___(?P<name>[^/]+)/[^/]+/[^/]+/(?P<revision>[0-9a-f]{40})/")

_IDENTIFYING = (
    "method",
    "method_version",
    "ipc",
    "storage",
    "expand",
    "seed",
    "network",
    "options",
    "pixel_range",
    "class_names",
    "image_shape",
    "mean",
    "std",
)


def make_recipe(
    run: Run,
    implementation: Method[Any] | Composer[Any] | Selector[Any],
    settings: Settings,
    preset: str | None,
) -> Recipe:
    """Return the recipe of a set before it is made; `completed` adds what is known only afterwards.

    Args:
        run: The run.
        implementation: The method with its options.
        settings: The settled values.
        preset: Name of the preset that was asked for, or None.
    """
    method, image_size = canonical_name(type(implementation)), run.source.image_size
    options = {name: _as_json(value) for name, value in dataclasses.asdict(implementation.config).items()}
    amounts = set(run.ipc.values())
    views, top = implementation.label_views(run.num_classes)
    return Recipe(
        method=method,
        method_version=implementation.version,
        kind=implementation.info.kind,
        ipc=amounts.pop() if len(amounts) == 1 else {run.source.class_names[c]: n for c, n in run.ipc.items()},
        storage=run.decoder.name,
        expand=run.decoder.expand,
        seed=run.seed,
        steps=options.pop("steps", None),
        preset=preset,
        network=run.factory.name,
        options=options,
        augment=_families(implementation.config.of_role("augment")),
        pixel_range=settings.pixel_range,
        store_dtype=settings.store_dtype,
        class_names=list(run.source.class_names),
        label_values=list(run.source.label_values),
        image_column=run.source.image_column,
        label_column=run.source.label_column,
        image_shape=list(run.source.image_shape),
        image_size=list(image_size) if image_size else None,
        mean=run.source.mean.tolist(),
        std=run.source.std.tolist(),
        citation="\n".join(_citations(dataclasses.replace(implementation.info, name=method), implementation)),
        source={**_described(run.dataset), "content_hash": run.source.content_hash},
        temperature=implementation.label_temperature,
        label_views=views,
        label_top=top,
    )


def _citations(info: MethodInfo, implementation: Method[Any] | Composer[Any] | Selector[Any]) -> Iterator[str]:
    """Yield the lines that cite the paper of a method, and those of others whose parts its options ask for."""
    yield info.citation
    for name in implementation.also_cites():
        if name != info.name:
            yield get_method(name).info.citation


def identity(recipe: Recipe, run: Run, method: Method[Any]) -> dict[str, Any]:
    """Return the facts that identify a run; a checkpoint with different facts is refused.

    The number of steps is not among them unless the method adds it, so that a run can be resumed with more steps.
    """
    return {
        **method.identity(run),
        **{name: getattr(recipe, name) for name in _IDENTIFYING},
        "network_structure": None if run.factory.named else _structure(run),
        "content_hash": recipe.source["content_hash"],
        "device_type": run.device.type,
        "mixed_precision": run.accelerator.mixed_precision,
    }


def _structure(run: Run) -> str:
    """Return a short description of a network that has no name, so that another one is not taken for the same."""
    network = run.factory.build(run.seed, "template")
    shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in network.state_dict().items()]
    modules = [f"{name} {type(module).__name__} {module.extra_repr()}" for name, module in network.named_modules()]
    return f"{parameter_count(network):,} parameters, {content_key(shapes=shapes, modules=modules)[:8]}"


def completed(recipe: Recipe, run: Run, *, seconds: float, rows: Iterable[int] | None = None) -> Recipe:
    """Return the recipe with what is known only after the run. From here on its times do not change.

    Args:
        recipe: What `make_recipe` returned.
        run: The run.
        seconds: Duration of the run.
        rows: Row numbers in the source, for a coreset.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    runtime = {
        "device": run.device.type,
        "device_name": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "num_processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": run.accelerator.mixed_precision,
        "convolutions": convolution_precision(run.device),
        "seconds": round(seconds, 1),
        "torch": torch.__version__,
        "datasets": datasets.__version__,
    }
    return dataclasses.replace(
        recipe,
        rows=None if rows is None else list(rows),
        teacher=run.synthetic.teacher if recipe.kind != "coreset" else None,
        plan=run.plan.to_dict() if recipe.kind == "synthetic" else {},
        runtime=runtime,
        created_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _as_json(value: Any) -> Any:
    """Return the value of an option as a recipe writes it: a classifier by its name."""
    return value.name if isinstance(value, Teacher) else value


def _families(augment: str | None) -> str | None:
    """Return families of augmentation as a recipe writes them, with None in place of `"none"`."""
    return augment if families_of(augment) else None


def _repository(owner: str, name: str, revision: str) -> str:
    """Return the id of a repository; `datasets` knows its name in snake case, the Hub's cache knows it as it is."""
    prefix = f"datasets--{owner}--"
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob(f"{prefix}*")):
        exact = folder.name.removeprefix(prefix)
        has_commit = any((folder / kind / revision).is_dir() for kind in ("snapshots", ".no_exist"))
        if has_commit and camelcase_to_snakecase(exact) == name:
            return f"{owner}/{exact}"
    return f"{owner}/{name}"


def _described(ds: datasets.Dataset) -> dict[str, Any]:
    """Return what is known of the origin of a dataset, without any path of this machine."""
    paths = (Path(file["filename"]).as_posix() for file in ds.cache_files)
    origin = next(filter(None, map(_CACHE_PATH.search, paths)), None)
    return {
        "name": _repository(origin["owner"], origin["name"], origin["revision"]) if origin else ds.info.dataset_name,
        "revision": origin["revision"] if origin else None,
        "config": ds.info.config_name,
        "split": str(ds.split) if ds.split is not None else None,
        "license": ds.info.license or None,
        "num_examples": len(ds),
    }
