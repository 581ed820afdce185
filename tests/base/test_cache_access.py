"""A cache that users share: who may read it is for the umask to say, and errors say what to do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hf_condense.base.files import atomic_file, new_folder

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folders_and_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with new_folder(tmp_path / "cache" / "folder") as work:
        (work / "file").write_bytes(b"")
    with atomic_file(tmp_path / "cache" / "file") as work:
        work.write_bytes(b"")
    assert [mode(tmp_path / "cache" / name) for name in ("", "folder")] == [0o777 & ~umask] * 2
    assert [mode(tmp_path / "cache" / name) for name in ("file", "folder/file")] == [0o666 & ~umask] * 2


def test_files_follow_the_umask_even_if_a_library_replaces_them(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "file") as work:
        work.unlink()
        work.touch(mode=0o600)
    assert mode(tmp_path / "file") == 0o666 & ~umask


def test_the_group_of_a_shared_folder_is_passed_on(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    with new_folder(shared / "folder"):
        pass
    assert (shared / "folder").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("how", [atomic_file, new_folder])
def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path, how: type) -> None:
    (tmp_path / "in the way").touch()
    target = tmp_path / "in the way" / "cache" / "target"
    message = r"in the way.*cannot be read or written.*choose another place"
    with pytest.raises(NotADirectoryError, match=message) as error, how(target):
        pass
    assert "cache=False" not in str(error.value)


READER = """
import os, sys
import datasets
from hf_condense.testing import toy_dataset
from hf_condense.source.load import load_source
ds = toy_dataset(names=("a", "b", "c"))
load_source(ds, progress=False, cache=False)  # another user may not be able to import what this one needs
os.umask(0o022)
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
for home in sys.argv[1:]:
    datasets.config.HF_CACHE_HOME = home
    try:
        print(load_source(ds, progress=False).images.sum().item())
    except Exception as error:
        print(type(error).__name__, error)
"""


def private(home: Path, pattern: str) -> None:
    """Make what matches a pattern in the cache of sources one that only its owner may read."""
    for path in (home / "condense" / "sources").glob(pattern) if pattern else [home / "condense" / "sources"]:
        path.chmod(0o700 if path.is_dir() else 0o600)


def shared(home: Path) -> None:
    """Let everybody write to the cache of sources."""
    (home / "condense" / "sources").chmod(0o777)


def damaged(home: Path) -> None:
    next((home / "condense" / "sources").glob("*/source.json")).write_text("{")


def empty(home: Path) -> None:
    shutil.rmtree(home / "condense" / "sources")


CASES: dict[str, tuple[Callable[[Path], object], ...]] = {
    "as the first user left it": (),
    "private entry": (partial(private, pattern="*"),),
    "private images": (partial(private, pattern="*/images.bin"),),
    "private facts": (partial(private, pattern="*/source.json"),),
    "private sources": (partial(private, pattern=""),),
    "private entry where all may write": (shared, partial(private, pattern="*")),
    "damaged entry": (damaged,),
    "damaged entry where all may write": (shared, damaged),
    "no sources": (empty,),
    "no cache": (lambda home: shutil.rmtree(home / "condense"),),
}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, tuple[Path, str]]]:
    """What another user gets from the caches that root has filled: for each case the cache, and the sum or error."""
    from hf_condense.source.load import load_source
    from hf_condense.testing import toy_dataset

    top = Path(tempfile.mkdtemp(prefix="hf_condense-homes-"))  # pytest keeps its own folders to their owner
    top.chmod(0o755)
    homes = {case: top / case for case in CASES}
    with pytest.MonkeyPatch.context() as patch:
        for home in homes.values():
            patch.setattr("datasets.config.HF_CACHE_HOME", str(home))
            load_source(toy_dataset(names=("a", "b", "c")), progress=False)
    for case, changes in CASES.items():
        for change in changes:
            change(homes[case])
    command = [sys.executable, "-c", READER.format(nobody=NOBODY), *map(str, homes.values())]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    yield {case: (homes[case], line) for case, line in zip(CASES, result.stdout.splitlines(), strict=True)}
    shutil.rmtree(top)


@as_root
def test_a_second_user_reads_what_the_first_has_cached(outcomes: dict[str, tuple[Path, str]]) -> None:
    _, line = outcomes["as the first user left it"]
    assert int(line) > 0


@as_root
@pytest.mark.parametrize("case", list(CASES)[1:])
def test_a_cache_that_a_second_user_cannot_use_is_named_with_the_way_around_it(
    outcomes: dict[str, tuple[Path, str]], case: str
) -> None:
    home, line = outcomes[case]
    assert line.startswith("PermissionError")
    for part in (f"the cache, {home}", "cannot be read or written", "ask its owner", "cache=False", "HF_HOME"):
        assert part in line
