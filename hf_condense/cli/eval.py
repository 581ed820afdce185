"""`hf-condense eval`: measure what a set is worth, beside random rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.paths import local_path
from hf_condense.base.tables import visible
from hf_condense.cli.input import is_one_split, load_split
from hf_condense.cli.options import DEFAULT_NETWORK, Integer, cache_option, column_options, parse_size, quiet_option
from hf_condense.cli.output import echo
from hf_condense.cli.text import json_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_condense.condensed.scores import Evaluation
    from hf_condense.condensed.scores.tabular import Tabular
    from hf_condense.evaluation.tensor_sets import TensorSet


@click.command("eval", short_help="Measure what a set is worth, beside random rows.")
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
@click.option("--epochs", type=Integer(1), help="Scale the recipe to this many epochs.  [default: the recipe's]")
@click.option("--max-updates", type=Integer(1), help="Cap the updates of every network.  [default: no cap]")
@click.option(
    "--lr",
    "rates",
    multiple=True,
    metavar="RATE",
    help="Learning rate; give several, or search, to choose on held-out rows of --source.  [default: the recipe's]",
)
@click.option("--ipc", multiple=True, type=Integer(1), help="Use so many images per class; may be repeated.")
@click.option("--image-size", help="Resize images of a plain set to this side, or to HEIGHTxWIDTH.")
@click.option("--eight-bit", is_flag=True, help="Also train on the set's 8-bit images, as load_dataset gives them.")
@click.option("--seeds", type=Integer(1), default=5, help="Networks trained on each set.")
@click.option("--seed", type=Integer(0), default=0, help="Seed of every draw.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME",
    default=("random",),
    help="What to compare with: random (rows, also in the storage form of the set), full (the whole source), a coreset "
    "method such as herding or kcenter, or none; may be repeated.",
)
@cache_option
@click.option("--by-class", is_flag=True, help="Also print the set's accuracy by class, and what it is taken for.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "json"]), default="table", help="Form of the output."
)
@click.option(
    "--save", is_flag=True, help="Store the accuracies with the set, in place of earlier ones; its card shows them."
)
@column_options
@quiet_option
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

    _check_rows(source, source_split, test, test_split)
    baselines = tuple(baseline for baseline in baselines if baseline != "none")
    size = None if image_size is None else parse_size(image_size)
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
        load_split(test or source, config, test_split, "--test-split, or other rows by --test"),
        source=load_split(source, config, source_split, "--source-split"),
        networks=networks,
        baselines=baselines,
        image_size=size,
        progress=not quiet,
        **settings,
    )
    echo(_printed(evaluation, form, by_class, ipc))
    if place is not None and isinstance(train, CondensedDataset):
        train.with_evaluation(evaluation).save_condensed(place.parent, place.name, overwrite=True)
        click.echo(f"Stored the accuracies in {place}; its card shows them.", err=True)


def _check_rows(source: str, source_split: str, test: str | None, test_split: str) -> None:
    """Refuse to test networks on the rows that the set was made of."""
    if test is None and is_one_split(source):
        raise click.UsageError(f"{source!r} holds a single split; name the rows to test on by --test")
    if (test_split == source_split or is_one_split(source)) and test in (None, source):
        raise click.UsageError(
            f"networks would be tested on the rows that the set was made of, {source_split!r} of {source!r}; name "
            "another --test-split, or another dataset by --test"
        )


def _parse_rates(texts: Sequence[str]) -> float | str | list[float] | None:
    """Read the texts of `--lr`."""
    if texts in ((), ("search",)):
        return "search" if texts else None
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise click.UsageError(f"--lr takes a number, or search alone; got {' and '.join(texts)}") from None


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
        return load_split(place, name, "train")  # ids of old datasets on the Hub have no user
    except CondensedFormatError:
        check_level(local_path(place))
        if list_condensed(place) or (local_path(place) / FACTS).exists():
            raise
    return load_split(place, name, "train")


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


def _printed(evaluation: Evaluation, form: str, by_class: bool, ipc: tuple[int, ...]) -> str:
    """Return what is printed of an evaluation; accuracies by class are those of the most images per class."""
    tables: list[Tabular] = [evaluation]
    if by_class:
        kinds = dict.fromkeys(score.network for score in evaluation.scores)
        tables += [evaluation.by_class(network=kind, ipc=max(ipc, default=None)) for kind in kinds]
    if form == "json":
        records = [table.to_records() for table in tables]
        return json_text(records if by_class else records[0])
    text = "\n\n".join(table.to_markdown() if form == "markdown" else str(table) for table in tables)
    return "\n".join(map(visible, text.split("\n")))
