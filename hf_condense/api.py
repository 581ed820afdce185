"""`condense_dataset`: it checks what it is given, settles the values, runs the method and returns the set."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch

from hf_condense.base.checks import integer
from hf_condense.base.devices import CompileOption
from hf_condense.base.paths import local_path
from hf_condense.base.processes import get_accelerator
from hf_condense.base.progress import announce
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.writable import check_writable
from hf_condense.engine.auto import choose
from hf_condense.engine.build import build_run, check_request, plan_run
from hf_condense.engine.checkpoint import read_checkpoint
from hf_condense.engine.finish import finish_synthetic, select_coreset
from hf_condense.engine.loop import Callback, Saving, optimise
from hf_condense.engine.method import AnyMethod, Composer, Selector
from hf_condense.engine.provenance import identity, make_recipe
from hf_condense.engine.registry import canonical_name, get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import Settings, class_amounts, settle
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
    store_dtype: str | None = None,
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

    If an option is None, the preset decides, else the method's default. What the caller gives always wins.

    Args:
        ds: A `Dataset`, or a `DatasetDict` whose `split` is condensed; its other splits pass through untouched.
        method: A name in `list_methods()`, or `"auto"`, which chooses method and settings from ipc, classes, image size
            and `budget` by a rule, and logs its choice and the reason.
        ipc: Images per class that may be stored, >= 1; or a dict `{class name: n}` with every class that has rows.
        image_column: Image column. Default: the only Image column.
        label_column: Label column; it may also hold text, integers or booleans. Default: the only ClassLabel column.
        split: The split of a `DatasetDict` that is condensed.
        image_size: Side, or (height, width), to which images are resized (shorter side, bicubic, antialiased) and
            cropped at the centre. Required if pictures differ in size.
        network: Network that is matched or gives the features of a coreset: a name such as `"convnet"` (width 128),
            `"convnet-w32-d4"` or `"resnet18"`, or a callable `f(channels=, num_classes=, image_size=)`. Default:
            `"convnet"`, or what the preset says; coresets take `"convnet-w32"`.
        preset: Name of a set of options of the method, for example `"paper"` or `"quick"`.
        steps: Number of updates of the images, >= 1. Coresets have none.
        seed: Seed of every random draw. Equal seed, version, chunk plan and device type give equal bits.
        storage: Storage form: `"pixels"` (the images themselves), `"patches"` (images that are cut into patches, each
            up-sampled to a whole row), `"dct"` (the cosine coefficients that matter most for the class) or `"siren"`
            (a small coordinate network for every row). In any form, a class may store `ipc * C * H * W` numbers.
        expand: Rows for each image of the budget, >= 1: 1 for pixels, the square of a factor for patches (default 4);
            by default 16 (colour, ipc below 4) or 8 for `"dct"`, and for `"siren"` what gives networks of width 6.
        factor: Multi-formation factor f >= 1, short for `storage="patches", expand=f*f`; 1 is short for pixels.
        pixel_range: `"valid"` keeps pixels within [0, 1]; `"free"` does not, as in several papers.
        store_dtype: Type of the stored numbers in the result: `"float32"`, or `"float16"`, to which they are rounded
            at the end.
        compile: Whether to compile forward passes: True, False, or `"auto"`, which decides from shapes and device.
        accelerator: The `accelerate.Accelerator` to run on. Default: the existing one, else a new one.
        checkpoint_dir: Folder of the checkpoint; `~` stands for the home folder. A run that finds its own checkpoint
            there resumes from it, bit for bit.
        checkpoint_every: Steps between two checkpoints, >= 1.
        cache: Whether to keep decoded images, features and experts under `$HF_HOME/condense`, unless
            `datasets.disable_caching()` was called.
        progress: Whether to show progress bars, unless they are disabled for the Hugging Face libraries.
        callbacks: Functions that are called after each update as `callback(run, steps_done, loss)`.
        budget: Minutes that `method="auto"` may take, > 0. It is met within a factor of about two. Default: 15.
        **method_options: Fields of the method's config, for example `lr_img=`, `batch_real=`, `augment=`.

    Returns:
        A `CondensedDataset` (a `datasets.Dataset`), or a `DatasetDict` whose `split` is one.

    Raises:
        TypeError: If `ds` is a stream, or an option is unknown or of the wrong type.
        ValueError: If a value is out of range, a column is missing or ambiguous, or a picture or label cannot be used.
        NonFiniteLossError: If the loss becomes NaN or infinite. Checkpoints are kept.

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
        raise ValueError("budget is for method='auto' without a preset, which chooses the steps; otherwise pass steps=")
    given: dict[str, Any] = {
        "network": network,
        "storage": storage,
        "expand": expand,
        "factor": factor,
        "pixel_range": pixel_range,
        "store_dtype": store_dtype,
        "steps": steps,
        **method_options,
    }
    with plain_torch():
        accelerator = get_accelerator(accelerator)
        shows_progress = progress and accelerator.is_local_main_process
        with accelerator.main_process_first():
            source = load_source(
                _pick_split(ds, split),
                image_column=image_column,
                label_column=label_column,
                image_size=image_size,
                cache=cache,
                progress=shows_progress,
            ).to(accelerator.device)
        _warn_of_absent(source)
        amounts = class_amounts(ipc, source)
        task = Task(max(amounts.values()), len(amounts), source.image_shape, float(source.std.mean()))
        settled_preset = preset
        if method == "auto":
            choice = choose(task, budget, network, device=accelerator.device, cores=torch.get_num_threads())
            method = choice.method
            if preset is None:
                given, settled_preset = _filled_in(given, choice.values), choice.preset
                announce(f"method='auto' runs {choice.reason}", shown=shows_progress)
        settings = settle(get_method(method), settled_preset, given, task)
        facts = {"accelerator": accelerator, "seed": seed, "cache": cache, "progress": progress, "compile": compile}
        run = build_run(settings, source=source, ipc=amounts, **facts)
        checkpoints = _Checkpoints(checkpoint_dir, checkpoint_every)
        small = _condense(run, get_method(method), settings, preset, checkpoints, callbacks, started)
    return datasets.DatasetDict({**ds, split: small}) if isinstance(ds, datasets.DatasetDict) else small


@dataclass(frozen=True)
class _Checkpoints:
    """Where and how often the caller wants checkpoints."""

    folder: str | Path | None
    every: int

    def saving(self, identity: dict[str, Any]) -> Saving:
        """Return where checkpoints of a run are written, with an earlier one if there is one."""
        folder = None if self.folder is None else local_path(self.folder)
        return Saving(folder, self.every, identity, read_checkpoint(folder, identity) if folder else None)


def _condense(
    run: Run,
    cls: AnyMethod,
    settings: Settings,
    preset: str | None,
    checkpoints: _Checkpoints,
    callbacks: Sequence[Callback],
    started: float,
) -> CondensedDataset:
    """Run a method of any kind and return its set."""
    method = cls(cls.Config.build(settings.options))
    recipe = make_recipe(
        run, method, settings, method=canonical_name(cls), preset=preset, image_size=run.source.image_size
    )
    check_writable(recipe, run.dataset)
    if isinstance(method, Selector):
        return select_coreset(run, method, recipe, started)
    if isinstance(method, Composer):
        run.synthetic = method.compose(run)
    else:
        saving = checkpoints.saving(identity(recipe, run, method))
        run.plan = saving.resumed.plan if saving.resumed else plan_run(run, method, recipe.steps or 0)
        optimise(run, method, recipe.steps or 0, saving, callbacks)
    return finish_synthetic(run, recipe, started)


def _pick_split(ds: Any, split: str) -> Any:
    """Return the split to condense of a `DatasetDict`; return anything else as it is."""
    if not isinstance(ds, datasets.DatasetDict):
        return ds
    if split not in ds:
        raise ValueError(f"split={split!r} should be one of the splits: {', '.join(map(repr, ds))}")
    return ds[split]


def _check_kinds(compile: object, callbacks: Sequence[object]) -> None:
    """Check arguments whose errors would otherwise occur much later."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile should be True, False or 'auto'; got {compile!r}")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks should be a list of callables; got {callbacks!r}")


def _filled_in(given: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's values, with the chosen ones where the caller left them open."""
    # A caller who says anything about the storage form decides it as a whole.
    says_form = any(given[name] is not None for name in ("storage", "expand", "factor"))
    chosen = {name: value for name, value in chosen.items() if not (says_form and name in ("storage", "expand"))}
    return {**given, **{name: value for name, value in chosen.items() if given.get(name) is None}}


def _warn_of_absent(source: ClassSource) -> None:
    """Log one warning that names the classes without rows."""
    if absent := [name for c, name in enumerate(source.class_names) if c not in source.counts]:
        logger.warning("classes without rows, which the condensed set lacks too: %s", ", ".join(map(repr, absent)))
