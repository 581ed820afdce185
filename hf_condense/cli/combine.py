"""`hf-condense combine`: put several sets into one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_condense.base.paths import local_path
from hf_condense.base.words import plural
from hf_condense.cli.options import FilePath, overwrite_option
from hf_condense.cli.output import save_set
from hf_condense.cli.text import amount

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset

# The names of branches have no slash here, but for those of pull requests.
_IN_REPOSITORY = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/\w+/\w+|[^/@]+))?(?:/(?P<name>[^/@]+))?")


@click.command(short_help="Put several sets into one.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER_OR_REPO...")
@click.option("--out", type=FilePath(file_okay=False), required=True, help="Folder to save to.")
@click.option("--name", help="Name of the new set there.  [default: combined_ipcN and the storage form]")
@overwrite_option
def combine(folders: tuple[str, ...], out: Path, name: str | None, overwrite: bool) -> None:
    """Put several sets of different classes or sources into one.

    Of a folder or repository with several sets the default is taken; FOLDER/NAME and USER/REPO/NAME name another one.
    USER/REPO@REVISION and USER/REPO@REVISION/NAME take it from a branch, tag or commit.
    """
    from hf_condense import combine_condensed
    from hf_condense.condensed.files.names import check_name

    if name is not None:
        check_name(name)
    sets = [_load(folder) for folder in folders]
    if len(sets) < 2:
        raise click.UsageError(
            f"name two sets or more to combine; got {folders[0]!r}. Those of one folder are FOLDER/NAME each"
        )
    small = combine_condensed(sets)
    saved = save_set(small, out, overwrite, name)
    classes = len(small.synthetic.labels.unique())
    click.echo(f"Combined {len(folders)} {plural(len(folders), 'set')}: {amount(len(small), classes)}.")
    click.echo(f"Saved {saved.folder}.")
    if saved.elsewhere:
        click.get_current_context().exit(1)


def _load(place: str) -> CondensedDataset:
    """Load a set from what one argument says."""
    from hf_condense import load_condensed
    from hf_condense.condensed.files.names import is_repository_name

    parts = None if local_path(place).exists() else _IN_REPOSITORY.fullmatch(place)
    try:
        if parts is None or not is_repository_name(parts["repo"]):
            return load_condensed(place)
        return load_condensed(parts["repo"], parts["name"], revision=parts["revision"])
    except ValueError as error:  # this command has no option for the name of a set that it reads
        raise ValueError(str(error).replace("as name=", f"as {place}/NAME")) from error
