"""Loading condensed sets, from a folder or from the Hub."""

from __future__ import annotations

from pathlib import Path

from hf_condense.base.checks import boolean, check_path, check_text
from hf_condense.base.paths import named_folder
from hf_condense.condensed.dataset import CondensedDataset
from hf_condense.condensed.files.facts import read_facts
from hf_condense.condensed.files.names import FACTS
from hf_condense.condensed.files.packing import unpack
from hf_condense.condensed.folder import is_repository, list_sets, pick, refuse_revision, resolve_folder
from hf_condense.condensed.hub.repository import download, list_names


def load_condensed(
    path_or_repo: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> CondensedDataset:
    """Load a condensed set exactly as it was made: float pixels, labels, recipe, rows.

    No file is trusted: loading runs no code, follows no path that a file names, and checks sizes before it allocates
    memory.

    Args:
        path_or_repo: A folder of sets, the folder of one set, or, as text, a dataset repository `"user/name"` on the
            Hub. A folder that exists comes first; `~` stands for the home folder. Only the files of one set are
            downloaded from a repository, all from the same commit; they are cached, so that the next load needs no
            connection. Without one, a set that is only cached of an earlier commit of the main branch is loaded from
            there, with a warning.
        name: Name of the set. None: the default of the card, else the only set.
        revision: Branch, tag or commit of a Hub repository. Default: its main branch. A branch can move: give a commit
            to always get the same set.
        token: Token for a Hub repository. Default: the one of `hf auth login` or `HF_TOKEN`; False: none.
        cache_dir: Where files of a Hub repository are cached. Default: the Hub's own cache.
        local_files_only: Use the cached card and files only, without asking the Hub.
        force_download: Download the files of a Hub repository even if they are cached, for example because a cached
            one is damaged.

    Returns:
        The set. The rows of a synthetic set are decoded from its tensors; those of a coreset are read as stored.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision, or if the Hub is out of reach and the set
            is not cached.
        PermissionError: If the token is missing or may not read.
        ConnectionError: If the Hub cannot be reached.
        TypeError: If the place is no path or text, the name or revision no text, or a switch neither True nor False.
        ValueError: If there is no set of this name, or if there are several and no default, if a folder is given a
            revision, or if both `force_download` and `local_files_only` are True.
        CondensedFormatError: If a file is damaged, unsafe, foreign or of a newer format.

    Example:
        >>> import tempfile
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=1, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = small.save_condensed(folder)
        ...     load_condensed(folder).recipe.config_name
        'random_ipc1'
    """
    check_path("path_or_repo", path_or_repo)
    local_files_only = boolean("local_files_only", local_files_only)
    force_download = boolean("force_download", force_download)
    check_text("name", name)
    refuse_revision(path_or_repo, revision)
    if force_download and local_files_only:
        raise ValueError("force_download=True asks the Hub, and local_files_only=True does not; leave out one of them")
    if is_repository(path_or_repo):
        folder, facts = download(
            str(path_or_repo),
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    else:
        folder = pick(path_or_repo, name)
        facts = read_facts(folder)
    return CondensedDataset.from_parts(*unpack(folder, facts))


def list_condensed(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> list[str]:
    """Return the names of the condensed sets in a folder or in a dataset repository on the Hub, sorted.

    Args:
        path_or_repo: A folder of sets, the folder of one set, or a repository `"user/name"`; a folder that exists comes
            first.
        revision: Branch, tag or commit of a repository. Default: its main branch.
        token: Token for a repository. Default: the one of `hf auth login` or `HF_TOKEN`; False: none.
        cache_dir: Where files of a repository are cached. Default: the Hub's own cache.
        local_files_only: Look at cached files only, without asking the Hub.

    Returns:
        The names that `load_condensed` takes; none if there is no condensed set. Without a connection, a repository's
        names are those of the cached sets, with a warning.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision, or if `local_files_only` and no set is
            cached.
        PermissionError: If the token is missing or may not read.
        ConnectionError: If the Hub cannot be reached, and no set is cached.
        TypeError: If the place is no path or text, the revision no text, or `local_files_only` neither True nor False.
        ValueError: If a folder is given a revision.

    Example:
        >>> import tempfile
        >>> from hf_condense import condense_dataset
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=1, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = small.save_condensed(folder)
        ...     list_condensed(folder)
        ['random_ipc1']
    """
    check_path("path_or_repo", path_or_repo)
    local_files_only = boolean("local_files_only", local_files_only)
    refuse_revision(path_or_repo, revision)
    if not is_repository(path_or_repo):
        folder = resolve_folder(path_or_repo)
        return [named_folder(folder).name] if (folder / FACTS).is_file() else list_sets(folder)
    return list_names(
        str(path_or_repo), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
