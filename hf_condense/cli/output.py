"""What commands leave: messages, and sets in folders and on the Hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from hf_condense.base.errors import CondensedFormatError, plain_text
from hf_condense.base.paths import local_path
from hf_condense.cli.text import as_options

if TYPE_CHECKING:
    from hf_condense.condensed.dataset import CondensedDataset

Result = TypeVar("Result")


def echo(message: str, err: bool = False) -> None:
    """Print a message, from the main process alone if a run has several."""
    from hf_condense.base.processes import is_main_process

    if is_main_process():
        click.echo(message, err=err)


def by_main(make: Callable[[], Result]) -> Result:
    """Return what a function returns in the main process of a run; the other ones wait for it."""
    from hf_condense.base.processes import in_main_process

    return in_main_process(make)


class Saved(NamedTuple):
    """Where a set was saved, and whether that is another place than was asked for."""

    folder: Path
    elsewhere: bool


def save_set(small: CondensedDataset, out: Path, overwrite: bool, name: str | None = None) -> Saved:
    """Save a set. If another one is in the way, or the folder cannot be written to, save it elsewhere.

    So no work is lost: in a new folder beside the one that is in the way, else in one for temporary files. The command
    should then end with exit code 1, as scripts look for the set where they asked for it.
    """
    from hf_condense.condensed.folder import list_sets

    try:
        return Saved(small.save_condensed(out, name, overwrite=overwrite), elsewhere=False)
    except (FileExistsError, CondensedFormatError) as error:  # the second: another set or the card there is damaged
        place = local_path(out).resolve()  # a folder called "." has no name to add to
        number = 2
        while (beside := place.with_name(f"{place.name}-{number}")).exists():
            if (name or small.recipe.config_name) in list_sets(beside):  # an earlier call may have saved this very set
                with suppress(FileExistsError, CondensedFormatError):
                    return _save_instead(small, beside, name, f"{error}; saved beside it, in {beside}")
            number += 1
        return _save_instead(small, beside, name, f"{error}; saved beside it, in {beside}")
    except OSError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="hf_condense-"))
        try:
            return _save_instead(small, elsewhere, name, f"{plain_text(error)}; saved in {elsewhere}")
        except OSError as second:
            shutil.rmtree(elsewhere, ignore_errors=True)
            raise OSError(
                f"the set was not saved: {plain_text(error)}. Nor could it be saved in {elsewhere}: "
                f"{plain_text(second)}"
            ) from error


def _save_instead(small: CondensedDataset, place: Path, name: str | None, reason: str) -> Saved:
    """Save a set in a place that nobody asked for, and say why."""
    folder = small.save_condensed(place, name)
    click.echo(f"warning: {as_options(reason, click.get_current_context().command)}", err=True)
    return Saved(folder, elsewhere=True)


def publish_set(small: CondensedDataset, repo: str, config_name: str | None = None, **settings: Any) -> None:
    """Push a set and print where it is."""
    info = small.push_to_hub(repo, config_name, **settings)
    name = config_name or small.recipe.config_name
    # A set that was there already is not committed again.
    done = "Published" if info.commit_message else "Nothing to publish, the repository has this already:"
    echo(f"{done} {name}: {info.pr_url or info.repo_url}")
    if info.pr_url is None:
        echo(f"Load it:  hf_condense.load_condensed({info.repo_url.repo_id!r}, {name!r}, revision={info.oid!r})")
