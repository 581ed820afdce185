"""Removing a condensed set from where it was saved or published."""

from __future__ import annotations

from pathlib import Path

from hf_condense.base.checks import check_path
from hf_condense.base.processes import is_main_process
from hf_condense.condensed.files.names import FACTS
from hf_condense.condensed.folder import check_level, is_repository, refuse_revision, remove, resolve_folder
from hf_condense.condensed.hub.publish import remove as remove_published


def remove_condensed(
    path_or_repo: str | Path, name: str, *, revision: str | None = None, token: str | bool | None = None
) -> None:
    """Remove a set from a folder of sets or a repository on the Hub, with its rows on the card.

    Whoever deletes the files alone leaves a card that names them, and `load_dataset` then reads no other set either.
    Only files that a set consists of are removed, and splits that were published with it; others in its folder stay. If
    it was the default of the card, the first of the other sets is the new one. Earlier commits of a repository keep the
    set.

    Args:
        path_or_repo: A folder of sets, or, as text, a dataset repository `"user/name"`. A folder that exists comes
            first.
        name: Name of the set.
        revision: Branch of a repository. Default: its main branch.
        token: Token for a repository, which needs write access. Default: the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        FileNotFoundError: If there is no such folder, repository or branch.
        PermissionError: If the token is missing or may not write.
        ConnectionError: If the Hub cannot be reached.
        TypeError: If the place is no path or text, or the name or revision is no text.
        ValueError: If there is no set of this name, it is the only one, the folder is that of one set, a folder is
            given a revision, or `revision` is a commit.
        CondensedFormatError: If there is no set, the card cannot be read, or none of the other sets can; if some of
            these can be read, the others leave the card, with a warning.
        FileExistsError: If the repository holds other data that its card does not list.
        OSError: If the folder cannot be written; it then stays as it was.

    Example:
        >>> import tempfile
        >>> from hf_condense import condense_dataset, list_condensed
        >>> from hf_condense.demo_data import load_demo
        >>> ds = load_demo()["train"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for ipc in (1, 2):
        ...         _ = condense_dataset(ds, "random", ipc=ipc, progress=False).save_condensed(folder)
        ...     remove_condensed(folder, "random_ipc1")
        ...     list_condensed(folder)
        ['random_ipc2']
    """
    check_path("path_or_repo", path_or_repo)
    if not isinstance(name, str):
        raise TypeError(f"name should be the name of a set; got {name!r} ({type(name).__name__})")
    refuse_revision(path_or_repo, revision)
    if is_repository(path_or_repo):
        remove_published(str(path_or_repo), name, token=token, revision=revision)
        return
    folder = resolve_folder(path_or_repo)
    if (folder / FACTS).is_file():
        raise ValueError(f"{folder} is the folder of one set; pass the folder of sets that it is in")
    check_level(folder)
    if is_main_process():
        remove(folder, name)
