"""Writing the page of a folder or a repository of condensed sets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import datasets
from torch import Tensor

from hf_condense.base.checks import boolean, check_path
from hf_condense.base.files import explained_access, output_file
from hf_condense.base.paths import local_path, named_folder
from hf_condense.base.torch_state import plain_torch
from hf_condense.condensed.card.render import default_config
from hf_condense.condensed.files.facts import Facts, read_facts
from hf_condense.condensed.files.names import FACTS, PAGE, README
from hf_condense.condensed.files.packing import read_tensors
from hf_condense.condensed.folder import (
    check_level,
    is_repository,
    list_sets,
    read_card,
    refuse_no_sets,
    refuse_revision,
    resolve_folder,
)
from hf_condense.condensed.hub.repository import download_all
from hf_condense.condensed.page.render import MARK, Shown, render_page
from hf_condense.engine.nearest import nearest_images
from hf_condense.evaluation.reader import Reader
from hf_condense.source.columns import check_dataset

logger = logging.getLogger("hf_condense")

_START_BYTES = 1024  # of a file, to see whether it is a page

_Finder = Callable[[Tensor], tuple[Tensor, Tensor]]  # from images to the nearest real ones, and how far each is


@plain_torch()
def write_page(
    path_or_repo: str | Path,
    file: str | Path = PAGE,
    *,
    source: datasets.Dataset | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    per_class: int = 10,
    max_classes: int = 100,
    cache: bool = True,
    progress: bool = True,
) -> Path:
    """Write one HTML file that shows every condensed set of a folder or a repository.

    The file needs no server and loads nothing: its images are inside. It shows the images by class, the accuracies with
    their standard deviations, sizes, recipe and how to load each set, and a table of all sets that can be sorted.

    Args:
        path_or_repo: A folder of sets, the folder of one set, or a dataset repository `"user/name"`; a folder that
            exists comes first.
        file: File to write; an earlier page is replaced.
        source: The real training set that sets were made from. The page then shows below each learned image the real
            image that is nearest to it, so mind the licence of the real images and whom they show. Sets that were made
            from other images are shown without. Default: no real images.
        revision: Branch, tag or commit of a repository. Default: its main branch.
        token: Token for a repository. Default: the one of `hf auth login` or `HF_TOKEN`; False: none.
        cache_dir: Where files of a repository are cached. Default: the Hub's own cache.
        local_files_only: Use the cached sets of a repository only, without asking the Hub. Without a connection these
            are shown, too, with a warning.
        per_class: Images to show per class, at most; >= 1.
        max_classes: Largest number of classes to show of a set, in label order, >= 1.
        cache: Keep decoded images of `source` under `$HF_HOME/condense`; obeys `datasets.disable_caching()`.
        progress: Show a progress bar while they are decoded.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such folder, repository or revision, or if `local_files_only` and no set is
            cached.
        PermissionError: If the token is missing or may not read.
        ConnectionError: If the Hub cannot be reached, and no set is cached.
        FileExistsError: If `file` exists and is no page that hf_condense wrote.
        TypeError: If `source` is no dataset, or another argument has the wrong type.
        ValueError: If `per_class` or `max_classes` is below 1, a folder is given a revision, or `source` can be read
            for none of the sets.
        CondensedFormatError: If there are no sets, or one cannot be read or shown.
        OSError: If the file cannot be written, or the cache cannot be used.

    Example:
        >>> import tempfile
        >>> from hf_condense import condense_dataset, write_page
        >>> from hf_condense.demo_data import load_demo
        >>> small = condense_dataset(load_demo()["train"], "random", ipc=1, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = small.save_condensed(folder)
        ...     write_page(folder, f"{folder}/page.html").name
        'page.html'
    """
    check_path("path_or_repo", path_or_repo)
    check_path("file", file)
    cache, progress = boolean("cache", cache), boolean("progress", progress)
    local_files_only = boolean("local_files_only", local_files_only)
    refuse_revision(path_or_repo, revision)
    _refuse_other_file(local_path(file))
    if local_path(file).suffix.lower() not in ("", ".html", ".htm"):
        logger.warning("%s does not end in .html, so browsers may show it as plain text", file)
    is_remote = is_repository(path_or_repo)
    if is_remote:
        folders = download_all(
            str(path_or_repo), revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
    else:
        folders = _in_folder(path_or_repo)
    refuse_no_sets(str(path_or_repo), folders)
    default: str | None = next(iter(folders))
    if len(folders) > 1:
        parent = next(iter(folders.values()))[0].parent
        default = default_config(read_card(parent, f"{README} of {path_or_repo}" if is_remote else None))
    nearest: dict[str, _Finder] = {}
    if source is not None:
        reader = Reader.of_set(cache=cache, progress=progress)
        nearest = _finders(check_dataset(source, "source"), folders, reader)
    sets = {
        name: Shown(facts, read_tensors(folder, facts), nearest.get(name)) for name, (folder, facts) in folders.items()
    }
    where = {"place": str(path_or_repo), "revision": revision} if is_remote else {}
    page = render_page(sets, default=default, per_class=per_class, max_classes=max_classes, **where)
    with output_file(file) as work:
        work.write_text(page, encoding="utf-8")
    return local_path(file)


def _refuse_other_file(file: Path) -> None:
    """Raise `FileExistsError` if a file exists and is no page of ours, or `IsADirectoryError` if it is a folder."""
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder; name a file for the page, such as {file / PAGE}")
    if not file.is_file():  # nothing is there, or a place such as /dev/stdout, which holds nothing
        return
    with explained_access(file), file.open("rb") as content:
        start = content.read(_START_BYTES)
    if start and MARK.encode() not in start:
        raise FileExistsError(
            f"{file} exists and hf_condense did not write it, so it is not replaced; choose another path for the page"
        )


def _finders(source: datasets.Dataset, folders: Mapping[str, tuple[Path, Facts]], reader: Reader) -> dict[str, _Finder]:
    """Return for each set that was learned what finds the real images that are nearest to its images.

    A set of another dataset has none, and a warning says so.

    Raises:
        ValueError: If the real images can be read for none of the sets.
    """
    recipes = {name: facts.recipe for name, (_, facts) in folders.items() if facts.recipe.kind != "coreset"}
    finders: dict[str, _Finder] = {}
    failures: dict[str, ValueError] = {}
    for name, recipe in recipes.items():
        channels, height, width = recipe.image_shape
        try:
            real = reader.load(source, "source", recipe, (channels, height, width))
        except ValueError as error:  # it lacks the columns of this set, or its pictures have other channels
            failures[name] = error
            continue
        hashes = [own["content_hash"] for own in recipe.sources if own.get("content_hash")]
        if hashes and real.content_hash not in hashes:
            logger.warning("%s was made from other images than those of source: none are shown below its own", name)
            continue
        finders[name] = partial(nearest_images, source=real)
    if failures and len(failures) == len(recipes):
        raise next(iter(failures.values()))
    for name, failure in failures.items():
        logger.warning("source does not suit %s, so no real images are shown below its own: %s", name, failure)
    return finders


def _in_folder(path: str | Path) -> dict[str, tuple[Path, Facts]]:
    """Return where each set of a folder is, and its facts."""
    root = resolve_folder(path)
    check_level(root)
    folders = [root] if (root / FACTS).exists() else [root / name for name in list_sets(root)]
    return {named_folder(folder).name: (folder, read_facts(folder)) for folder in folders}
