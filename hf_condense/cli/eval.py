"""`hf-condense eval`: measure what a set is worth, compared with random rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from hf_condense.base.errors import CondensedFormatError
from hf_condense.base.paths import local_path, named_folder
from hf_condense.base.tables import visible
from hf_condense.cli.input import (
    folder_of_set,
    is_one_split,
    load_split,
    other_sets,
    refuse_config,
    refuse_revision,
    refuse_split,
)
from hf_condense.cli.options import (
    DEFAULT_NETWORK,
    Integer,
    cache_option,
    column_options,
    compile_flags,
    parse_size,
    quiet_option,
)
from hf_condense.cli.output import echo
from hf_condense.cli.text import json_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_condense.condensed.dataset import CondensedDataset
    from hf_condense.condensed.scores import Evaluation
    from hf_condense.condensed.scores.tabular import Tabular
    from hf_condense.evaluation.tensor_sets import TensorSet


@click.command("eval", short_help="Measure what a set is worth, compared with random rows.")
@click.argument("folder", metavar="FOLDER_FILE_OR_REPO")
@click.option("--revision", help="Branch, tag or commit of the set's repository.  [default: main]")
@click.option(
    "--source",
    help="Real dataset that the set was made from: a Hub id or a folder. Not needed for a condensed set with "
    "--baseline none and at most one --lr.",
)
@click.option("--source-split", default="train", help="Training split of --source.")
@click.option("--source-revision", help="Branch, tag or commit of --source on the Hub.  [default: main]")
@click.option("--test", help="Dataset to test on.  [default: --source]")
@click.option("--test-split", default="test", help="Test split of --test.")
@click.option("--test-revision", help="Branch, tag or commit of --test on the Hub.  [default: main]")
@click.option("--config", help="Configuration of these datasets, if they have several.")
@click.option(
    "--name",
    help="Which set of several, or which configuration of a plain dataset.  [default: the only one, or the one of the "
    "card]",
)
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
@click.option(
    "--ipc",
    multiple=True,
    type=Integer(1),
    help="Use this many images per class; may be repeated.  [default: all]",
)
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
@compile_flags
@click.option(
    "--by-class", is_flag=True, help="Also print the accuracy by class, and what each class is most often taken for."
)
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
    revision: str | None,
    source: str | None,
    source_split: str,
    source_revision: str | None,
    test: str | None,
    test_split: str,
    test_revision: str | None,
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
    """Train fresh networks on a set and print their accuracies beside those of its baselines.

    The set is a folder of condensed sets, a folder of images by class or of any labelled images, a dataset on the Hub,
    or a .safetensors file with the tensors `images` (N, C, H, W), 0 black and 1 white, and `labels` (N,).
    """
    from hf_condense import CondensedDataset, evaluate
    from hf_condense.evaluation.request import Request

    real, tested = _Rows(source, source_split, source_revision), _Rows(test, test_split, test_revision)
    _check_rows(real, tested)
    if test is None:
        tested = tested._replace(place=source, revision=source_revision)
    refuse_config("--config", config, *(place for place in (source, test) if place is not None))
    size = None if image_size is None else parse_size(image_size)
    settings.update(lr=_parse_rates(rates), ipc=ipc or None)
    checked = ("recipe", "epochs", "max_updates", "lr", "ipc", "seeds", "seed", "augment", "compile")
    asked = {name: settings[name] for name in checked}
    request = Request.check(networks=networks, baselines=baselines, **asked)
    needs_source = bool(request.baselines or request.rates)
    if source is None and needs_source:
        raise click.UsageError(
            "baselines are drawn from the real training set, and learning rates chosen on rows of it; name it by "
            "--source, or pass --baseline none and at most one --lr"
        )
    train = _load_set(folder, name, revision)
    if name is None and isinstance(train, CondensedDataset):
        shown = folder_of_set(folder, None, revision)
        if others := other_sets(folder, shown):
            echo(f"Evaluating {shown.name}; other sets here, for --name: {', '.join(others)}", err=True)
    needs_source |= not isinstance(train, CondensedDataset)
    if source is None and needs_source:
        raise click.UsageError(
            f"{folder!r} is not a condensed set, so its images are normalised as the real training set is; name this "
            "one by --source"
        )
    stored = _Stored.of(train, folder, name, ipc) if save else None
    evaluation = evaluate(
        train,
        tested.load(config, "--test-split, or other rows by --test"),
        source=real.load(config, "--source-split") if needs_source else None,
        networks=networks,
        baselines=baselines,
        image_size=size,
        progress=not quiet,
        **settings,
    )
    echo(_printed(evaluation, form, by_class, ipc))
    if stored is not None:
        stored.add(evaluation)


class _Stored(NamedTuple):
    """A set in a folder of this machine, to which accuracies are added."""

    small: CondensedDataset
    place: Path
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, train: object, folder: str, name: str | None, ipc: Sequence[int]) -> _Stored:
        """Return the set that is evaluated; raise unless accuracies can be added to it."""
        from hf_condense import CondensedDataset
        from hf_condense.condensed.files.facts import read_facts
        from hf_condense.condensed.folder import pick
        from hf_condense.condensed.scores.records import check_whole

        if not isinstance(train, CondensedDataset) or not local_path(folder).exists():
            raise click.UsageError(f"--save is for condensed sets in folders of this machine; got {folder!r}")
        place = named_folder(pick(folder, name))
        check_whole(train.recipe, ipc or [None])
        _check_card(place)
        return cls(train, place, read_facts(place).sha256)

    def add(self, evaluation: Evaluation) -> None:
        """Store accuracies beside the set, and show them on its card."""
        from hf_condense.condensed.files.facts import read_facts

        if read_facts(self.place).sha256 != self.sha256:
            raise FileExistsError(
                f"another set was saved in {self.place} during the evaluation, so these accuracies were not stored"
            )
        self.small.with_evaluation(evaluation).save_condensed(self.place.parent, self.place.name, overwrite=True)
        echo(f"Stored the accuracies in {self.place}; its card shows them.", err=True)


class _Rows(NamedTuple):
    """Rows of a real dataset: a Hub id or a folder, or None if it was not named, a split and a revision."""

    place: str | None
    split: str
    revision: str | None

    def load(self, config: str | None, option: str) -> Any:
        """Load them; `option` names the split on the command line."""
        assert self.place is not None
        return load_split(self.place, config, self.split, option, self.revision)


def _check_rows(source: _Rows, test: _Rows) -> None:
    """Refuse to test networks on no rows, or on those that the set was made of, and options of no dataset."""
    for rows, name, default in ((source, "source", "train"), (test, "test", "test")):
        if rows.place is not None and rows.split != default:
            refuse_split(f"--{name}-split", rows.split, rows.place)
        if rows.place is not None:
            refuse_revision(f"--{name}-revision", rows.revision, rows.place)
        elif rows.revision is not None:
            raise click.UsageError(f"--{name}-revision is for the dataset of --{name}, which is missing")
    if source.place is None:
        if source.split != "train":
            raise click.UsageError("--source-split is for the dataset of --source, which is missing")
        if test.place is None:
            raise click.UsageError(
                "name the rows to test on by --test, or the dataset that the set was made from by --source"
            )
        return
    if test.place is None and is_one_split(source.place):
        raise click.UsageError(f"{source.place!r} holds a single split; name the rows to test on by --test")
    is_same = test.place is None or _is_same(test.place, source.place)
    if is_same and (test.split == source.split or is_one_split(source.place)):
        raise click.UsageError(
            f"networks would be tested on the rows that the set was made of, {source.split!r} of {source.place!r}; "
            "name another --test-split, or another dataset by --test"
        )


def _is_same(place: str, other: str) -> bool:
    """Return whether two places are one: the same text, or one folder spelt in two ways."""
    folders = local_path(place), local_path(other)
    return place == other or (all(folder.exists() for folder in folders) and folders[0].samefile(folders[1]))


def _parse_rates(texts: Sequence[str]) -> float | str | list[float] | None:
    """Read the texts of `--lr`."""
    if texts in ((), ("search",)):
        return "search" if texts else None
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise click.UsageError(f"--lr takes a number, or search alone; got {' and '.join(texts)}") from None


def _load_set(place: str, name: str | None, revision: str | None) -> Dataset | DatasetDict | TensorSet:
    """Load what is evaluated: a condensed set, else the tensors of a file, else any labelled images."""
    from hf_condense import list_condensed, load_condensed
    from hf_condense.condensed.folder import check_level
    from hf_condense.evaluation.tensor_sets import is_tensor_file, read_tensor_set

    if is_tensor_file(place):
        for option, value in (("--name", name), ("--revision", revision)):
            if value is not None:
                raise click.UsageError(f"{option} is for folders and repositories; {place!r} is a file")
        return read_tensor_set(place)
    if "/" in place or local_path(place).exists():  # ids of old datasets on the Hub have no user
        try:
            return load_condensed(place, name, revision=revision)
        except CondensedFormatError:
            check_level(local_path(place))
            if list_condensed(place, revision=revision):
                raise
        except FileNotFoundError as error:
            # Without a connection, the cache may have a dataset, of which `load_condensed` knows nothing.
            refuse_config("--name", name, place)
            try:
                return load_split(place, name, "train", revision=revision)
            except ValueError:
                raise error from None
    refuse_config("--name", name, place)
    return load_split(place, name, "train", revision=revision)


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
