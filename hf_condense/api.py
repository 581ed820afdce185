"""The door: `condense_dataset` validates, builds and runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch

from hf_condense.base.checks import integer
from hf_condense.base.devices import CompileOption
from hf_condense.base.paths import local_path
from hf_condense.base.processes import get_accelerator
from hf_condense.base.progress import announce
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.recipe import Recipe
from hf_condense.condensed.writable import check_writable
from hf_condense.engine.auto import choose
from hf_condense.engine.build import build_run, check_request, plan_run
from hf_condense.engine.checkpoint import read_checkpoint
from hf_condense.engine.finish import finish_synthetic, select_coreset
from hf_condense.engine.loop import Callback, Saving, optimise
from hf_condense.engine.method import Composer, Method, Selector
from hf_condense.engine.provenance import identity, make_recipe
from hf_condense.engine.registry import canonical_name, get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import class_amounts, settle
from hf_condense.engine.task import Task
from hf_condense.networks.factory import NetworkSpec
from hf_condense.source.class_source import ClassSource, load_source

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
    storage: str | None = None,
    expand: int | None = None,
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
        ipc: Images per class that may be stored, >= 1; or a number for every class that has rows, `{class name: n}`.
        image_column: Image column; default: the only Image column.
        label_column: Label column, also of text, integers or booleans; default: the only ClassLabel.
        split: Which split of a `DatasetDict` is condensed.
        image_size: Resize the shorter side (bicubic, antialiased) and crop the centre, to a side or (height, width).
            Needed if pictures differ in size.
        network: Network that is matched, or gives a coreset's features: a name such as `"convnet"` (width 128),
            `"convnet-w32-d4"`, `"resnet18"`, or a callable `f(channels=, num_classes=, image_size=)`.
        preset: Named options of the method, for example `"paper"` or `"quick"`.
        steps: Updates of the images, >= 1. Coresets have none.
        seed: Seed of every draw. Same seed, version, chunk plan and device type: same bits.
        storage: Storage form: `"pixels"` (the images themselves) or `"patches"` (images that are cut into patches, each
            up-sampled to a whole row). A class may store `ipc * C * H * W` numbers in any form.
        expand: Rows for each image of the budget, >= 1: 1 for pixels, the square of a factor for patches (default 4).
        factor: Multi-formation factor f >= 1, short for `storage="patches", expand=f*f`.
        pixel_range: `"valid"` keeps images inside [0, 1]; `"free"` lets them leave it, as several papers do.
        compile: Compile forwards: True, False, or `"auto"`, by a rule from shapes and device.
        accelerator: An `accelerate.Accelerator` to run on; default: the existing one, else a new one.
        checkpoint_dir: Where checkpoints go; `~` stands for the home folder. A run that finds its own checkpoint there
            goes on from it, bit for bit.
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
    seed = integer("seed", seed, least=0)
    checkpoint_every = integer("checkpoint_every", checkpoint_every, least=1)
    _check_kinds(compile, callbacks)
    check_request(method, preset, method_options)
    if budget is not None and (method != "auto" or preset is not None):
        raise ValueError("budget is for method='auto' without a preset, which pick the steps; otherwise give steps=")
    accelerator = get_accelerator(accelerator)
    with accelerator.main_process_first():
        source = load_source(
            _pick_split(ds, split),
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            cache=cache,
            progress=progress and accelerator.is_local_main_process,
        ).to(accelerator.device)
    _warn_of_absent(source)

    amounts = class_amounts(ipc, source)
    task = Task(max(amounts.values()), len(amounts), source.image_shape, float(source.std.mean()))
    given: dict[str, Any] = {
        "network": network,
        "storage": storage,
        "expand": expand,
        "factor": factor,
        "pixel_range": pixel_range,
        "steps": steps,
        **method_options,
    }
    if method == "auto":
        choice = choose(task, budget, network, device=accelerator.device, cores=torch.get_num_threads())
        method = choice.method
        if preset is None:
            given = _filled_in(given, choice.values)
            announce(f"method='auto' runs {choice.reason}", shown=progress and accelerator.is_local_main_process)
    cls = get_method(method)
    settings = settle(cls, preset, given, task)
    implementation = cls(cls.Config.build(settings.options))
    run = build_run(
        settings,
        source=source,
        accelerator=accelerator,
        seed=seed,
        ipc=amounts,
        cache=cache,
        progress=progress,
        compile=compile,
    )
    recipe = make_recipe(
        run,
        implementation,
        settings,
        method=canonical_name(cls),
        preset=preset,
        image_size=source.image_size,
    )
    check_writable(recipe, run.dataset)
    if isinstance(implementation, Selector):
        small = select_coreset(run, implementation, recipe, started)
    elif isinstance(implementation, Composer):
        run.synthetic = implementation.compose(run)
        small = finish_synthetic(run, recipe, started)
    else:
        saving = _saving(run, implementation, recipe, checkpoint_dir, checkpoint_every)
        run.plan = saving.resumed.plan if saving.resumed else plan_run(run, implementation, recipe.steps or 0)
        optimise(run, implementation, recipe.steps or 0, saving, callbacks)
        small = finish_synthetic(run, recipe, started)
    return datasets.DatasetDict({**ds, split: small}) if isinstance(ds, datasets.DatasetDict) else small


def _pick_split(ds: Any, split: str) -> Any:
    """Return the split of a dict that is to be condensed."""
    if not isinstance(ds, datasets.DatasetDict):
        return ds
    if split not in ds:
        raise ValueError(f"split={split!r} is none of the splits: {', '.join(map(repr, ds))}")
    return ds[split]


def _check_kinds(compile: object, callbacks: Sequence[object]) -> None:
    """Check what Python itself would only complain of much later."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile should be True, False or 'auto'; got {compile!r}")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks should be a list of callables; got {callbacks!r}")


def _filled_in(given: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given, and what was chosen where the caller left it open; a form is given as a whole."""
    says_form = any(given[name] is not None for name in ("storage", "expand", "factor"))
    chosen = {name: value for name, value in chosen.items() if not (says_form and name in ("storage", "expand"))}
    return {**given, **{name: value for name, value in chosen.items() if given.get(name) is None}}


def _warn_of_absent(source: ClassSource) -> None:
    """Name the classes that have no rows, once."""
    if absent := [name for c, name in enumerate(source.class_names) if c not in source.counts]:
        logger.warning("no rows of %s: the condensed set has none either", ", ".join(map(repr, absent)))


def _saving(run: Run, method: Method[Any], recipe: Recipe, folder: str | Path | None, every: int) -> Saving:
    """Look for a checkpoint to go on from."""
    facts = identity(recipe, run, method)
    where = local_path(folder) if folder is not None else None
    return Saving(where, every, facts, read_checkpoint(where, facts) if where else None)
