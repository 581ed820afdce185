"""`hf-condense run`: condense a dataset and save the result."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hf_condense.base.paths import local_path
from hf_condense.cli.errors import USER_ERRORS
from hf_condense.cli.input import choose_split, load_splits, refuse_config, refuse_revision, refuse_split
from hf_condense.cli.options import (
    DEFAULT_NETWORK,
    FilePath,
    Integer,
    cache_option,
    column_options,
    compile_flags,
    overwrite_option,
    parse_amounts,
    parse_size,
    quiet_option,
)
from hf_condense.cli.output import by_main, echo, publish_set, save_set
from hf_condense.cli.text import amount, command_line, seconds

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.engine.profiling import StepProfile

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # JSON has no .5, 5. or +5


@click.command(short_help="Condense a dataset and save the result.")
@click.argument("dataset")
@click.option("--config", help="Configuration of the dataset, if it has several.")
@click.option("--split", default="train", help="Split to condense.")
@click.option("--dataset-revision", help="Branch, tag or commit of the dataset on the Hub.  [default: main]")
@click.option("--method", default="auto", help="Method; `hf-condense methods` lists them.")
@click.option(
    "--ipc",
    multiple=True,
    metavar="INTEGER",
    default=("10",),
    callback=lambda ctx, param, texts: parse_amounts(texts),
    help="Images per class; or CLASS=INTEGER, repeated for every class.",
)
@column_options
@click.option("--image-size", help="Resize the shorter side to this, or to HEIGHTxWIDTH, and crop the centre.")
@click.option(
    "--network",
    help="Network, such as convnet-w32 or resnet18.  [default: the preset's, else convnet; with --method auto on a CPU "
    "convnet-w32]",
)
@click.option(
    "--steps",
    type=Integer(1),
    help="Updates of the images.  [default: the preset's; with --method auto what --budget allows]",
)
@click.option(
    "--preset",
    help="Named set of the method's options: quick takes minutes, paper days on a CPU; `hf-condense methods NAME` "
    "lists them.",
)
@click.option("--budget", type=float, metavar="MINUTES", help="Minutes that --method auto may take.  [default: 15]")
@click.option("--seed", type=Integer(0, 2**64 - 1), default=0, help="Seed of every draw.")
@click.option(
    "--storage",
    metavar="FORM",
    help="What is stored: pixels (images), patches (smaller images), dct (frequencies) or siren (small networks).  "
    "[default: the preset's, else pixels]",
)
@click.option(
    "--expand", type=Integer(1), help="Rows decoded from the space of one stored image.  [default: the form's]"
)
@click.option("--factor", type=Integer(1), help="Short for --storage patches --expand FACTOR*FACTOR.")
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
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the method; may be repeated. VALUE is a number, true, false, none or text.",
)
@click.option(
    "--checkpoint-dir",
    type=FilePath(file_okay=False),
    help="Folder of the checkpoint. Ctrl-C and SIGTERM finish the step and save one; the same command goes on from it.",
)
@click.option("--checkpoint-every", type=Integer(1), default=500, help="Steps between two checkpoints.")
@click.option(
    "--max-memory",
    metavar="BYTES",
    help="Memory that a step may use, such as 4GiB.  [default: a quarter to half of what is free]",
)
@click.option(
    "--log-with", multiple=True, metavar="TRACKER", help="Tracker to report to, such as tensorboard; may be repeated."
)
@click.option("--logging-dir", type=FilePath(file_okay=False), default=Path("runs"), help="Folder of trackers' files.")
@cache_option
@compile_flags
@click.option("--profile", is_flag=True, help="Print where the time goes: parts of the run, and operations of a step.")
@click.option("--out", type=FilePath(file_okay=False), help="Folder to save to.  [default: condensed/DATASET]")
@click.option(
    "--name",
    help="Name of the set there, and in the repository.  [default: METHOD_ipcN and the storage form, as in "
    "m3d_ipc1_dct8]",
)
@overwrite_option
@click.option(
    "--push", "repo", metavar="USER/REPO", help="Also publish the set in this repository; see `hf-condense push`."
)
@click.option("--private", is_flag=True, default=None, help="If --push creates the repository, make it private.")
@quiet_option
def run(
    dataset: str,
    config: str | None,
    split: str,
    dataset_revision: str | None,
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

    Exit codes: 0 if all went well, 1 for an error, also if the set had to be saved in another place, 2 if the
    command line cannot be read, 130 after SIGINT (Ctrl-C), 143 after SIGTERM.
    """
    method_options = _method_options(options, reserved=settings, method=settings["method"])
    size = None if image_size is None else parse_size(image_size)
    _check_run(method_options, size, name, repo, **settings)

    if private and repo is None:
        raise click.UsageError("--private is for the repository of --push, which is missing")
    if split != "train":
        refuse_split("--split", split, dataset)
    refuse_config("--config", config, dataset)
    refuse_revision("--dataset-revision", dataset_revision, dataset)
    from datasets import DatasetDict

    from hf_condense import condense_dataset
    from hf_condense.base.files import check_place
    from hf_condense.condensed.folder import refuse_set

    place = out or Path("condensed") / Path(dataset).resolve().name
    _check_outside(place, dataset)
    if os.environ.get("RANK", "0") == "0":  # there is no accelerator yet; the main process alone saves
        check_place(local_path(place))
        refuse_set(local_path(place))
    started = time.perf_counter()
    splits = load_splits(dataset, config, dataset_revision)
    has_test = isinstance(splits, DatasetDict) and "test" in splits
    ds = choose_split(splits, dataset, split, "--split")
    steps = _step_profile() if profile else None
    watchers: dict[str, Any] = {"callbacks": [] if steps is None else [steps], "log_with": list(log_with) or None}
    small = condense_dataset(ds, image_size=size, progress=not quiet, **watchers, **settings, **method_options)
    if steps is not None:
        echo(f"{steps.report()}\n")
    folder, elsewhere = by_main(lambda: save_set(small, place, overwrite, name))
    echo(f"Made {amount(len(small), len(small.synthetic.row_labels.unique()))} in {seconds(started)}.")
    echo(f"Saved {folder}.")
    own = {"source_revision": dataset_revision, "config": config}
    own |= {column: settings[column] for column in ("image_column", "label_column")}
    measure = _eval_line(small, folder, dataset, split, has_test=has_test, **own)
    echo(f"To see what the set is worth:  {measure}")
    if repo is not None:
        _publish(small, folder, repo, name, private=private, overwrite=overwrite)
    if elsewhere:
        click.get_current_context().exit(1)


def _check_outside(place: Path, dataset: str) -> None:
    """Refuse a place inside the folder of the dataset, which would be read with the set as a part of it."""
    folder = local_path(dataset).resolve()
    if folder.is_dir() and local_path(place).resolve().is_relative_to(folder):
        raise click.UsageError(
            f"the set would be saved in {place}, which is inside the dataset {dataset!r}, so it would become a part of "
            "that; pass --out with a folder elsewhere"
        )


def _method_options(texts: Sequence[str], reserved: Collection[str], method: str) -> dict[str, Any]:
    """Read the texts of `--option`; names that have an option of the command line of their own are refused."""
    from hf_condense.engine.build import text_options

    parsed = [_parse_option(text) for text in texts]
    method_options = dict(parsed)
    if len(method_options) < len(parsed):
        names = [name for name, _ in parsed]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"--option names {twice} twice; give each option once")
    if clash := sorted(method_options.keys() & set(reserved)):
        raise click.UsageError(f"--option {clash[0]}: use --{clash[0].replace('_', '-')} instead")
    words = text_options(method)  # for these, numbers are words like any other, and so is none unless None is a value
    for text in texts:
        name, _, word = text.partition("=")
        if name in words and isinstance(method_options[name], (int, float)) and word.lower() not in ("true", "false"):
            method_options[name] = word
    return {
        name: None if value == "none" and words.get(name, True) else value for name, value in method_options.items()
    }


def _parse_option(text: str) -> tuple[str, Any]:
    """Read `name=value`; a value that is not a number, true, false, null or a text in quotes is text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"--option takes NAME=VALUE, for example lr_img=5; got {text!r}")
    words: dict[str, Any] = {"true": True, "false": False, "none": "none", "null": None}
    if value.lower() in words:
        return name, words[value.lower()]
    if _NUMBER.fullmatch(value):
        return name, float(value) if set(".eE") & set(value) else int(value)
    try:
        plain = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, plain if isinstance(plain, (float, str)) else value


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
    from hf_condense.base.checks import byte_count
    from hf_condense.condensed.files.names import check_name, check_repository
    from hf_condense.engine.build import check_request
    from hf_condense.source.load import checked_size

    if name is not None:
        check_name(name)
    if repo is not None:
        check_repository(repo)
    check_request(method, preset, method_options, settings, budget)
    checked_size(size)
    if max_memory is not None:
        byte_count("--max-memory", max_memory)


def _step_profile() -> StepProfile:
    """Return what profiles a run."""
    from hf_condense.engine.profiling import StepProfile

    return StepProfile()


def _eval_line(
    small: CondensedDataset,
    folder: Path,
    source: str,
    split: str,
    *,
    has_test: bool,
    **own: str | None,
) -> str:
    """Return the command line that measures a set.

    Args:
        small: The set.
        folder: Where it is.
        source: The dataset that it was made from.
        split: The split of it.
        has_test: Whether it has a split for tests.
        **own: Other options of `eval` that are about this dataset.
    """
    return command_line(
        "eval",
        folder,
        source=source,
        source_split=None if split == "train" else split,
        test="TEST_DATASET" if split == "test" or not has_test else None,
        **own,
        **_short_training(small),
    )


def _short_training(small: CondensedDataset) -> dict[str, str | None]:
    """Return the options of `eval` with which a set takes about as long to measure as it took to make."""
    recipe = small.recipe
    if recipe.method == "random":  # which takes a second, and has no network
        return {"network": "convnet-w32", "recipe": "dc"}
    is_short = recipe.preset == "quick" or recipe.network != DEFAULT_NETWORK
    return {
        "network": None if recipe.network == DEFAULT_NETWORK else recipe.network,
        "recipe": "dc" if is_short else None,
    }


def _publish(small: CondensedDataset, folder: Path, repo: str, name: str | None, **settings: Any) -> None:
    """Publish a set that was saved in a folder. If this fails, print the command line that tries again."""
    try:
        publish_set(small, repo, name, **settings)
    except USER_ERRORS:
        again = command_line("push", folder, repo, name=name, **settings)
        echo(f"Not published. To try again:  {again}", err=True)
        raise
