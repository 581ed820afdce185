"""`hf-condense remove`: remove a set from a folder or from the Hub."""

from __future__ import annotations

import click

from hf_condense.cli.output import echo


@click.command(short_help="Remove a set from a folder or from the Hub.")
@click.argument("place", metavar="FOLDER|USER/REPO")
@click.argument("name")
@click.option("--revision", metavar="BRANCH", help="Branch of the repository.  [default: main]")
def remove(place: str, name: str, revision: str | None) -> None:
    """Remove the set NAME from a folder of sets or a repository, with its rows on the card.

    Example: hf-condense remove condensed/cifar10 dm_ipc1
    """
    from hf_condense import list_condensed, remove_condensed

    remove_condensed(place, name, revision=revision)
    echo(f"Removed {name}. {place} has: {', '.join(list_condensed(place, revision=revision))}.")
