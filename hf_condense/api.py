"""The door: `condense_dataset` validates, builds and runs."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from datasets.table import InMemoryTable

from hf_condense.base.devices import CompileOption, memory_budget
from hf_condense.base.processes import get_accelerator
from hf_condense.base.progress import announce
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.rows import decoded_rows
from hf_condense.condensed.tensors import CondensedTensors, round_robin
from hf_condense.engine.auto import choose
from hf_condense.engine.checkpoint import read_checkpoint
from hf_condense.engine.copies import nearest_real
from hf_condense.engine.initial import initial_set, select_rows
from hf_condense.engine.loop import Callback, Saving, optimise
from hf_condense.engine.method import Method, Selector, Setting
from hf_condense.engine.plan import Plan, make_plan
from hf_condense.engine.provenance import completed, identity, make_recipe
from hf_condense.engine.registry import canonical_name, get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import class_amounts, settle
from hf_condense.networks.factory import NetworkSpec, activation_bytes, has_batch_statistics, network_factory
from hf_condense.source.class_source import ClassSource, checked_size, load_source
from hf_condense.source.columns import check_dataset

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hf_condense")


def condense_dataset(
    ds: datasets.Dataset | datasets.DatasetDict,
    method: str = "auto",
    ipc: int | Mapping[Any, int] = 10,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str = "train",
    image_size: int | tuple[int, int] | None = None,
    network: NetworkSpec | None = None,
    preset: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    factor: int | None = None,
    pixel_range: str | None = None,
    compile: CompileOption = "auto",
    accelerator: Accelerator | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 500,
    cache: bool = True,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    budget: float | None = None,
    **method_options: Any,
) -> CondensedDataset | datasets.DatasetDict:
    """Condense a labelled image dataset into a tiny one that trains almost as well. `ds` itself is never changed.

    For an option that is left at None the preset decides, else the method's default; what the caller gives always wins.

    Args:
        ds: A `Dataset`, or a `DatasetDict` whose `split` is condensed; its other splits pass through untouched.
        method: A name in `list_methods()`, or `"auto"`, which picks method and settings from ipc, classes, image size
            and `budget`, by a rule, and says what and why.
        ipc: Images per class, >= 1; or a number for every class that has rows, `{class name: n}`.
        image_column: Image column; default: the only Image column.
        label_column: Label column, also of text, integers or booleans; default: the only ClassLabel.
        split: Which split of a `DatasetDict` is condensed.
        image_size: Resize the shorter side (bicubic, antialiased) and crop the centre, to a side or (height, width).
            Needed if pictures differ in size.
        network: Network that is matched, or gives a coreset's features: a name such as `"convnet"` (width 128),
            `"convnet-w32-d4"`, `"resnet18"`, or a callable `f(channels=, num_classes=, image_size=)`.
        preset: Named options of the method, for example `"paper"` or `"quick"`.
        steps: Updates of the images, >= 1. A coreset has none.
        seed: Seed of every draw. Same seed, version, chunk plan and device type: same bits.
        factor: Multi-formation factor f >= 1: a class has `ipc * f**2` rows, cut from `ipc` stored images.
        pixel_range: `"valid"` keeps images inside [0, 1]; `"free"` lets them leave it, as several papers do.
        compile: Compile forwards: True, False, or `"auto"`, by a rule from shapes and device.
        accelerator: An `accelerate.Accelerator` to run on; default: the existing one, else a new one.
        checkpoint_dir: Where checkpoints go. A run that finds its own checkpoint there goes on from it, bit for bit.
        checkpoint_every: Steps between two checkpoints, >= 1.
        cache: Keep decoded images, features and experts under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        progress: Show progress bars; the Hub's own switches are obeyed as well.
        callbacks: Called after each update as `callback(run, steps_done, loss)`.
        budget: Minutes that `method="auto"` may take, > 0, kept to within a factor of about two; default: 15.
        **method_options: Fields of the method's config, for example `lr_img=`, `batch_real=`, `augment=`.

    Returns:
        A `CondensedDataset` (a `datasets.Dataset`), or a `DatasetDict` whose `split` is one.

    Raises:
        TypeError: If `ds` is a stream, or an option is unknown or of the wrong type.
        ValueError: If a value is out of range, a column is missing or ambiguous, or a picture or label is damaged.
        NonFiniteLossError: If the loss becomes NaN or infinite; checkpoints are kept.

    Example:
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=2, progress=False)
        >>> len(small), small.column_names
        (20, ['image', 'label'])
    """
    started = time.perf_counter()
    dataset = check_dataset(_pick_split(ds, split))
    cls = get_method(method)
    _check_at_least(0, seed=seed)
    _check_at_least(1, checkpoint_every=checkpoint_every)
    _check_kinds(compile, callbacks)
    cls.Config.build(method_options)  # before anything is decoded; presets may still change what is not given
    if budget is not None and (method != "auto" or preset is not None):
        raise ValueError("budget is for method='auto' without a preset, which pick the steps; otherwise give steps=")
    accelerator = get_accelerator(accelerator)
    with accelerator.main_process_first():
        source = load_source(
            dataset,
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            cache=cache,
            progress=progress and accelerator.is_local_main_process,
        ).to(accelerator.device)
    _warn_of_absent(source)

    amounts = class_amounts(ipc, source)
    setting = Setting(max(amounts.values()), len(amounts), source.image_shape, float(source.std.mean()))
    given = {"network": network, "factor": factor, "pixel_range": pixel_range, "steps": steps, **method_options}
    if method == "auto" and preset is None:
        choice = choose(setting, budget, network, device=accelerator.device, cores=torch.get_num_threads())
        given = {**choice.values, **{name: value for name, value in given.items() if value is not None}}
        announce(f"method='auto' runs {choice.reason}", shown=progress and accelerator.is_local_main_process)
    settings = settle(cls, preset, given, setting)
    chosen = cls(cls.Config.build(settings.options))
    channels, height, width = source.image_shape
    run = Run(
        dataset=dataset,
        source=source,
        accelerator=accelerator,
        seed=seed,
        ipc=amounts,
        factor=settings.factor,
        factory=network_factory(
            settings.network, channels=channels, image_size=(height, width), num_classes=len(source.class_names)
        ),
        clamped=settings.pixel_range == "valid",
        plan=Plan(1, 0, False),
        start=initial_set,
        cache=cache,
        progress=progress,
        compile=compile,
    )
    size = checked_size(image_size)
    recipe = make_recipe(run, chosen, settings, method=canonical_name(cls), preset=preset, image_size=size)

    if isinstance(chosen, Selector):
        small = _choose(run, chosen, recipe, started)
    else:
        saving = _saving(run, recipe, checkpoint_dir, checkpoint_every)
        run.plan = saving.resumed.plan if saving.resumed else _plan(run, chosen, recipe)
        optimise(run, chosen, recipe.steps or 0, saving, callbacks)
        small = _learned(run, recipe, started)
    return datasets.DatasetDict({**ds, split: small}) if isinstance(ds, datasets.DatasetDict) else small


def _pick_split(ds: object, split: str) -> object:
    """Return the split of a dict that is to be condensed."""
    if not isinstance(ds, datasets.DatasetDict):
        return ds
    if split not in ds:
        raise ValueError(f"split={split!r} is none of the splits: {', '.join(map(repr, ds))}")
    return ds[split]


def _check_at_least(least: int, **values: object) -> None:
    """Check that values are integers, and not below a bound."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} should be an integer; got {value!r} ({type(value).__name__})")
        if value < least:
            raise ValueError(f"{name} should be at least {least}; got {value}")


def _check_kinds(compile: object, callbacks: Sequence[object]) -> None:
    """Check what Python itself would only complain of much later."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile should be True, False or 'auto'; got {compile!r}")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks should be a list of callables; got {callbacks!r}")


def _warn_of_absent(source: ClassSource) -> None:
    """Name the classes that have no rows, once."""
    if absent := [name for c, name in enumerate(source.class_names) if c not in source.counts]:
        logger.warning("no rows of %s: the condensed set has none either", ", ".join(map(repr, absent)))


def _plan(run: Run, method: Method[Any], recipe: Recipe) -> Plan:
    """Cut the work of a step."""
    network = run.factory.build(run.seed, "template")
    decoded = [n * run.factor**2 for n in run.ipc.values()]
    plan = make_plan(
        num_classes=len(run.ipc),
        num_processes=run.accelerator.num_processes,
        rows_per_class=max(decoded),
        rows_per_step=method.batch_real * len(run.ipc) + sum(decoded),
        steps=recipe.steps or 0,
        activation_bytes=activation_bytes(network, run.source.image_shape),
        batch_statistics=has_batch_statistics(network),
        device=run.device,
        budget=memory_budget(run.device),
        graphs=method.graphs,
        compile=run.compile,
    )
    logger.info("plan: %s", plan)
    return plan


def _saving(run: Run, recipe: Recipe, folder: str | Path | None, every: int) -> Saving:
    """Look for a checkpoint to go on from."""
    facts = identity(recipe, run)
    where = Path(folder) if folder is not None else None
    return Saving(where, every, facts, read_checkpoint(where, facts) if where else None)


def _choose(run: Run, selector: Selector[Any], recipe: Recipe, started: float) -> CondensedDataset:
    """Run a coreset method: real rows as they are, every column and the original bytes."""
    positions = torch.cat(list(select_rows(run, selector, run.ipc).values()))
    rows = run.source.rows[positions].tolist()
    labels = run.source.labels[positions]
    images = run.source.images[positions.to(run.source.images.device)].cpu().float() / 255
    table = run.dataset.with_format("arrow")[[rows[i] for i in round_robin(labels.tolist())]]
    chosen = datasets.Dataset(InMemoryTable(table), info=run.dataset.info.copy(), split=run.dataset.split)
    recipe = completed(recipe, run, seconds=time.perf_counter() - started, rows=rows)
    return CondensedDataset.from_parts(chosen, CondensedTensors(images, labels), recipe, run.dataset)


def _learned(run: Run, recipe: Recipe, started: float) -> CondensedDataset:
    """Turn a learned set into a dataset with the source's image and label columns."""
    if run.accelerator.num_processes > 1:
        from accelerate.utils import broadcast, broadcast_object_list

        for tensor in run.synthetic.parameters().values():
            tensor.data = broadcast(tensor.data)
    tensors = run.synthetic.finished()
    kept = (recipe.image_column, recipe.label_column)
    if dropped := [name for name in run.dataset.column_names if name not in kept]:
        logger.warning("columns without a synthetic counterpart are dropped: %s", ", ".join(map(repr, dropped)))
    recipe = completed(recipe, run, seconds=time.perf_counter() - started)
    if run.accelerator.is_main_process:
        recipe = dataclasses.replace(recipe, nearest=nearest_real(tensors.decoded()[0], run.source, run.seed))
    if run.accelerator.num_processes > 1:
        # Each process has its own clock, but all return the same recipe.
        (recipe,) = broadcast_object_list([recipe])
    features = datasets.Features({name: kind for name, kind in run.dataset.features.items() if name in kept})
    return CondensedDataset.from_parts(decoded_rows(tensors, recipe, features), tensors, recipe, run.dataset)
