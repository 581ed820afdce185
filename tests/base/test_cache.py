"""The next write of a file or folder removes what killed processes left beside it, and nothing that may be in use.
Damaged files of tensors are made again."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from hf_condense.base.cache import (
    atomic_file,
    cache_folder,
    cached_or_made,
    cached_tensors,
    check_place,
    new_folder,
    write_tensors,
)

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from hf_condense.base import cache

with getattr(cache, sys.argv[1])(Path(sys.argv[2])) as work:
    (work / "images.bin" if work.is_dir() else work).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(how: str, target: Path) -> Path:
    """Kill a process while it writes, and return the file or folder that it leaves."""
    before = set(target.parent.iterdir())
    command = [sys.executable, "-c", KILLED, how, str(target)]
    process = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (leftover,) = set(target.parent.iterdir()) - before
    return leftover


def write(how: str, target: Path) -> None:
    """Write `target` in the way of this name."""
    with {"atomic_file": atomic_file, "new_folder": new_folder}[how](target) as work:
        (work / "images.bin" if work.is_dir() else work).write_bytes(b"whole")


def aged(path: Path, hours: float) -> Path:
    """Make a file or folder look as if it had not been touched for some hours."""
    for each in (*path.rglob("*"), path):
        when = each.stat().st_mtime - hours * 3600
        os.utime(each, (when, when))
    return path


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
def test_leftovers_of_a_killed_process_are_removed_by_the_next_write(tmp_path: Path, how: str) -> None:
    target = tmp_path / "a [b] (c).bin"
    killed_while_writing(how, target)
    write(how, tmp_path / "other.bin")
    assert len(list(tmp_path.iterdir())) == 2, "leftovers of another target should stay"
    write(how, target)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "other.bin"}


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
def test_files_that_a_live_process_writes_stay(tmp_path: Path, how: str) -> None:
    target = tmp_path / "set"
    with {"atomic_file": atomic_file, "new_folder": new_folder}[how](target) as work:
        write(how, target)
        assert work.exists()
        (work / "images.bin" if work.is_dir() else work).write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("how", ["atomic_file", "new_folder"])
@pytest.mark.parametrize(("hours", "stays"), [(23, True), (25, False)])
def test_leftovers_of_another_machine_stay_for_a_day(tmp_path: Path, how: str, hours: float, stays: bool) -> None:
    target = tmp_path / "set"
    leftover = killed_while_writing(how, target)
    name, _, process, end = leftover.name.split("-")
    elsewhere = aged(leftover.rename(tmp_path / f"{name}-0123abcd-{process}-{end}"), hours)
    write(how, target)
    assert elsewhere.exists() == stays


def test_a_folder_that_holds_a_recent_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".set-0123abcd-1-abcdefgh"
    folder.mkdir()
    (folder / "images.bin").write_bytes(b"half")
    aged(folder, 25)
    (folder / "images.bin").touch()
    write("new_folder", tmp_path / "set")
    assert folder.exists()


def test_other_hidden_files_stay_however_old(tmp_path: Path) -> None:
    leftover = killed_while_writing("atomic_file", tmp_path / "set")
    names = {f"{leftover.name}.bak", f"x{leftover.name}", ".set-abcdefgh", ".set", ".settings-0123abcd-1-abcdefgh"}
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
        aged(tmp_path / name, 1000)
    write("atomic_file", tmp_path / "set")
    assert {path.name for path in tmp_path.iterdir()} == names | {"set"}


def test_tensors_that_cannot_be_cached_are_returned_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    file = cache_folder("features") / "full.safetensors"
    assert torch.equal(cached_tensors(file, lambda: {"features": torch.arange(4.0)})["features"], torch.arange(4.0))
    assert not file.exists()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"no space left while writing {file} (")
    assert "use another cache (set HF_HOME, or pass cache=False)" in message
    assert message.endswith("What was computed is used, but not cached")


def test_system_error_of_a_library_is_one_of_python(tmp_path: Path) -> None:
    """The failure is real: the process may not write a file of that size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_tensors(tmp_path / "large.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_tensors_that_another_user_keeps_private_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    file = tmp_path / "key.safetensors"
    cached_tensors(file, lambda: {"features": torch.arange(4.0)})
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="ask its owner for access"):
        cached_tensors(file, lambda: {"features": torch.arange(4.0)})


def test_place_is_checked_without_making_it(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(NotADirectoryError, match=r"cannot be read or written .* choose another place"):
            check_place(place)


@pytest.mark.parametrize("left", [0, 5, 20, -1], ids=["empty", "no header", "half a header", "last byte missing"])
def test_a_damaged_file_of_tensors_is_made_again_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    calls: list[None] = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(None)
        return {"features": torch.arange(4.0)}

    file = tmp_path / "features" / "key.safetensors"
    cached_tensors(file, make)
    assert not caplog.records
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    for _ in range(2):
        assert torch.equal(cached_tensors(file, make)["features"], torch.arange(4.0))
    assert len(calls) == 2
    assert file.read_bytes() == whole
    (record,) = caplog.records
    assert f"{file} in the cache is damaged" in record.getMessage()


@pytest.mark.parametrize(("enabled", "disabled", "made"), [(True, False, 1), (False, False, 2), (True, True, 2)])
def test_tensors_are_cached_unless_that_is_switched_off(
    enabled: bool, disabled: bool, made: int, request: pytest.FixtureRequest
) -> None:
    calls: list[None] = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(None)
        return {"features": torch.arange(4.0)}

    if disabled:
        datasets.disable_caching()
        request.addfinalizer(datasets.enable_caching)
    key = f"switched-{enabled}-{disabled}"
    for _ in range(2):
        tensors = cached_or_made("features", key, make, enabled=enabled)
        assert torch.equal(tensors["features"], torch.arange(4.0))
    assert len(calls) == made
    assert (cache_folder("features") / f"{key}.safetensors").exists() == (made == 1)
