"""`hf-condense combine`: put several sets into one."""

from __future__ import annotations

from pathlib import Path

import click

from hf_condense.cli.options import FilePath, overwrite_option
from hf_condense.cli.output import save_set


@click.command(short_help="Put several sets into one.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER_OR_REPO...")
@click.option("--out", type=FilePath(file_okay=False), required=True, help="Folder to save to.")
@overwrite_option
def combine(folders: tuple[str, ...], out: Path, overwrite: bool) -> None:
    """Put several sets of different classes or sources into one.

    Of a folder or repository with several sets the default is taken; FOLDER/NAME names another one.
    """
    from hf_condense import combine_condensed, load_condensed

    small = combine_condensed([load_condensed(folder) for folder in folders])
    folder = save_set(small, out, overwrite)
    classes = len(small.synthetic.labels.unique())
    click.echo(f"Combined {len(folders)} sets: {len(small)} images of {classes} classes.")
    click.echo(f"Saved {folder}.")
