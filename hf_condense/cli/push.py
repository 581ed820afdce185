"""`hf-condense push`: publish a set on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hf_condense.base.checks import listed
from hf_condense.cli.input import load_split
from hf_condense.cli.options import FilePath, overwrite_option
from hf_condense.cli.output import echo, publish_set


@click.command(short_help="Publish a set on the Hub.")
@click.argument("folder", type=FilePath())
@click.argument("repo", metavar="USER/REPO")
@click.option("--name", help="Which set of the folder.  [default: the one its card names]")
@click.option(
    "--private", is_flag=True, default=None, help="If the repository is new, make it private.  [default: your settings]"
)
@click.option("--revision", metavar="BRANCH", help="Push to this branch; it is created if missing.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--message", "commit_message", help="Title of the commit.  [default: Upload NAME]")
@click.option("--description", "commit_description", help="Text of the commit, below its title.")
@click.option("--license", help="Licence on the card.  [default: the source's, if known]")
@click.option("--set-default", is_flag=True, help="Make this the set that is loaded when no name is given.")
@click.option("--replace-card", is_flag=True, help="Write a new card instead of keeping the text of the old one.")
@click.option(
    "--extra-split",
    "extra_splits",
    multiple=True,
    metavar="NAME=DATASET",
    help="Publish the split NAME of a dataset, a Hub id or a folder, beside the set; may be repeated. These replace "
    "the splits that are there.  [default: keep those]",
)
@overwrite_option
@click.option("--page", is_flag=True, help="Add a page that shows all sets; later pushes renew it.")
def push(folder: Path, repo: str, name: str | None, extra_splits: tuple[str, ...], **settings: Any) -> None:
    """Publish the set in FOLDER on the Hub: tensors, recipe, Parquet and card in one commit.

    This needs a token with write access: `hf auth login`, or the environment variable HF_TOKEN.
    """
    from hf_condense import load_condensed
    from hf_condense.condensed.files.facts import read_facts
    from hf_condense.condensed.files.names import check_repository
    from hf_condense.condensed.folder import pick, resolve_folder

    check_repository(repo)
    places = [_name_and_place(text) for text in extra_splits]
    if len(dict(places)) < len(places):
        raise click.UsageError("--extra-split names a split twice; give each once")
    small = load_condensed(folder, name)
    place = pick(folder, name)
    # The folder of one set may have been renamed, so only a folder of sets names them.
    own_name = None if place == resolve_folder(folder) else place.name
    splits = {split: load_split(rows, None, split, "--extra-split") for split, rows in places} or None
    if left := read_facts(place).extra_splits.keys() - {*(splits or {})}:
        names = listed(sorted(left), quoted=False)
        echo(
            f"note: {names}, which {folder} has beside the set, is left out; name such splits by --extra-split",
            err=True,
        )
    publish_set(small, repo, config_name=name or own_name, extra_splits=splits, **settings)


def _name_and_place(text: str) -> tuple[str, str]:
    """Read the name of a split and the dataset that it is of."""
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise click.UsageError(f"--extra-split takes NAME=DATASET, for example test=uoft-cs/cifar10; got {text!r}")
    return name, place
