"""`hf-condense show`: print how a set was made, and save a picture of it."""

from __future__ import annotations

from pathlib import Path

import click

from hf_condense.cli.input import folder_of_set, other_sets
from hf_condense.cli.options import FilePath, Integer
from hf_condense.cli.text import command_line, facts_table


@click.command(short_help="Print how a set was made, and save a picture of it.")
@click.argument("folder", metavar="FOLDER_OR_REPO")
@click.option("--name", help="Which of the sets.  [default: the one its card names]")
@click.option("--revision", help="Branch, tag or commit of a repository.  [default: main]")
@click.option("--preview", type=FilePath(dir_okay=False), help="File to save a picture of the set to.")
@click.option("--per-class", type=Integer(1), help="Images per class in the picture of --preview.  [default: 10]")
def show(folder: str, name: str | None, revision: str | None, preview: Path | None, per_class: int | None) -> None:
    """Print how a set was made, from a folder or a repository USER/REPO on the Hub, and save a picture of it."""
    from hf_condense import load_condensed
    from hf_condense.base.files import output_file
    from hf_condense.condensed.files.facts import read_facts
    from hf_condense.condensed.files.names import PREVIEW

    if preview is None and per_class is not None:
        raise click.UsageError("--per-class is for the picture of --preview, which is missing")
    picture_format = None if preview is None else _picture_format(preview)
    small = load_condensed(folder, name, revision=revision)
    place = folder_of_set(folder, name, revision)
    click.echo(facts_table(place.name, small, read_facts(place)))
    if others := other_sets(folder, place):
        click.echo(f"\nOther sets here, for --name: {', '.join(others)}")
    if preview is None:
        click.echo(
            f"\nTo save a picture:  {command_line('show', folder, name=name, revision=revision, preview=PREVIEW)}"
        )
    else:
        with output_file(preview) as work:
            small.preview(per_class or 10).save(work, format=picture_format)
        click.echo(f"\nSaved the picture {preview}.")


def _picture_format(file: Path) -> str:
    """Return the picture format that the name of a file says; raise if it says none."""
    from PIL import Image

    name = Image.registered_extensions().get(file.suffix.lower())
    if name is None or name not in Image.SAVE:
        raise ValueError(f"--preview should end in .png or in another picture format; got {str(file)!r}")
    return name
