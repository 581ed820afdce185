"""`hf-condense page`: write one HTML file that shows all sets of a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hf_condense.cli.input import load_split, refuse_config, refuse_revision, refuse_split
from hf_condense.cli.options import FilePath, Integer, cache_option, quiet_option


@click.command(short_help="Write one HTML file that shows all sets of a place.")
@click.argument("folder", metavar="FOLDER_OR_REPO")
@click.option("--out", "-o", type=FilePath(dir_okay=False), default=Path("page.html"), help="File to write.")
@click.option("--revision", help="Branch, tag or commit of a repository.  [default: main]")
@click.option("--source", help="Real dataset: a Hub id or a folder. Shows the real image nearest to each learned one.")
@click.option("--source-split", default="train", help="Training split of --source.")
@click.option("--source-revision", help="Branch, tag or commit of --source on the Hub.  [default: main]")
@click.option("--config", help="Configuration of --source.")
@click.option("--per-class", type=Integer(1), default=10, help="Images per class, at most.")
@click.option("--max-classes", type=Integer(1), default=100, help="Classes of a set, at most.")
@cache_option
@quiet_option
def page(
    folder: str,
    out: Path,
    revision: str | None,
    source: str | None,
    source_split: str,
    source_revision: str | None,
    config: str | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Write one HTML file with all sets of a folder or of a repository USER/REPO: images, accuracies, recipes.

    The file needs no server and loads nothing; open it in a browser, send it, or put it on a web server.
    """
    from hf_condense import write_page

    real = None
    if source is not None:
        refuse_config("--config", config, source)
        refuse_revision("--source-revision", source_revision, source)
        if source_split != "train":
            refuse_split("--source-split", source_split, source)
        real = load_split(source, config, source_split, "--source-split", source_revision)
    elif config is not None or source_revision is not None or source_split != "train":
        raise click.UsageError(
            "--config, --source-split and --source-revision are for the dataset of --source, which is missing"
        )
    path = write_page(folder, out, source=real, revision=revision, progress=not quiet, **settings)
    click.echo(f"Wrote {path} ({path.stat().st_size:,} B). Open it in a browser.")
