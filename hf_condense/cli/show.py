"""`hf-condense show`: print how a set was made, and save a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_condense.base.paths import local_path
from hf_condense.cli.options import FilePath, Integer
from hf_condense.cli.text import command_line, facts_table

if TYPE_CHECKING:
    from hf_condense.condensed.files.facts import Facts


@click.command(short_help="Print how a set was made, and save a picture of it.")
@click.argument("folder", metavar="FOLDER_OR_REPO")
@click.option("--name", help="Which of the sets.  [default: the one its card names]")
@click.option("--revision", help="Branch, tag or commit of a repository.  [default: main]")
@click.option("--preview", type=FilePath(dir_okay=False), help="File to save a picture of the set to.")
@click.option("--per-class", type=Integer(1), help="Images per class in the picture of --preview.  [default: 10]")
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


def _check_picture(file: Path) -> None:
    """Refuse a file name that does not say which picture format to write."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    if suffixes.get(file.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--preview should end in .png or in another picture format; got {str(file)!r}")


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
