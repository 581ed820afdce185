"""The command line `hf-condense`: a thin layer over the functions of the package.

Everything heavy is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hf_condense._version import __version__
from hf_condense.base.errors import CannotRunError, CondensedFormatError, RunInterrupted, plain_text
from hf_condense.base.paths import local_path
from hf_condense.base.tables import plain_table, visible
from hf_condense.cli_text import as_options, command_line, facts_table, json_text, method_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from PIL.Image import Image

    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.files.facts import Facts
    from hf_condense.condensed.scores import Evaluation
    from hf_condense.condensed.scores.tabular import Tabular
    from hf_condense.engine.profiling import StepProfile
    from hf_condense.evaluation.tensor_sets import TensorSet

# The demo: what fits into about a minute on two cores.
DEMO_METHOD = "dm"
DEMO_NETWORK = "convnet-w32"
DEMO_STEPS = 80
DEMO_BATCH_REAL = 64
DEMO_AUGMENT = "color_crop_cutout_scale_rotate"  # no flips: mirroring changes a digit's meaning
DEMO_EPOCHS = 300
DEMO_MAX_UPDATES = 60  # of every network
DEMO_PICTURE = "condensed_vs_random.png"

DEFAULT_NETWORK = "convnet"  # of `eval`

_USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, ImportError, MemoryError, CannotRunError)

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., None])


class _OneLineError(click.ClickException):
    """An error that ends the program with exit code 1 and one line on stderr."""

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"error: {visible(' '.join(self.message.split()))}", file=file, err=file is None)


class _Commands(click.Group):
    """Commands that report a user's error in one line instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which one meets them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except RunInterrupted as error:
            click.echo(self._in_options(ctx, error), err=True)
            ctx.exit(128 + (error.signal or signal.SIGTERM))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)
        except Exception as error:
            if ctx.params["debug"] or not _is_of_user(error):
                raise
            raise _OneLineError(self._in_options(ctx, error) or type(error).__name__) from error

    def _in_options(self, ctx: click.Context, error: BaseException) -> str:
        """Return the message of an error in the options of the command that ran."""
        return as_options(str(error), self.commands.get(ctx.invoked_subcommand or "", self))


def _is_of_user(error: Exception) -> bool:
    """Return whether the message of an error tells its user what is wrong, as it does where memory is short."""
    if isinstance(error, _USER_ERRORS) or "torch" not in sys.modules:
        return isinstance(error, _USER_ERRORS)
    from hf_condense.base.memory import is_out_of_memory

    return is_out_of_memory(error)


def _echo(message: str, err: bool = False) -> None:
    """Print a message, from the main process alone if a run has several."""
    from hf_condense.base.processes import is_main_process

    if is_main_process():
        click.echo(message, err=err)


def _by_main(make: Callable[[], Result]) -> Result:
    """Return what a function returns in the main process of a run; the other ones wait for it."""
    from hf_condense.base.processes import in_main_process

    return in_main_process(make)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--debug", is_flag=True, help="Show the library's log, and full tracebacks.")
@click.version_option(__version__, prog_name="hf-condense")
def main(debug: bool) -> None:
    """Condense a labelled image dataset into a few images per class, and measure what they are worth."""
    if debug:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("hf_condense").setLevel(logging.INFO)


class _Integer(click.IntRange):
    """An integer within bounds, which the help shows anyway."""

    name = "integer"


class _FilePath(click.Path):
    """A path, in which `~` stands for the home folder even where the shell leaves it alone, as in `--out=~/sets`."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(os.path.expanduser(value), param, ctx)


_cache_option = click.option(
    "--cache/--no-cache", default=True, help="Keep what is decoded and trained under $HF_HOME, and use what is there."
)


def _column_options(command: Command) -> Command:
    """Add the options that name the image and the label column."""
    command = click.option("--label-column", help="Label column.  [default: the only ClassLabel]")(command)
    return click.option("--image-column", help="Image column.  [default: the only Image column]")(command)


@main.command(short_help="See it at work on an excerpt of MNIST, offline.")
@click.option("--out", type=_FilePath(file_okay=False), default=Path("condensed/demo"), help="Folder to save to.")
@click.option("--ipc", type=_Integer(1, 500), default=1, help="Images per class.")
@click.option("--seeds", type=_Integer(1), default=3, help="Networks trained on each set.")
@click.option("--steps", type=_Integer(1), default=DEMO_STEPS, help="Updates of the images.")
@click.option("--max-updates", type=_Integer(1), default=DEMO_MAX_UPDATES, help="Updates of every trained network.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(out: Path, ipc: int, seeds: int, steps: int, max_updates: int, quiet: bool) -> None:
    """Condense an excerpt of MNIST that ships with the package, and measure what the result is worth.

    The demo trains networks on the condensed images and on as many random real images, and one network on the whole
    excerpt. It saves the set and a picture of both kinds of images with their accuracies, and loads the set back. It
    needs no internet connection and takes less than a minute on two cores.
    """
    from hf_condense import Evaluation, condense_dataset, evaluate
    from hf_condense.demo_data import load_demo

    started = time.perf_counter()
    ds = load_demo()
    small = condense_dataset(
        ds["train"],
        DEMO_METHOD,
        ipc,
        network=DEMO_NETWORK,
        steps=steps,
        batch_real=DEMO_BATCH_REAL,
        augment=DEMO_AUGMENT,
        cache=False,
        progress=not quiet,
    )
    _echo(f"Condensed {len(ds['train'])} images of MNIST into {len(small)} in {_seconds(started)}.")
    _echo(f"Training {seeds} networks ({DEMO_NETWORK}) on these and on random rows, and one on the whole excerpt ...")
    settings: dict[str, Any] = {
        "networks": (DEMO_NETWORK,),
        "epochs": DEMO_EPOCHS,
        "max_updates": max_updates,
        "progress": not quiet,
    }
    compared = evaluate(small, ds["test"], seeds=seeds, cache=False, **settings)
    # The whole excerpt costs most and varies least, so one network is enough.
    whole = evaluate(small, ds["test"], seeds=1, baselines="full", cache=False, **settings).scores[-1]
    _echo(f"\n{Evaluation((*compared.scores, whole))}\n")
    folder = _by_main(lambda: small.save_condensed(out, overwrite=True))
    random = condense_dataset(ds["train"], "random", ipc, cache=False, progress=False)
    _by_main(lambda: _demo_picture(small, random, compared).save(out / DEMO_PICTURE))
    _by_main(lambda: _check_equal(small, folder))
    _echo(f"Saved {folder} and loaded it back: equal to the last bit.")
    _echo(f"Look at {out / DEMO_PICTURE}: random rows beside condensed ones. All of this took {_seconds(started)}.")


@main.command(short_help="Condense a dataset and save the result.")
@click.argument("dataset")
@click.option("--config", help="Configuration of the dataset, if it has several.")
@click.option("--split", default="train", help="Split to condense.")
@click.option("--method", default="auto", help="Method; `hf-condense methods` lists them.")
@click.option("--ipc", type=_Integer(1), default=10, help="Images per class.")
@_column_options
@click.option("--image-size", help="Resize the shorter side to this, or to HEIGHTxWIDTH, and crop the centre.")
@click.option("--network", help="Network, such as convnet-w32 or resnet18.  [default: the preset's]")
@click.option("--steps", type=_Integer(1), help="Updates of the images.  [default: the preset's]")
@click.option(
    "--preset",
    help="Named set of the method's options: quick takes minutes, paper days on a CPU; `hf-condense methods NAME` "
    "lists them.",
)
@click.option("--budget", type=float, metavar="MINUTES", help="Minutes that --method auto may take.  [default: 15]")
@click.option("--seed", type=_Integer(0), default=0, help="Seed of every draw.")
@click.option(
    "--storage",
    metavar="FORM",
    help="What is stored: pixels (images), patches (smaller images), dct (frequencies) or siren (small networks).  "
    "[default: the preset's, else pixels]",
)
@click.option("--expand", type=_Integer(1), help="Rows for each image of the budget.  [default: the form's]")
@click.option("--factor", type=_Integer(1), help="Short for --storage patches --expand FACTOR*FACTOR.")
@click.option(
    "--store-dtype",
    type=click.Choice(["float32", "float16", "uint8"]),
    help="Type of the stored numbers; float16 takes half the bytes, uint8 (images only) a quarter.  "
    "[default: the preset's, else float32]",
)
@click.option(
    "--pixel-range",
    type=click.Choice(["valid", "free"]),
    help="valid keeps pixels between black and white, free does not.  [default: the preset's, else valid]",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the method; may be repeated."
)
@click.option(
    "--checkpoint-dir",
    type=_FilePath(file_okay=False),
    help="Folder of the checkpoint. Ctrl-C and SIGTERM finish the step and save one; the same command goes on from it.",
)
@click.option("--checkpoint-every", type=_Integer(1), default=500, help="Steps between two checkpoints.")
@click.option(
    "--max-memory",
    metavar="BYTES",
    help="Memory that a step may use, such as 4GiB.  [default: a quarter to half of what is free]",
)
@click.option(
    "--log-with", multiple=True, metavar="TRACKER", help="Tracker to report to, such as tensorboard; may be repeated."
)
@click.option("--logging-dir", type=_FilePath(file_okay=False), default=Path("runs"), help="Folder of trackers' files.")
@_cache_option
@click.option("--profile", is_flag=True, help="Print where the time goes: parts of the run, and operations of a step.")
@click.option("--out", type=_FilePath(file_okay=False), help="Folder to save to.  [default: condensed/DATASET]")
@click.option(
    "--name",
    help="Name of the set there, and in the repository.  [default: METHOD_ipcN and the storage form, as in "
    "m3d_ipc1_dct8]",
)
@click.option("--overwrite", is_flag=True, help="Replace a set of the same name that was made with another recipe.")
@click.option(
    "--push", "repo", metavar="USER/REPO", help="Also publish the set in this repository; see `hf-condense push`."
)
@click.option("--private", is_flag=True, default=None, help="If --push creates the repository, make it private.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def run(
    dataset: str,
    config: str | None,
    split: str,
    image_size: str | None,
    options: Sequence[str],
    out: Path | None,
    name: str | None,
    overwrite: bool,
    repo: str | None,
    private: bool | None,
    quiet: bool,
    log_with: tuple[str, ...],
    profile: bool,
    **settings: Any,
) -> None:
    """Condense DATASET, a Hub id or a folder, and save the result.

    Example: hf-condense run uoft-cs/cifar10 --method dm --ipc 10 --option lr_img=5

    Exit codes: 0 if all went well, 1 for an error, 2 for a wrong command line, 130 after SIGINT (Ctrl-C), 143 after
    SIGTERM.
    """
    method_options = _method_options(options, reserved=settings, method=settings["method"])
    size = None if image_size is None else _parse_size(image_size)
    _check_run(method_options, size, name, repo, **settings)

    if private and repo is None:
        raise click.UsageError("--private is for the repository of --push, which is missing")
    if split != "train" and _is_one_split(dataset):
        raise click.UsageError(f"--split {split}: {dataset!r} holds a single split, so there is none to choose")
    from datasets import DatasetDict

    from hf_condense import condense_dataset
    from hf_condense.base.files import check_place

    place = out or Path("condensed") / Path(dataset).resolve().name
    if os.environ.get("RANK", "0") == "0":  # there is no accelerator yet; the main process alone saves
        check_place(local_path(place))
    started = time.perf_counter()
    splits = _splits(dataset, config)
    has_test = isinstance(splits, DatasetDict) and "test" in splits
    ds = _picked(splits, dataset, split, "--split")
    steps = _step_profile() if profile else None
    watchers: dict[str, Any] = {"callbacks": [] if steps is None else [steps], "log_with": list(log_with) or None}
    small = condense_dataset(ds, image_size=size, progress=not quiet, **watchers, **settings, **method_options)
    if steps is not None:
        _echo(f"{steps.report()}\n")
    folder = _by_main(lambda: _save(small, place, overwrite, name))
    _echo(f"Made {len(small)} images of {len(small.recipe.class_names)} classes in {_seconds(started)}.")
    _echo(f"Saved {folder}.")
    data = {"source": dataset, "source_split": None if split == "train" else split, "config": config}
    if split == "test" or not has_test:
        data["test"] = "TEST_DATASET"
    columns = {column: settings[column] for column in ("image_column", "label_column")}
    _echo(f"To see what the set is worth:  {command_line('eval', folder, **data, **columns, **_short_training(small))}")
    if repo is not None:
        try:
            _publish(small, repo, name, private=private, overwrite=overwrite)
        except _USER_ERRORS:
            again = command_line("push", folder, repo, name=name, private=private, overwrite=overwrite)
            _echo(f"Not published. To try again:  {again}", err=True)
            raise


@main.command(short_help="Publish a set on the Hub.")
@click.argument("folder", type=_FilePath())
@click.argument("repo", metavar="USER/REPO")
@click.option("--name", help="Which set of the folder.  [default: the one its card names]")
@click.option(
    "--private", is_flag=True, default=None, help="If the repository is new, make it private.  [default: your settings]"
)
@click.option("--revision", metavar="BRANCH", help="Push to this branch; it is created if missing.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--message", "commit_message", help="Title of the commit.  [default: Upload NAME]")
@click.option("--license", help="Licence on the card.  [default: the source's, if known]")
@click.option("--set-default", is_flag=True, help="Make this the set that is loaded when no name is given.")
@click.option("--replace-card", is_flag=True, help="Write a new card instead of keeping the text of the old one.")
@click.option("--overwrite", is_flag=True, help="Replace a set of the same name that was made with another recipe.")
@click.option("--page", is_flag=True, help="Add a page that shows all sets; later pushes renew it.")
def push(folder: Path, repo: str, name: str | None, **settings: Any) -> None:
    """Publish the set in FOLDER on the Hub: tensors, recipe, Parquet and card in one commit.

    This needs a token with write access: `hf auth login`, or the environment variable HF_TOKEN.
    """
    from huggingface_hub.utils import validate_repo_id

    from hf_condense import load_condensed
    from hf_condense.condensed.folder import pick, resolve_folder

    validate_repo_id(repo)
    small = load_condensed(folder, name)
    place = pick(resolve_folder(folder), name)
    # The folder of one set may have been renamed, so that only a folder of sets names them.
    own_name = None if place == resolve_folder(folder) else place.name
    _publish(small, repo, config_name=name or own_name, **settings)


@main.command("eval", short_help="Measure what a set is worth, beside random rows.")
@click.argument("folder", metavar="FOLDER_FILE_OR_REPO")
@click.option("--source", required=True, help="Real dataset that the set was made from: a Hub id or a folder.")
@click.option("--source-split", default="train", help="Training split of --source.")
@click.option("--test", help="Dataset to test on.  [default: --source]")
@click.option("--test-split", default="test", help="Test split of --test.")
@click.option("--config", help="Configuration of these datasets, if they have several.")
@click.option("--name", help="Which set of it, or which configuration of a plain dataset.  [default: its own]")
@click.option(
    "--network",
    "networks",
    multiple=True,
    default=(DEFAULT_NETWORK,),
    help="Network to train, or all for every kind that the package has; may be repeated.",
)
@click.option("--recipe", default="dsa", help="Training recipe: dc, dsa, idc or soft.")
@click.option(
    "--augment",
    metavar="FAMILIES",
    help="Augmentation: some of color, crop, cutout, flip, scale and rotate, joined by _, or none. Flips mirror "
    "images, which changes digits and letters.  [default: the recipe's, without flip if the set was made without it]",
)
@click.option("--epochs", type=_Integer(1), help="Scale the recipe to this many epochs.  [default: the recipe's]")
@click.option("--max-updates", type=_Integer(1), help="Cap the updates of every network.  [default: no cap]")
@click.option(
    "--lr",
    "rates",
    multiple=True,
    metavar="RATE",
    help="Learning rate; give several, or search, to choose on held-out rows of --source.  [default: the recipe's]",
)
@click.option("--ipc", multiple=True, type=_Integer(1), help="Use so many images per class; may be repeated.")
@click.option("--image-size", help="Resize images of a plain set to this side, or to HEIGHTxWIDTH.")
@click.option("--eight-bit", is_flag=True, help="Also train on the set's 8-bit images, as load_dataset gives them.")
@click.option("--seeds", type=_Integer(1), default=5, help="Networks trained on each set.")
@click.option("--seed", type=_Integer(0), default=0, help="Seed of every draw.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME",
    default=("random",),
    help="What to compare with: random (rows, also in the storage form of the set), full (the whole source), a coreset "
    "method such as herding or kcenter, or none; may be repeated.",
)
@_cache_option
@click.option("--by-class", is_flag=True, help="Also print the set's accuracy by class, and what it is taken for.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "json"]), default="table", help="Form of the output."
)
@click.option(
    "--save", is_flag=True, help="Store the accuracies with the set, in place of earlier ones; its card shows them."
)
@_column_options
@click.option("--quiet", is_flag=True, help="No progress bars.")
def evaluate_command(
    folder: str,
    source: str,
    source_split: str,
    test: str | None,
    test_split: str,
    config: str | None,
    name: str | None,
    networks: tuple[str, ...],
    baselines: tuple[str, ...],
    rates: tuple[str, ...],
    ipc: tuple[int, ...],
    image_size: str | None,
    by_class: bool,
    form: str,
    save: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train fresh networks on a set and print their accuracies beside its baselines'.

    The set is a folder of condensed sets, a folder of images by class or of any labelled images, a dataset on the Hub,
    or a .safetensors file with the tensors `images` (N, C, H, W), 0 black and 1 white, and `labels` (N,).
    """
    from hf_condense import CondensedDataset, evaluate
    from hf_condense.condensed.folder import pick, resolve_folder
    from hf_condense.evaluation.request import Request

    if test is None and _is_one_split(source):
        raise click.UsageError(f"{source!r} holds a single split; name the rows to test on by --test")
    if (test_split == source_split or _is_one_split(source)) and test in (None, source):
        raise click.UsageError(
            f"networks would be tested on the rows that the set was made of, {source_split!r} of {source!r}; name "
            "another --test-split, or another dataset by --test"
        )
    baselines = tuple(baseline for baseline in baselines if baseline != "none")
    size = None if image_size is None else _parse_size(image_size)
    settings.update(lr=_parse_rates(rates), ipc=ipc or None)
    checked = ("recipe", "epochs", "max_updates", "lr", "ipc", "seeds", "seed", "augment")
    asked = {name: settings[name] for name in checked}
    Request.check(networks=networks, baselines=baselines, compile="auto", **asked)
    train = _load_set(folder, name)
    if save and not (isinstance(train, CondensedDataset) and local_path(folder).exists()):
        raise click.UsageError(f"--save is for condensed sets in folders of this machine; got {folder!r}")
    place = pick(resolve_folder(folder), name).absolute() if save else None
    if place is not None:
        _check_card(place)
    evaluation = evaluate(
        train,
        _load(test or source, config, test_split, "--test-split, or other rows by --test"),
        source=_load(source, config, source_split, "--source-split"),
        networks=networks,
        baselines=baselines,
        image_size=size,
        progress=not quiet,
        **settings,
    )
    tables: list[Tabular] = [evaluation]
    if by_class:
        kinds = dict.fromkeys(score.network for score in evaluation.scores)
        tables += [evaluation.by_class(network=kind, ipc=max(ipc, default=None)) for kind in kinds]
    if form == "json":
        records = [table.to_records() for table in tables]
        _echo(json_text(records if by_class else records[0]))
    else:
        text = "\n\n".join(table.to_markdown() if form == "markdown" else str(table) for table in tables)
        _echo("\n".join(map(visible, text.split("\n"))))
    if place is not None and isinstance(train, CondensedDataset):
        train.with_evaluation(evaluation).save_condensed(place.parent, place.name, overwrite=True)
        click.echo(f"Stored the accuracies in {place}; its card shows them.", err=True)


@main.command(short_help="Print how a set was made, and save a picture of it.")
@click.argument("folder", metavar="FOLDER_OR_REPO")
@click.option("--name", help="Which of the sets.  [default: the one its card names]")
@click.option("--revision", help="Branch, tag or commit of a repository.  [default: main]")
@click.option("--preview", type=_FilePath(dir_okay=False), help="File to save a picture of the set to.")
@click.option("--per-class", type=_Integer(1), help="Images per class in the picture of --preview.  [default: 10]")
def show(folder: str, name: str | None, revision: str | None, preview: Path | None, per_class: int | None) -> None:
    """Print how a set was made, from a folder or a repository USER/REPO on the Hub, and save a picture of it."""
    from hf_condense import load_condensed
    from hf_condense.condensed.files.names import PREVIEW

    if preview is None and per_class is not None:
        raise click.UsageError("--per-class is for the picture of --preview, which is missing")
    if preview is not None:
        _check_picture(preview)
        preview.parent.mkdir(parents=True, exist_ok=True)
    small = load_condensed(folder, name, revision=revision)
    click.echo(facts_table(small, _stored_facts(folder, name, revision)))
    if others := _other_sets(folder, name):
        click.echo(f"\nOther sets here, for --name: {', '.join(others)}")
    if preview is None:
        click.echo(
            f"\nTo save a picture:  {command_line('show', folder, name=name, revision=revision, preview=PREVIEW)}"
        )
    else:
        small.preview(per_class or 10).save(preview)
        click.echo(f"\nSaved the picture {preview}.")


@main.command(short_help="Write one HTML file that shows all sets of a place.")
@click.argument("folder", metavar="FOLDER_OR_REPO")
@click.option("--out", "-o", type=_FilePath(dir_okay=False), default=Path("page.html"), help="File to write.")
@click.option("--revision", help="Branch, tag or commit of a repository.  [default: main]")
@click.option("--source", help="Real dataset: a Hub id or a folder. Shows the real image nearest to each learned one.")
@click.option("--source-split", default="train", help="Training split of --source.")
@click.option("--config", help="Configuration of --source.")
@click.option("--per-class", type=_Integer(1), default=10, help="Images per class, at most.")
@click.option("--max-classes", type=_Integer(1), default=100, help="Classes of a set, at most.")
@_cache_option
@click.option("--quiet", is_flag=True, help="No progress bars.")
def page(
    folder: str,
    out: Path,
    revision: str | None,
    source: str | None,
    source_split: str,
    config: str | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Write one HTML file with all sets of a folder or of a repository USER/REPO: images, accuracies, recipes.

    The file needs no server and loads nothing; open it in a browser, send it, or put it on a web server.
    """
    from hf_condense import write_page

    if source is None and (config is not None or source_split != "train"):
        raise click.UsageError("--config and --source-split are for the dataset of --source, which is missing")
    real = None if source is None else _load(source, config, source_split, "--source-split")
    path = write_page(folder, out, source=real, revision=revision, progress=not quiet, **settings)
    click.echo(f"Wrote {path} ({path.stat().st_size:,} B). Open it in a browser.")


@main.command(short_help="Put several sets into one.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER_OR_REPO...")
@click.option("--out", type=_FilePath(file_okay=False), required=True, help="Folder to save to.")
@click.option("--overwrite", is_flag=True, help="Replace a set of the same name that was made with another recipe.")
def combine(folders: tuple[str, ...], out: Path, overwrite: bool) -> None:
    """Put several sets of different classes or sources into one.

    Of a folder or repository with several sets the default is taken; FOLDER/NAME names another one.
    """
    from hf_condense import combine_condensed, load_condensed

    small = combine_condensed([load_condensed(folder) for folder in folders])
    folder = _save(small, out, overwrite)
    classes = len(small.synthetic.labels.unique())
    click.echo(f"Combined {len(folders)} sets: {len(small)} images of {classes} classes.")
    click.echo(f"Saved {folder}.")


@main.command()
@click.argument("pattern", required=False)
def methods(pattern: str | None) -> None:
    """List the methods, or describe one. PATTERN is a name or a shell pattern such as '*m*'."""
    from hf_condense import list_methods
    from hf_condense.engine.registry import canonical_name, get_method

    infos = list_methods(pattern)
    if pattern == "auto":
        click.echo("auto picks a method and its settings from the dataset, ipc, device and --budget, and says which.")
        return
    if not infos and pattern is not None:
        # The pattern may be an alias; if it is not, this raises an error with the nearest name.
        infos = list_methods(canonical_name(get_method(pattern)))
    if len(infos) == 1:
        click.echo(method_text(infos[0]))
        return
    rows = [("NAME", "KIND", "YEAR", "TITLE"), *((m.name, m.kind, str(m.year), m.title) for m in infos)]
    click.echo(plain_table(rows))
    click.echo("\nTo see the options and the paper of a method:  hf-condense methods NAME")


def _step_profile() -> StepProfile:
    """Return what profiles a run."""
    from hf_condense.engine.profiling import StepProfile

    return StepProfile()


def _load(name: str, config: str | None, split: str, option: str | None = None) -> Dataset | DatasetDict:
    """Load one split of a dataset; see `_splits` and `_picked`."""
    return _picked(_splits(name, config), name, split, option)


def _splits(name: str, config: str | None) -> Dataset | DatasetDict:
    """Load a dataset from the Hub, from a folder, or from a folder that `save_to_disk` wrote."""
    from datasets import load_from_disk

    name = os.path.expanduser(name)
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; pass the folder that it is in, or the id of a dataset on the Hub")
    if not Path(name).exists() and (Path(name).is_absolute() or (name.count("/") > 1 and "://" not in name)):
        raise ValueError(f"there is no folder {name!r}")
    try:
        if any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            loaded: Any = load_from_disk(name)
        else:
            loaded = _load_dataset(name, config)
    except Exception as error:  # Whatever a loader raises, the message should name the dataset.
        missing = "" if Path(name).exists() else f"there is no folder {name!r} here, and "
        raise ValueError(f"cannot load {name!r}: {missing}{error}") from error
    whole: Dataset | DatasetDict = loaded
    return whole


def _picked(loaded: Dataset | DatasetDict, name: str, split: str, option: str | None) -> Dataset | DatasetDict:
    """Return one split of a dataset that was loaded; what is a single split is returned as it is.

    `option` is the option of the command line that names the split, if there is one.
    """
    from datasets import DatasetDict

    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        hint = f"; choose one by {option}" if option else ""
        raise ValueError(f"{name!r} has no split {split!r}; its splits: {', '.join(loaded)}{hint}")
    return loaded[split]


def _is_one_split(place: str) -> bool:
    """Return whether a place is a folder that `Dataset.save_to_disk` wrote: then any split asked for is its own."""
    return (local_path(place) / "state.json").is_file()


def _load_dataset(name: str, config: str | None) -> Any:
    """Call `load_dataset`; if the Hub does not answer, only for what is cached, as it would ask for half a minute."""
    import datasets

    from hf_condense.condensed.hub.repository import is_out_of_reach

    if Path(name).exists() or "://" in name or not is_out_of_reach(name):
        return datasets.load_dataset(name, config)
    offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        return datasets.load_dataset(name, config)
    except ConnectionError as error:
        raise ConnectionError("the Hub cannot be reached, and no such dataset is cached") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _load_set(place: str, name: str | None) -> Dataset | DatasetDict | TensorSet:
    """Load what is evaluated: a condensed set, else the tensors of a file, else any labelled images."""
    from hf_condense import list_condensed, load_condensed
    from hf_condense.condensed.files.names import FACTS
    from hf_condense.condensed.folder import check_level
    from hf_condense.evaluation.tensor_sets import is_tensor_file, read_tensor_set

    if is_tensor_file(place):
        if name is not None:
            raise click.UsageError(f"--name is for folders and repositories; {place!r} is a file")
        return read_tensor_set(place)
    try:
        return load_condensed(place, name)
    except FileNotFoundError:
        if "/" in place or local_path(place).exists():
            raise
        return _load(place, name, "train")  # ids of old datasets on the Hub have no user
    except CondensedFormatError:
        check_level(local_path(place))
        if list_condensed(place) or (local_path(place) / FACTS).exists():
            raise
    return _load(place, name, "train")


def _parse_rates(texts: Sequence[str]) -> float | str | list[float] | None:
    """Read the texts of `--lr`."""
    if texts in ((), ("search",)):
        return "search" if texts else None
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise click.UsageError(f"--lr takes a number, or search alone; got {' and '.join(texts)}") from None


def _save(small: CondensedDataset, out: Path, overwrite: bool, name: str | None = None) -> Path:
    """Save a set. If another one is in the way, or the folder cannot be written to, save it elsewhere.

    So no work is lost: in a new folder beside the one that is in the way, else in one for temporary files.
    """
    try:
        return small.save_condensed(out, name, overwrite=overwrite)
    except (FileExistsError, CondensedFormatError) as error:  # the second: another set or the card there is damaged
        place, number = local_path(out).resolve(), 2  # a folder called "." has no name to add to
        while (beside := place.with_name(f"{place.name}-{number}")).exists():
            number += 1
        return _save_instead(small, beside, name, f"{error}; saved beside it, in {beside}")
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="hf_condense-"))
        return _save_instead(small, elsewhere, name, f"{plain_text(error)}; saved in {elsewhere}")


def _save_instead(small: CondensedDataset, place: Path, name: str | None, reason: str) -> Path:
    """Save a set in a place that nobody asked for, and say why."""
    folder = small.save_condensed(place, name)
    click.echo(f"warning: {as_options(reason, click.get_current_context().command)}", err=True)
    return folder


def _short_training(small: CondensedDataset) -> dict[str, str | None]:
    """Return the options of `eval` with which a set takes about as long to measure as it took to make."""
    recipe = small.recipe
    is_short = recipe.preset == "quick" or recipe.network != DEFAULT_NETWORK
    return {
        "network": None if recipe.network == DEFAULT_NETWORK else recipe.network,
        "recipe": "dc" if is_short else None,
    }


def _publish(small: CondensedDataset, repo: str, config_name: str | None = None, **settings: Any) -> None:
    """Push a set and print where it is."""
    info = small.push_to_hub(repo, config_name, **settings)
    name = config_name or small.recipe.config_name
    # A set that was there already is not committed again.
    done = "Published" if info.commit_message else "Nothing to publish, the repository has this already:"
    _echo(f"{done} {name}: {info.pr_url or info.repo_url}")
    if info.pr_url is None:
        _echo(f"Load it:  hf_condense.load_condensed({info.repo_url.repo_id!r}, {name!r}, revision={info.oid!r})")


def _demo_picture(small: CondensedDataset, random: CondensedDataset, table: Evaluation) -> Image:
    """Return random rows beside condensed ones, with the accuracies that networks reached on each."""
    from hf_condense.condensed.preview import Panel, comparison, grid_of
    from hf_condense.condensed.scores.class_scores import per_cent

    own, other = table.scores
    rows = f"{len(small)} {{}} rows of MNIST"
    panels = [
        Panel(
            rows.format(kind),
            f"test accuracy {per_cent(score.mean, score.std, digits=1)} %",
            grid_of(*shown.synthetic.decoded()),
        )
        for kind, score, shown in (("random", other, random), ("condensed", own, small))
    ]
    spread = " ± standard deviation" if own.n > 1 else ""
    note = (
        f"Networks ({own.network}), trained on only {own.rows} images for {own.updates} updates and tested on real "
        f"images: mean{spread}, n = {own.n}. Random rows are drawn again for each network."
    )
    return comparison(panels, note)


def _check_equal(small: CondensedDataset, folder: Path) -> None:
    """Load a set that was just saved and compare it, bit by bit."""
    from hf_condense import load_condensed

    loaded = load_condensed(folder)
    same = loaded.synthetic.equals(small.synthetic)
    if not same or loaded.recipe.without_times() != small.recipe.without_times():
        raise CondensedFormatError(f"{folder} does not hold what was saved; please report this")


def _check_run(
    method_options: dict[str, Any],
    size: int | tuple[int, int] | None,
    name: str | None,
    repo: str | None,
    *,
    method: str,
    preset: str | None,
    budget: float | None,
    max_memory: str | None,
    **settings: Any,
) -> None:
    """Refuse what is wrong whatever the dataset is, before it is loaded, which may take long."""
    from huggingface_hub.utils import validate_repo_id

    from hf_condense.base.checks import byte_count
    from hf_condense.condensed.files.names import check_name
    from hf_condense.engine.build import check_request
    from hf_condense.source.load import checked_size

    if name is not None:
        check_name(name)
    if repo is not None:
        validate_repo_id(repo)
    check_request(method, preset, method_options, settings, budget)
    checked_size(size)
    if max_memory is not None:
        byte_count("--max-memory", max_memory)


def _check_picture(file: Path) -> None:
    """Refuse a file name that does not say which picture format to write."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    if suffixes.get(file.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--preview should end in .png or in another picture format; got {str(file)!r}")


def _check_card(place: Path) -> None:
    """Refuse to write the card of a set into a folder that is of something else, or under a name that cannot be."""
    from hf_condense.condensed.card.template import START
    from hf_condense.condensed.files.names import README, check_name
    from hf_condense.condensed.folder import read_card

    check_name(place.name)
    card = read_card(place.parent)
    if card is not None and START not in card:
        raise click.UsageError(
            f"--save would write the card of the set into {place.parent / README}, which is of something else; move "
            f"the folder {place.name!r} into a folder of its own"
        )


def _stored_facts(path_or_repo: str, name: str | None, revision: str | None) -> Facts:
    """Return the facts of a set that was just loaded; those of a repository are among the files kept from then."""
    from hf_condense.condensed.files.facts import read_facts
    from hf_condense.condensed.folder import is_repository, pick, resolve_folder
    from hf_condense.condensed.hub.repository import download

    if is_repository(path_or_repo):
        return download(path_or_repo, name, revision=revision, local_files_only=True)[1]
    return read_facts(pick(resolve_folder(path_or_repo), name))


def _other_sets(place: str, shown: str | None) -> list[str]:
    """Return the names of the sets in a folder beside the one that is shown; none for the folder of one set."""
    from hf_condense import list_condensed
    from hf_condense.condensed.folder import pick, resolve_folder

    if not local_path(place).is_dir():
        return []
    folder = resolve_folder(place)
    own = pick(folder, shown)
    return [] if own == folder else [name for name in list_condensed(folder) if name != own.name]


def _method_options(texts: Sequence[str], reserved: Collection[str], method: str) -> dict[str, Any]:
    """Read the texts of `--option`; names that have an option of the command line of their own are refused."""
    from hf_condense.engine.build import text_options

    method_options = dict(_parse_option(text) for text in texts)
    if clash := sorted(method_options.keys() & set(reserved)):
        raise click.UsageError(f"--option {clash[0]}: use --{clash[0].replace('_', '-')} instead")
    words = text_options(method)  # for these, none and numbers are words like any other
    for text in texts:
        name, _, word = text.partition("=")
        if name in words and isinstance(method_options[name], (int, float)) and word.lower() not in ("true", "false"):
            method_options[name] = word
    return {name: None if value == "none" and name not in words else value for name, value in method_options.items()}


def _parse_option(text: str) -> tuple[str, Any]:
    """Read `name=value`; a value that is not a number, true, false, null or a text in quotes is text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--option takes NAME=VALUE, for example lr_img=5; got {text!r}")
    words: dict[str, Any] = {"true": True, "false": False, "none": "none", "null": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        plain = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, plain if isinstance(plain, (int, float, str)) else value


def _parse_size(text: str) -> int | tuple[int, int]:
    """Read `32` or `32x48` (height x width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise click.UsageError(f"--image-size takes a side or HEIGHTxWIDTH, for example 32 or 32x48; got {text!r}")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _seconds(started: float) -> str:
    """Return the time since a moment, for a message."""
    return f"{time.perf_counter() - started:.1f} s"
