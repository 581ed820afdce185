"""`condense_dataset`: it checks what it is given, settles the values, runs the method and returns the set."""

from __future__ import annotations

import inspect
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch

from hf_condense.base.cache import cache_enabled
from hf_condense.base.checks import boolean, byte_count, check_path, compile_option, integer, listed, seed_value
from hf_condense.base.compiled_code import removes_unfinished_code
from hf_condense.base.devices import CompileOption
from hf_condense.base.errors import did_you_mean
from hf_condense.base.files import explained_access
from hf_condense.base.interrupts import Interrupts
from hf_condense.base.memory import limited_memory
from hf_condense.base.paths import local_path
from hf_condense.base.processes import from_main, get_accelerator, main_first
from hf_condense.base.progress import announce
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.names import FACTS
from hf_condense.condensed.files.writable import check_writable
from hf_condense.engine.auto import Choice, choose
from hf_condense.engine.build import build_run, check_request, plan_run
from hf_condense.engine.checkpoint import FILE_NAME, read_checkpoint, workers_in
from hf_condense.engine.finish import finish_synthetic, select_coreset
from hf_condense.engine.initial import check_start
from hf_condense.engine.loop import Callback, Saving, optimise
from hf_condense.engine.method import AnyMethod, Composer, Method, Selector, check_returned
from hf_condense.engine.provenance import identity, make_recipe
from hf_condense.engine.registry import get_method
from hf_condense.engine.run import Run
from hf_condense.engine.settings import Settings, check_ipc, ipc_by_class, settle
from hf_condense.engine.synthetic import SyntheticSet
from hf_condense.engine.task import Task
from hf_condense.engine.tracking import tracked, tracker_host
from hf_condense.networks.factory import NetworkSpec
from hf_condense.source.class_source import ClassSource
from hf_condense.source.load import load_source

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
    max_memory: int | str | None = None,
    accelerator: Accelerator | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 500,
    cache: bool = True,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    log_with: Any = None,
    logging_dir: str | Path = "runs",
    budget: float | None = None,
    **method_options: Any,
) -> CondensedDataset | datasets.DatasetDict:
    """Condense a labelled image dataset into a few images per class to train on. `ds` itself is never changed.

    An argument below that is None is left open: the preset decides, else the default. What the caller gives always
    wins.

    Args:
        ds: A `Dataset`, or a `DatasetDict` whose `split` is condensed; its other splits pass through untouched.
        method: A name in `list_methods()`, or `"auto"`, which chooses the method and its settings by a fixed rule from
            ipc, classes, image size, network, device, cores, processes and `budget`, and logs its choice and the
            reason. Images more than 64 pixels high and wide are composed of crops of real ones by `rded`, if there are
            two classes or more. Smaller ones are learned by `m3d`, with a pool of trained networks if training it takes
            at most a third of the budget and leaves 150 steps, and `steps` is not given. Few whole colour images
            (`storage="pixels"` given, ipc below 4) are learned by `esp` if its experts take at most a third of the
            budget and leave 500 steps, and no steps, batch sizes or image rates are given. With a `preset`, only the
            method is chosen; the settings are those of the preset.
        ipc: Images per class that may be stored, >= 1; or a dict `{class name: n}` with every class that has rows.
            Classes of a ClassLabel may also be named by their integers. A coreset has at most the rows of its class; a
            learned set may have more images.
        image_column: Image column. Default: the only Image column. Transparent pixels become white.
        label_column: Label column; it may also hold text, integers or booleans. Default: the only ClassLabel column.
        split: The split of a `DatasetDict` that is condensed.
        image_size: Side, or (height, width), to which images are resized (shorter side, bicubic, antialiased) and
            cropped at the centre. Required if pictures differ in size.
        network: Network that is matched or gives the features of a coreset: a name such as `"convnet"` (width 128),
            `"convnet-w32-d4"` or `"resnet18"`, or a callable that returns a new module, called with those of
            `channels=, num_classes=, image_size=` that it takes. The name of a ConvNet takes `-w<filters>`,
            `-d<blocks>`, a norm (`-in`, `-bn`, `-ln`, `-gn`, `-nonorm`), an activation (`-relu`, `-leakyrelu`,
            `-sigmoid`, `-gelu`) and a pooling (`-avg`, `-max`, `-nopool`). Default: what the preset says, else
            `"convnet"`; coresets, and `"auto"` on a CPU, take `"convnet-w32"`.
        preset: Name of a set of options of the method, for example `"paper"` or `"quick"`; `hf-condense methods NAME`
            lists them. Default: the one called `"default"`, if the method has it.
        steps: Number of updates of the images, >= 1. Coresets and `rded` have none.
        seed: Seed of every random draw, in 0..2**64 - 1. Equal seed, version and chunk plan give equal bits on a CPU.
            On a GPU, which does not add up in a fixed order, they give sets that are equal up to rounding.
        storage: Storage form: `"pixels"` (the images themselves), `"patches"` (images that are cut into patches, each
            up-sampled to a whole row), `"dct"` (the cosine coefficients that matter most for the class) or `"siren"`
            (a small coordinate network for every row). Default: that of the preset, else pixels. In any form, a class
            may store `ipc * C * H * W` numbers. A preset's `expand` goes with the preset's form: if another form is
            named, that form's default applies.
        expand: Rows decoded from the space of one stored image, >= 1: 1 for pixels, the square of a factor for patches
            (default 4); by default 16 (colour, ipc below 4) or 8 for `"dct"`, and for `"siren"` what gives networks of
            width 6, or 20 for images of 64 pixels or more.
        factor: Multi-formation factor f >= 1, short for `storage="patches", expand=f*f`; 1 is short for pixels.
        pixel_range: `"valid"` keeps pixels within [0, 1]; `"free"` does not, as in several papers. Default: the
            preset's, else `"valid"`.
        store_dtype: Type of the stored numbers in the result: `"float32"`, or `"float16"`, to which they are rounded at
            the end; if that cannot hold one of them, they stay float32, and a warning says so. Pixels and patches in
            the valid range may also be stored as `"uint8"`, with 8 bits per channel. Default: the preset's, else
            `"float32"`.
        compile: Whether to compile forward passes: True, False, or `"auto"`, which decides from shapes and device.
        max_memory: Memory that a step may use, in bytes or as text such as `"4GiB"`; the chunk plan follows from it.
            Default: a quarter to half of what is free. A step that does not fit all the same is cut smaller and
            repeated, except with networks that have batch norm, which need whole batches; with `mtt`, which keeps all
            steps of its student whatever the plan; and with `tesla`, `datm` and `esp` in several processes.
        accelerator: The `accelerate.Accelerator` to run on, with mixed precision `"no"` or `"bf16"`. Default: the
            existing one, else a new one. Accelerate keeps one device and precision for a whole program, so make an
            accelerator with settings of your own before the first call. `"bf16"` rounds embeddings, and the students'
            gradients in `mtt`, `tesla`, `datm` and `esp`; the synthetic side of `dc`, `dsa` and `idc` stays in float32.
        checkpoint_dir: Folder of the checkpoint; `~` stands for the home folder. A run that finds its own checkpoint
            there resumes from it and goes on as if nothing had happened: on a CPU bit for bit. Each checkpoint replaces
            the one before; one that cannot be written is only warned of. SIGINT (Ctrl-C) and SIGTERM finish the step
            and write a checkpoint before they end the run; a second signal ends it at once. A folder of condensed sets
            is refused. Methods without steps have no checkpoints.
        checkpoint_every: Steps between two checkpoints, >= 1.
        cache: Whether to keep decoded images, features, experts, pools, teachers and the networks that storage='siren'
            fits to rows under `$HF_HOME/condense`, unless `datasets.disable_caching()` was called. Where `network` is a
            callable, no network that was trained from it is kept: a run that resumes records its experts again.
        progress: Whether to show progress bars, unless they are disabled for the Hugging Face libraries. They need a
            terminal or a notebook; each checkpoint is also logged, to the logger `hf_condense` at level INFO.
        callbacks: Functions that are called after each update as `callback(run, steps_done, loss)`. On a GPU, each step
            then waits for its loss. If one raises, the run ends, and those after it are not called; with a
            `checkpoint_dir`, the run goes on after this step the next time.
        log_with: Trackers of Accelerate that the run is reported to, as `accelerate.Accelerator(log_with=)` takes them:
            `"tensorboard"`, `"wandb"`, a tracker, or a list of these. They get the loss, steps per second and, every
            `checkpoint_every` steps, a picture of the set. On a GPU, each step then waits for its loss. Methods without
            steps have nothing to report.
        logging_dir: Folder of trackers that write files, such as TensorBoard.
        budget: Minutes that `method="auto"` may take, > 0, met within a factor of about two if 10 to 10,000 steps fit.
            It is refused with another method or a preset. Default: 15.
        **method_options: Fields of the method's config, for example `lr_img=`, `batch_real=`, `augment=`. They replace
            the values of the preset. None is a value like any other where the option may be None; elsewhere it leaves
            the option open.

    Returns:
        A `CondensedDataset` (a `datasets.Dataset`), or a `DatasetDict` whose `split` is one. Save or publish the set by
        its own `save_condensed` or `push_to_hub`: the methods of a `DatasetDict`, and `save_to_disk`, keep 8-bit rows
        only.

    Raises:
        TypeError: If `ds` is a stream, or an argument is unknown or of the wrong type.
        ValueError: If a value is out of range, a column is missing or ambiguous, a picture or label cannot be used, a
            tracker is unknown or not installed, or the checkpoint is damaged, of another run, or beyond `steps`.
        MemoryError: If a step does not fit into memory, however it is cut. Checkpoints are kept.
        NonFiniteLossError: If the loss becomes NaN or infinite. Checkpoints are kept.
        OSError: If the cache or the folder for checkpoints cannot be read or written when the run begins, or if that
            folder holds condensed sets.
        RuntimeError: If compiled code in torch's cache was unfinished, because a process was killed (the file is
            removed, so that the same call works), or if processes or mixed precision are set up in a way that is not
            supported.
        RunInterrupted: If SIGINT or SIGTERM arrives, a `KeyboardInterrupt` that says how to go on. A program with
            handlers of its own for these signals keeps them.

    Example:
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=2, progress=False)
        >>> len(small), small.column_names
        (20, ['image', 'label'])
    """
    started = time.perf_counter()
    seed = seed_value("seed", seed)
    checkpoint_every = integer("checkpoint_every", checkpoint_every, least=1)
    compile = compile_option(compile)
    cache, progress = boolean("cache", cache), boolean("progress", progress)
    if checkpoint_dir is not None:
        check_path("checkpoint_dir", checkpoint_dir)
    check_path("logging_dir", logging_dir)
    _check_callbacks(callbacks)
    # What is wrong whatever the data are is said before hours of reading.
    given: dict[str, Any] = {
        "network": network,
        "storage": storage,
        "expand": expand,
        "factor": factor,
        "pixel_range": pixel_range,
        "store_dtype": store_dtype,
        "steps": steps,
    }
    candidates = check_request(method, preset, method_options, given, budget, arguments=_ARGUMENTS)
    given |= method_options
    for name, amount in ipc.items() if isinstance(ipc, Mapping) else [(None, ipc)]:
        check_ipc(amount, name)
    most_memory = None if max_memory is None else byte_count("max_memory", max_memory)
    with (
        plain_torch(),
        removes_unfinished_code(),
        limited_memory(most_memory),
        Interrupts(_remains_in_cache(cache)) as interrupts,
    ):
        accelerator = get_accelerator(accelerator)
        if checkpoint_dir is not None and any(issubclass(get_method(name), Method) for name in candidates):
            from_main(accelerator, partial(_claim, local_path(checkpoint_dir)))
        trackers = tracker_host(log_with, logging_dir)
        shows_progress = progress and accelerator.is_local_main_process
        read = partial(
            load_source,
            _pick_split(ds, split),
            image_column=image_column,
            label_column=label_column,
            image_size=image_size,
            cache=cache,
            progress=shows_progress,
            streams=any(get_method(name).streams for name in candidates),  # "auto" takes one if images are large
        )
        source = main_first(accelerator, read).to(accelerator.device)
        _warn_of_classes(source)
        is_coreset = any(issubclass(get_method(name), Selector) for name in candidates)
        amounts = ipc_by_class(ipc, source, of_real_rows=is_coreset)
        task = Task.of(amounts, source)
        settled_preset = preset
        workers: tuple[int, int] | None = None
        steps_are_chosen = False
        if method == "auto":
            workers = from_main(accelerator, partial(_workers, accelerator, checkpoint_dir))
            open_values = given if preset is None else None  # with a preset, the method is all that is chosen
            choice = choose(
                task,
                budget,
                network,
                device=accelerator.device,
                workers=workers[0],
                processes=workers[1],
                candidates=candidates,
                given=open_values,
            )
            if preset is not None:
                choice = Choice(choice.method, preset, {}, f"{choice.method} with preset={preset!r}")
            announce(f"method='auto' runs {choice.reason}", shown=shows_progress)
            steps_are_chosen = given["steps"] is None and "steps" in choice.values
            method, settled_preset, given = choice.method, choice.preset, _filled_in(given, choice.values)
            if source.streams and not get_method(method).streams:
                source = main_first(accelerator, partial(read, streams=False)).to(accelerator.device)
        settings = settle(get_method(method), settled_preset, given, task)
        run = build_run(
            settings,
            source=source,
            ipc=amounts,
            accelerator=accelerator,
            seed=seed,
            cache=cache,
            progress=progress,
            compile=compile,
            interrupts=interrupts,
        )
        interrupts.remains = _remains_in_cache(cache, run.factory.named)
        outside = _Outside(
            folder=checkpoint_dir,
            every=checkpoint_every,
            callbacks=callbacks,
            trackers=trackers,
            started=started,
            workers=workers,
            steps_are_chosen=steps_are_chosen,
        )
        small = _condense(run, get_method(method), settings, preset, outside)
    return datasets.DatasetDict({**ds, split: small}) if isinstance(ds, datasets.DatasetDict) else small


_MANY_CLASSES = 10  # of one row each, from which on labels are hardly labels
# One of these may be meant by an unknown option.
_ARGUMENTS = tuple(name for name in inspect.signature(condense_dataset).parameters if name != "method_options")


@dataclass(frozen=True)
class _Outside:
    """Where a run saves and reports: checkpoints, callbacks, trackers; and how the call began."""

    folder: str | Path | None
    every: int
    callbacks: Sequence[Callback]
    trackers: Accelerator | None
    started: float
    workers: tuple[int, int] | None
    steps_are_chosen: bool  # by method="auto"

    def saving(self, run: Run, identity: dict[str, Any]) -> Saving:
        """Return where checkpoints of a run are written, with an earlier one if there is one."""
        folder = None if self.folder is None else local_path(self.folder)
        resumed = None
        if folder is not None:  # the main process alone writes them, perhaps to a disk that the others do not see
            read = partial(read_checkpoint, folder, identity, steps_are_chosen=self.steps_are_chosen)
            resumed = from_main(run.accelerator, read)
        return Saving(folder, self.every, identity, resumed, self.started, self.workers)


def _claim(folder: Path) -> None:
    """Make the folder of checkpoints, and see that it can be written to before hours of work."""
    with explained_access(folder):
        holds_sets = (folder / FACTS).exists() or any(folder.glob(f"*/{FACTS}"))
        # An earlier run may have saved its set beside its checkpoint.
        if holds_sets and not (folder / FILE_NAME).exists():
            raise FileExistsError(
                f"checkpoint_dir={str(folder)!r} holds condensed sets; pass a folder of its own, such as "
                f"{str(folder / 'checkpoint')!r}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def _condense(
    run: Run,
    cls: AnyMethod,
    settings: Settings,
    preset: str | None,
    outside: _Outside,
) -> CondensedDataset:
    """Run a method of any kind and return its set."""
    method = cls(cls.Config.build(settings.options))
    if isinstance(method, Method):
        check_start(type(method), method.config)  # a preset may have named it
    recipe = make_recipe(run, method, settings, preset)
    check_writable(recipe, run.dataset, len(run.ipc))
    if not isinstance(method, Method):
        unused = {
            "checkpoint_dir": outside.folder,
            "callbacks": outside.callbacks,
            "log_with": outside.trackers,
            "compile": run.compile is True,
        }
        if names := [name for name, value in unused.items() if value]:
            verb = "has" if len(names) == 1 else "have"
            logger.warning("%s %s no effect: %r takes no steps", ", ".join(names), verb, recipe.method)
    if isinstance(method, Selector):
        return select_coreset(run, method, recipe, outside.started)
    if isinstance(method, Composer):
        run.synthetic, earlier = method.compose(run), 0.0
        check_returned("compose", method.info.name, run.synthetic, SyntheticSet)
    else:
        steps, saving = recipe.steps or 0, outside.saving(run, identity(recipe, run, method))
        run.plan = plan_run(run, method, steps, saving.resumed)
        with tracked(outside.trackers, recipe.to_dict(), steps, outside.every) as reports:
            optimise(run, method, steps, saving, [*outside.callbacks, *reports])
        earlier = saving.earlier_seconds
    return finish_synthetic(run, recipe, outside.started - earlier)


def _workers(accelerator: Accelerator, checkpoint_dir: str | Path | None) -> tuple[int, int]:
    """Return for how many workers of a process, and processes, `method="auto"` chooses.

    Nodes may have different numbers of cores, but all processes must make the same choice. So must a run that resumes.
    """
    chosen_before = None if checkpoint_dir is None else workers_in(local_path(checkpoint_dir))
    of_a_process = torch.get_num_threads() if accelerator.device.type == "cpu" else 1
    return chosen_before or (of_a_process, accelerator.num_processes)


def _remains_in_cache(cache: bool, named: bool = True) -> str:
    """Say what an interruption before the first step leaves behind; networks without a name are not cached."""
    if not cache_enabled(cache):
        return "nothing was kept, because the cache is off"
    if not named:
        return "decoded images are in the cache, but nothing of networks, because network= is a callable"
    return "images decoded and networks recorded so far are in the cache; the same run reuses them"


def _pick_split(ds: Any, split: str) -> Any:
    """Return the split to condense of a `DatasetDict`; return anything else as it is."""
    if not isinstance(ds, datasets.DatasetDict):
        if split != "train":
            raise ValueError(f"split={split!r} is for a DatasetDict, but ds is a single split; leave split out")
        return ds
    if split not in ds:
        hint = did_you_mean(split, ds) if isinstance(split, str) else ""
        raise ValueError(f"split={split!r} is not a split of the dataset, which has {', '.join(map(repr, ds))}{hint}")
    return ds[split]


def _check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check the callbacks, whose errors would otherwise occur much later."""
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks should be a list of callables; got {callbacks!r}")
    for callback in callbacks:
        try:
            inspect.signature(callback, follow_wrapped=False).bind(None, 1, 0.0)
        except ValueError:  # some functions that are written in C do not tell
            continue
        except TypeError as error:
            raise TypeError(f"callbacks are called as callback(run, steps_done, loss); {callback!r}: {error}") from None


def _filled_in(given: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's values, with the chosen ones, which follow from them, where the caller left them open."""
    return {**given, **{name: value for name, value in chosen.items() if given.get(name) is None}}


def _warn_of_classes(source: ClassSource) -> None:
    """Log one warning that names the classes without rows, and one if every row is a class of its own."""
    if len(source.counts) >= _MANY_CLASSES and max(source.counts.values()) == 1:
        logger.warning(
            "each of the %d classes has one row, so that nothing can be condensed: is %r a label, or an identifier?",
            len(source.counts),
            source.label_column,
        )
    if absent := [name for c, name in enumerate(source.class_names) if c not in source.counts]:
        logger.warning("classes without rows, which the condensed set lacks too: %s", listed(absent))
